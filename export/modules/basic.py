"""The smallest blocks that every system shares: linear, norms, snake, convolutions.

In: activations whose residual stream is FP32. Out: the same. Matrix products and convolutions run in the dtype of their
weights (FP32 or FP16); statistics, exponentials and sines always run in FP32 (the FP32 islands). In an FP32 module
every cast below is a no-op and leaves no node behind. Weights are stored as the graph wants them, never transposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Stored:
    """How a parameter's values follow from the checkpoint's tensor of (nearly) the same name."""

    name: str
    """The checkpoint's own name of the leaf."""
    transform: Literal["same", "transpose", "pointwise", "exp", "inverse_exp"]
    """`same`: as they are; `transpose`: [out, in] or [out, in, 1] to [in, out];
    `pointwise`: [out, in] to [out, in, 1]; `exp`, `inverse_exp`: see `Snake`."""


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """An uninitialised weight; its values are streamed into the graph's data file after tracing."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class Linear(nn.Module):
    """`x @ weight (+ bias)`, weight [in, out]; takes any float dtype, gives FP32 unless `keep` is set.

    Stands for a checkpoint's linear layer, and for its convolution of width 1 over the last axis.
    """

    stored: ClassVar = {"weight": Stored("weight", "transpose")}

    def __init__(
        self, inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = False, keep: bool = False
    ) -> None:
        super().__init__()
        self.weight = parameter(inputs, outputs, dtype=dtype)
        self.bias = parameter(outputs, dtype=dtype) if bias else None
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x.to(self.weight.dtype), self.weight)
        if self.bias is not None:
            y = y + self.bias
        return y if self.keep else y.float()


class IslandLinear(nn.Module):
    """`weight @ x + bias` of vectors [B, in] in FP32, whatever the graph's precision.

    Written as a convolution of width 1: TensorRT-RTX 1.7 refuses FP32 matrix products on SM75, even in an FP16 graph.
    """

    stored: ClassVar = {"weight": Stored("weight", "pointwise")}

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs, 1)
        self.bias = parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x.float().unsqueeze(2), self.weight, self.bias).squeeze(2)


class Embedding(nn.Module):
    """Rows of a table [rows, width] by INT32 id, as FP32."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(rows, width, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight).float()


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis (Zhang and Sennrich 2019), in FP32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), in FP32."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = parameter(width)
        self.bias = parameter(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def gelu(x: Tensor) -> Tensor:
    """`x * Phi(x)` (Hendrycks and Gimpel 2016) with the error function, which every runtime has; in FP32."""
    x = x.float()
    return x * (0.5 * (1.0 + torch.erf(x * math.sqrt(0.5))))


class Snake(nn.Module):
    """`x + inverse_beta * sin(alpha * x) ** 2` per channel of [B, C, T] (Ziyin et al. 2020; two parameters as BigVGAN).

    `alpha` and `inverse_beta` hold exp(log alpha) and 1 / (exp(log beta) + 1e-9), folded when the weights are
    streamed: 1e-9 does not exist in FP16, and the graph then needs neither exponential nor division.
    """

    stored: ClassVar = {"alpha": Stored("alpha", "exp"), "inverse_beta": Stored("beta", "inverse_exp")}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = parameter(1, channels, 1)
        self.inverse_beta = parameter(1, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(self.alpha * x)
        return x + self.inverse_beta * (wave * wave)


class Conv1d(nn.Module):
    """1-D convolution over [B, C, T] in the weights' dtype; gives FP32."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        dtype: torch.dtype,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs, kernel, dtype=dtype)
        self.bias = parameter(outputs, dtype=dtype) if bias else None
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        y = nn.functional.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return y.float()


class ConvTranspose1d(nn.Module):
    """1-D transposed convolution over [B, C, T] in the weights' dtype; gives FP32."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dtype: torch.dtype, *, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.weight = parameter(inputs, outputs, kernel, dtype=dtype)
        self.bias = parameter(outputs, dtype=dtype)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return nn.functional.conv_transpose1d(x, self.weight, self.bias, self.stride, self.padding).float()

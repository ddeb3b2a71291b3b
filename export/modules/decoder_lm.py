"""Causal decoder of the Qwen3 family: token ids or their embeddings and a history in, logits and new history out.

One module for every system's backbone and for both flavours of its graph. It does not know experts, modalities or
sampling: a routed mixture is two of these over one cache. Architecture: Qwen3 (RMSNorm, grouped-query attention with
per-head query and key norms before the rotary embedding, SwiGLU).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from voxedge.engines.manifest import Flavour
from voxedge.export.checkpoint.qwen3 import QwenConfig
from voxedge.export.modules.attention import RotaryTables
from voxedge.export.modules.basic import Embedding, Linear, RMSNorm
from voxedge.export.modules.cache import History, OrtHistory, PortableHistory

JOINT = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Which projections of a checkpoint, in order, are one product here: they read the same rows, and every product is a
call that the threads begin and end together."""


@dataclass(frozen=True, slots=True)
class DecoderForm:
    """What a graph of a decoder is like beyond its checkpoint."""

    head_rows: int
    """Columns of the logits: only what can be sampled; 0 for a graph without logits."""
    max_context: int
    """Positions of the rotary tables: past plus new tokens can never be more."""
    dtype: torch.dtype
    """Of the matrix products and of the cache."""
    logits: Literal["one", "all"] = "one"
    """Logits of one position for each row, given by the input `logits_at`, or of every position."""
    probes: tuple[Literal["prenorm", "hidden"], ...] = ()
    """Also give the residual stream before and after the final norm, for comparisons."""
    embeds: bool = False
    """Takes embeddings instead of ids, where several tables are summed."""
    state: bool = False
    """Also give what the head reads, for further heads."""


class FusedRMSNorm(RMSNorm):
    """The same norm as one node of ONNX Runtime."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            [x.float(), self.weight],
            {"axis": -1, "epsilon": self.eps, "stash_type": 1},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )


class ResidualNorm(RMSNorm):
    """The norm of a residual stream to which something is yet to be added; gives the sum as well."""

    def forward(self, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two values
        total = x.float() if update is None else x + update
        return super().forward(total), total


class FusedResidualNorm(FusedRMSNorm):
    """The same as one node of ONNX Runtime."""

    def forward(self, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # as above
        if update is None:
            return super().forward(x), x
        row = (*x.shape[:-1], 1)
        normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::SkipSimplifiedLayerNormalization",
            [x, update, self.weight],
            {"epsilon": self.eps},
            dtypes=[torch.float32] * 4,
            shapes=[x.shape, row, row, x.shape],
            version=1,
        )
        return normed, total


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms that a flavour is made of."""

    heads: type[RMSNorm]
    """Of queries and keys."""
    residual: type[ResidualNorm | FusedResidualNorm]
    """In front of attention and feed-forward, and at the end."""


NORMS: Mapping[Flavour, Norms] = {
    "portable": Norms(RMSNorm, ResidualNorm),
    "ort": Norms(FusedRMSNorm, FusedResidualNorm),
}


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys; one product gives queries, keys and values."""

    def __init__(self, config: QwenConfig, dtype: torch.dtype, flavour: Flavour) -> None:
        super().__init__()
        norm = NORMS[flavour].heads
        width, heads, groups, dim = config.hidden_size, config.heads, config.kv_heads, config.head_dim
        self.dim = dim
        self.heads = (heads, groups, groups)
        self.qkv_proj = Linear(width, sum(self.heads) * dim, dtype, keep=True)
        self.o_proj = Linear(heads * dim, width, dtype)
        self.q_norm = norm(dim, config.rms_norm_eps)
        self.k_norm = norm(dim, config.rms_norm_eps)

    def forward(self, x: Tensor, layer: int, history: History) -> Tensor:
        mixed: Tensor = self.o_proj(history.attend(layer, *self.project(x)))
        return mixed

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed queries [B, S, H, D] and keys [B, S, G, D], FP32, and values [B, S, G, D], of rows [B, S, d]."""
        parts = torch.split(self.qkv_proj(x), [heads * self.dim for heads in self.heads], -1)
        q, k, v = (part.reshape(*part.shape[:2], -1, self.dim) for part in parts)
        return self.q_norm(q), self.k_norm(k), v


class GatedMlp(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020); one product gives the gate and what it gates."""

    def __init__(self, inputs: int, inner: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.gate_up_proj = Linear(inputs, 2 * inner, dtype, keep=True)
        self.down_proj = Linear(inner, outputs, dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.split(self.gate_up_proj(x), self.inner, -1)
        wide = gate.float()
        down: Tensor = self.down_proj((wide * torch.sigmoid(wide)).to(up.dtype) * up)
        return down


class Layer(nn.Module):
    """Pre-norm attention and feed-forward over an FP32 residual stream.

    The sum of the two is left to whoever reads it, since ONNX Runtime adds and norms in one node.
    """

    def __init__(self, config: QwenConfig, dtype: torch.dtype, flavour: Flavour = "portable") -> None:
        super().__init__()
        norm = NORMS[flavour].residual
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, dtype, flavour)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.hidden_size, dtype)

    def forward(self, x: Tensor, update: Tensor | None, layer: int, history: History) -> tuple[Tensor, Tensor]:
        """Run one layer over the stream [B, S, d] and what is to be added to it first; gives the same two."""
        y, x = self.input_layernorm(x, update)
        y, x = self.post_attention_layernorm(x, self.attn(y, layer, history))
        return x, self.mlp(y)


class DecoderLm(nn.Module):
    """The whole decoder."""

    def __init__(self, config: QwenConfig, form: DecoderForm, flavour: Flavour) -> None:
        super().__init__()
        self.form, self.flavour = form, flavour
        self.repeat = config.heads // config.kv_heads
        self.embed = nn.Identity() if form.embeds else Embedding(config.vocab_size, config.hidden_size, form.dtype)
        self.layers = nn.ModuleList(Layer(config, form.dtype, flavour) for _ in range(config.layers))
        self.norm = NORMS[flavour].residual(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, form.head_rows, form.dtype) if form.head_rows else None
        # GroupQueryAttention wants its tables in the dtype of the queries.
        table = form.dtype if flavour == "ort" else torch.float32
        self.rotary = RotaryTables(form.max_context, config.head_dim, table)

    def forward(self, ids: Tensor, positions: list[Tensor], past: list[Tensor]) -> list[Tensor]:
        """Run new tokens over a history.

        Args:
            ids: [B, S] INT32, or embeddings [B, S, d] FP32.
            positions: `logits_at` [B] INT32 unless logits are wanted everywhere; then, for the flavour `ort`, `lengths`
                [B] INT32 and `total` [1] INT32.
            past: Key and value of every layer, see `cache`.

        Returns:
            Logits [B, C] or [B, S, C] and the state [B, d] or [B, S, d], as far as the form has them, FP32; the probes,
            then what the history keeps.
        """
        history = self._history(ids.shape[1], positions, past)
        x, update = self.embed(ids), None  # [B, S, d]
        for number, layer in enumerate(self.layers):
            x, update = layer(x, update, number, history)
        hidden, x = self.norm(x, update)
        probes = [{"prenorm": x, "hidden": hidden}[name] for name in self.form.probes]
        if self.form.logits == "one":
            rows = positions[0].to(torch.int64).reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])  # [B, 1, d]
            hidden = torch.gather(hidden, 1, rows).squeeze(1)  # [B, d]
        results = [] if self.head is None else [self.head(hidden)]
        return [*results, *([hidden] if self.form.state else []), *probes, *history.kept]

    def _history(self, new: int, positions: list[Tensor], past: list[Tensor]) -> History:
        if self.flavour == "ort":
            lengths, total = positions[-2:]
            return OrtHistory(past, lengths, total, self.rotary.cos, self.rotary.sin)
        return PortableHistory(past, new, self.repeat, self.rotary)

"""Codec of causal transformers with a residual quantiser between them (MOSS-Audio-Tokenizer).

In: samples or codes of new frames and the keys and values of earlier ones. Out: codes or samples, and the new keys and
values. Whole signals are streams that begin with no past. The quantiser and everything that is not a matrix product of
a transformer run in FP32. Module and parameter names are those of `checkpoint.moss_codec`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from voxedge.export.checkpoint.moss_codec import CodecConfig, Module, Patch, Quantiser, Transformer
from voxedge.export.modules.attention import RotaryTables
from voxedge.export.modules.basic import Conv1d, Embedding, LayerNorm, LayerScale, Linear, gelu
from voxedge.export.modules.cache import SlidingHistory


class Attention(nn.Module):
    """Self-attention within a window; one product gives queries, keys and values."""

    def __init__(self, stack: Transformer, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.dtype = stack.heads, dtype
        self.qkv = Linear(stack.width, 3 * stack.width, dtype, keep=True)
        self.out = Linear(stack.width, stack.width, dtype)

    def forward(self, x: Tensor, layer: int, history: SlidingHistory) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.reshape(batch, length, self.heads, -1) for part in self.qkv(x).chunk(3, -1))  # [B, S, H, D]
        mixed: Tensor = self.out(history.attend(layer, q, k, v))
        return mixed


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each scaled, over an FP32 residual stream."""

    def __init__(self, stack: Transformer, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1 = LayerNorm(stack.width)
        self.attn = Attention(stack, dtype)
        self.layer_scale_1 = LayerScale(stack.width)
        self.norm2 = LayerNorm(stack.width)
        self.linear1 = Linear(stack.width, stack.inner, dtype, keep=True)
        self.linear2 = Linear(stack.inner, stack.width, dtype)
        self.layer_scale_2 = LayerScale(stack.width)

    def forward(self, x: Tensor, layer: int, history: SlidingHistory) -> Tensor:
        x = x + self.layer_scale_1(self.attn(self.norm1(x), layer, history))
        residual: Tensor = x + self.layer_scale_2(self.linear2(gelu(self.linear1(self.norm2(x)))))
        return residual


class LayerStack(nn.Module):
    """Layers at one frame rate, between projections where the widths differ."""

    def __init__(self, stack: Transformer, traced: int, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rate, self.window = stack.rate, stack.window
        self.input_proj = Linear(stack.inputs, stack.width, dtype) if stack.inputs != stack.width else nn.Identity()
        self.layers = nn.ModuleList(Layer(stack, dtype) for _ in range(traced))
        self.output_proj = Linear(stack.width, stack.outputs, dtype) if stack.outputs != stack.width else nn.Identity()
        self.rotary = RotaryTables(stack.rate * frames, stack.head_dim, torch.float32)

    def forward(self, x: Tensor, frames: int, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run positions [B, S, C] of new frames; gives [B, S, C'] and their keys and values."""
        history = SlidingHistory(past, frames, self.rate, self.window, self.rotary)
        x = self.input_proj(x)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, history)
        return self.output_proj(x), history.kept


class Merge(nn.Module):
    """Joins `size` positions into one: [B, L * size, C] to [B, L, C * size], the offset in time running fastest."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        groups = x.reshape(batch, length // self.size, self.size, channels).transpose(2, 3)  # [B, L, C, size]
        return groups.reshape(batch, length // self.size, channels * self.size)


class Split(nn.Module):
    """Undoes `Merge`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        groups = x.reshape(batch, length, channels // self.size, self.size).transpose(2, 3)  # [B, L, size, C / size]
        return groups.reshape(batch, length * self.size, channels // self.size)


class Chain(nn.Module):
    """The modules of one direction, in order; the state of all stacks is one list."""

    def __init__(
        self, modules: Sequence[Module], patch: type[nn.Module], traced: Sequence[int], frames: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        depths = iter(traced)
        self.stages = nn.ModuleList(
            patch(module.size) if isinstance(module, Patch) else LayerStack(module, next(depths), frames, dtype)
            for module in modules
        )

    def forward(self, x: Tensor, frames: int, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []
        for stage in self.stages:
            if isinstance(stage, LayerStack):
                count = 2 * len(stage.layers)
                x, rows = stage(x, frames, past[len(kept) : len(kept) + count])
                kept += rows
            else:
                x = stage(x)
        return x, kept


class CodeSum(nn.Module):
    """What codes stand for: the sum over codebooks of projected entries, as one matrix product.

    Each entry has a further channel of 1, whose row of the matrix is the projection's bias, and each codebook a further
    entry of zeros, which stands for no code: codebooks that are not used add nothing, not even a bias.
    """

    def __init__(self, quantiser: Quantiser) -> None:
        super().__init__()
        self.rows = quantiser.size + 1
        self.entries = Embedding(quantiser.codebooks * self.rows, quantiser.dim + 1, torch.float32)
        self.mix = Linear(quantiser.codebooks * (quantiser.dim + 1), quantiser.width, torch.float32)
        self.output_proj: nn.Module = nn.Identity()
        if quantiser.outputs != quantiser.width:
            self.output_proj = Linear(quantiser.width, quantiser.outputs, torch.float32, bias=True)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [Q, B, N] to latents [B, N, C]."""
        books, batch, frames = codes.shape
        offsets = torch.arange(books, dtype=torch.int32).reshape(-1, 1, 1) * self.rows
        found = self.entries(codes + offsets).permute(1, 2, 0, 3).reshape(batch, frames, -1)  # [B, N, Q * (dim + 1)]
        latents: Tensor = self.output_proj(self.mix(found))
        return latents


class Codebook(nn.Module):
    """One step of the residual quantiser."""

    def __init__(self, quantiser: Quantiser) -> None:
        super().__init__()
        self.in_proj = _point(quantiser.width, quantiser.dim)
        # Entries of unit length: the nearest direction is the largest product, whatever the length of the other side.
        self.nearest = Conv1d(quantiser.dim, quantiser.size, 1, torch.float32, bias=False)
        self.codebook = Embedding(quantiser.size, quantiser.dim, torch.float32)
        self.out_proj = _point(quantiser.dim, quantiser.width)

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Residual [B, C, N] to codes [B, N] and what they stand for, [B, C, N]."""
        codes = torch.argmax(self.nearest(self.in_proj(residual)), 1).to(torch.int32)
        return codes, self.out_proj(self.codebook(codes).transpose(1, 2))


class ResidualQuantiser(nn.Module):
    """All codebooks, one after the other, each on what the ones before it left.

    Written as convolutions of width 1: TensorRT-RTX 1.7 refuses FP32 matrix products on SM75, even in an FP16 graph.
    """

    def __init__(self, quantiser: Quantiser) -> None:
        super().__init__()
        self.input_proj = _point(quantiser.inputs, quantiser.width)
        self.quantizers = nn.ModuleList(Codebook(quantiser) for _ in range(quantiser.codebooks))

    def forward(self, latents: Tensor, lengths: Tensor) -> Tensor:
        """Latents [B, N, C] to codes [Q, B, N]; frames from `lengths` [B] on count as zero."""
        frames = torch.arange(latents.shape[1], dtype=torch.int32)
        whole = (frames.unsqueeze(0) < lengths.unsqueeze(1)).float().unsqueeze(1)  # [B, 1, N]
        residual = self.input_proj(latents.transpose(1, 2)) * whole  # [B, C, N]
        found: list[Tensor] = []
        for codebook in self.quantizers:
            codes, meant = codebook(residual)
            residual = residual - meant * whole
            found.append(codes)
        return torch.stack(found)


class CodecEncoder(nn.Module):
    """Samples to codes of all codebooks; fewer codebooks are the first rows."""

    def __init__(self, config: CodecConfig, traced: Sequence[int], frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.chain = Chain(config.encoder, Merge, traced, frames, dtype)
        self.quantizer = ResidualQuantiser(config.quantiser)

    def forward(self, audio: Tensor, lengths: Tensor, past: list[Tensor]) -> list[Tensor]:
        """Encode.

        Args:
            audio: [B, N, hop] samples of N frames.
            lengths: [B] INT32: frames of each row that are whole.
            past: Keys and values of every layer, [P, B, R, H, D].

        Returns:
            Codes [Q, B, N] INT32, then the new keys and values.
        """
        batch, frames, hop = audio.shape
        latents, kept = self.chain(audio.reshape(batch, frames * hop, 1), frames, past)
        return [self.quantizer(latents, lengths), *kept]


class CodecDecoder(nn.Module):
    """Codes to samples."""

    def __init__(self, config: CodecConfig, traced: Sequence[int], frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.quantizer = CodeSum(config.quantiser)
        self.chain = Chain(config.decoder, Split, traced, frames, dtype)

    def forward(self, codes: Tensor, past: list[Tensor]) -> list[Tensor]:
        """Decode.

        Args:
            codes: [Q, B, N] INT32; `codebook_size` stands for no code.
            past: Keys and values of every layer, [P, B, R, H, D].

        Returns:
            Samples [B, N, hop] FP32, then the new keys and values.
        """
        _, batch, frames = codes.shape
        audio, kept = self.chain(self.quantizer(codes), frames, past)
        return [audio.reshape(batch, frames, -1), *kept]


def _point(inputs: int, outputs: int) -> nn.Module:
    """A convolution of width 1, FP32; none where it would not change the width."""
    return Conv1d(inputs, outputs, 1, torch.float32) if inputs != outputs else nn.Identity()

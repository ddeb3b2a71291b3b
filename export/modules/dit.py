"""Diffusion transformer of Stable Audio (Evans et al. 2024).

In: noisy latents, time and conditioning. Out: the network's raw prediction F(x, t). Module and parameter names are the
ones of stable-audio-tools checkpoints. Preconditioning, guidance and solvers are the runtime's. Time features, norms,
rotary angles and softmax are FP32 islands.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from voxedge.export.checkpoint.dit import DitConfig
from voxedge.export.modules.attention import RotaryTables, apply_rotary, attend
from voxedge.export.modules.basic import IslandLinear, LayerNorm, Linear, Stored, parameter

QK_NORM_EPS = 1e-6


class FourierFeatures(nn.Module):
    """Cosine and sine of time at learned frequencies, in FP32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = parameter(features // 2, 1)

    def forward(self, time: Tensor) -> Tensor:
        angle = (2.0 * math.pi) * time.unsqueeze(1) * self.weight.reshape(1, -1)  # [B, features / 2]
        return torch.cat([torch.cos(angle), torch.sin(angle)], -1)


class Projection(nn.Module):
    """Linear, SiLU, linear; numbered as the checkpoint's sequence."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.add_module("0", first)
        self.add_module("2", second)

    @classmethod
    def of_tokens(cls, inputs: int, outputs: int, dtype: torch.dtype) -> Projection:
        """For conditioning tokens; no bias, so that zeros stay zeros."""
        return cls(Linear(inputs, outputs, dtype), Linear(outputs, outputs, dtype))

    @classmethod
    def of_time(cls, inputs: int, hidden: int, outputs: int) -> Projection:
        """For the noise level: an FP32 island."""
        return cls(IslandLinear(inputs, hidden), IslandLinear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.get_submodule("0")(x)
        projected: Tensor = self.get_submodule("2")(hidden * torch.sigmoid(hidden))
        return projected


class ScaledNorm(LayerNorm):
    """Layer norm whose checkpoint calls its weights gamma and beta."""

    stored: ClassVar = {"weight": Stored("gamma", "same"), "bias": Stored("beta", "same")}


class SelfAttention(nn.Module):
    """Attention of all positions to all, with rotary embedding on the first channels of each head."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.qk_norm, self.dtype = config.num_heads, config.qk_norm, dtype
        self.to_qkv = Linear(config.embed_dim, 3 * config.embed_dim, dtype, keep=True)
        self.to_out = Linear(config.embed_dim, config.embed_dim, dtype)
        if config.qk_norm == "ln":
            self.q_norm = LayerNorm(config.embed_dim // config.num_heads, QK_NORM_EPS)
            self.k_norm = LayerNorm(config.embed_dim // config.num_heads, QK_NORM_EPS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.reshape(batch, length, self.heads, -1) for part in self.to_qkv(x).chunk(3, -1))  # [B, S, H, D]
        if self.qk_norm == "ln":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.qk_norm == "l2":
            q, k = (nn.functional.normalize(part.float(), dim=-1) for part in (q, k))
        q, k = (apply_rotary(part, cos, sin).to(self.dtype) for part in (q, k))
        mixed: Tensor = self.to_out(attend(q, k.transpose(1, 2), v.transpose(1, 2)))
        return mixed


class CrossAttention(nn.Module):
    """Attention to context tokens; fewer key heads than query heads are allowed."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.groups = config.num_heads, config.cross_kv_heads
        self.to_q = Linear(config.embed_dim, config.embed_dim, dtype, keep=True)
        self.to_kv = Linear(config.cond_embed_dim, 2 * config.cond_embed_dim, dtype, keep=True)
        self.to_out = Linear(config.embed_dim, config.embed_dim, dtype)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.to_q(x).reshape(batch, length, self.heads, -1)  # [B, S, H, D]
        keys = context.shape[1]
        k, v = (part.reshape(batch, keys, self.groups, -1) for part in self.to_kv(context).chunk(2, -1))  # [B, L, G, D]
        mixed: Tensor = self.to_out(attend(q, k.transpose(1, 2), v.transpose(1, 2)))
        return mixed


class FeedForward(nn.Module):
    """Gated feed-forward: value times SiLU of gate."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        inner = int(config.embed_dim * config.ff_mult)
        gate = nn.Module()
        gate.add_module("proj", Linear(config.embed_dim, 2 * inner, dtype, bias=True, keep=True))
        self.ff = nn.Module()
        self.ff.add_module("0", gate)
        self.ff.add_module("2", Linear(inner, config.embed_dim, dtype, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.get_submodule("ff.0.proj")(x).float().chunk(2, -1)
        y: Tensor = self.get_submodule("ff.2")(value * (gate * torch.sigmoid(gate)))
        return y


class Block(nn.Module):
    """One transformer block over an FP32 residual stream."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.pre_norm = ScaledNorm(config.embed_dim)
        self.self_attn = SelfAttention(config, dtype)
        self.cross_attend_norm = ScaledNorm(config.embed_dim) if config.cross_attention else None
        self.cross_attn = CrossAttention(config, dtype) if config.cross_attention else None
        self.ff_norm = ScaledNorm(config.embed_dim)
        self.ff = FeedForward(config, dtype)
        self.to_scale_shift_gate = parameter(6 * config.embed_dim) if _adaptive(config) else None

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], context: Tensor | None, modulation: Tensor | None
    ) -> Tensor:
        if modulation is None or self.to_scale_shift_gate is None:
            x = x + self.self_attn(self.pre_norm(x), *rotary)
            x = self._cross(x, context)
            return x + self.ff(self.ff_norm(x))  # type: ignore[no-any-return]
        parts = (self.to_scale_shift_gate + modulation).unsqueeze(1).chunk(6, -1)  # 6 x [B, 1, width]
        scale, shift, gate, ff_scale, ff_shift, ff_gate = parts
        x = x + torch.sigmoid(1 - gate) * self.self_attn(self.pre_norm(x) * (1 + scale) + shift, *rotary)
        x = self._cross(x, context)
        return x + torch.sigmoid(1 - ff_gate) * self.ff(self.ff_norm(x) * (1 + ff_scale) + ff_shift)  # type: ignore[no-any-return]

    def _cross(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.cross_attn is None or self.cross_attend_norm is None:
            return x
        return x + self.cross_attn(self.cross_attend_norm(x), context)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The blocks with their projections, memory tokens and rotary tables."""

    def __init__(self, config: DitConfig, positions: int, dtype: torch.dtype) -> None:
        super().__init__()
        width = config.embed_dim
        self.memory_tokens = parameter(config.num_memory_tokens, width) if config.num_memory_tokens else None
        self.project_in = Linear(config.io_channels + config.input_concat_dim, width, dtype)
        self.project_out = Linear(width, config.io_channels, dtype)
        self.layers = nn.ModuleList(Block(config, dtype) for _ in range(config.depth))
        if _adaptive(config):
            self.global_cond_embedder = Projection.of_time(width, width, 6 * width)
        self.rotary = RotaryTables(positions, config.rotary_dim, torch.float32)

    def forward(self, x: Tensor, before: list[Tensor], context: Tensor | None, modulation: Tensor | None) -> Tensor:
        """Run the blocks over latents [B, T, C] with tokens [B, n, width] before them; gives [B, T, io_channels]."""
        latents = x.shape[1]
        x = self.project_in(x)
        if self.memory_tokens is not None:
            before = [self.memory_tokens.unsqueeze(0).expand(x.shape[0], -1, -1), *before]
        x = torch.cat([*before, x], 1)  # [B, S, width]
        rotary = self.rotary(torch.arange(x.shape[1]))
        for layer in self.layers:
            x = layer(x, rotary, context, modulation)
        extra = sum(tokens.shape[1] for tokens in before)
        y: Tensor = self.project_out(x[:, extra : extra + latents])
        return y


class DiffusionTransformer(nn.Module):
    """The whole network F(x, t) for sequences of at most `positions` latents and tokens before them."""

    def __init__(self, config: DitConfig, positions: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        width, features = config.embed_dim, config.timestep_features_dim
        channels, context = config.io_channels + config.input_concat_dim, config.cond_embed_dim
        self.timestep_features = FourierFeatures(features)
        self.to_timestep_embed = Projection.of_time(features, width, width)
        if config.cond_token_dim:
            self.to_cond_embed = Projection.of_tokens(config.cond_token_dim, context, dtype)
        if config.global_cond_dim:
            inner = width if config.project_global_cond else config.global_cond_dim
            self.to_global_embed = Projection.of_tokens(config.global_cond_dim, inner, dtype)
        if config.prepend_cond_dim:
            self.to_prepend_embed = Projection.of_tokens(config.prepend_cond_dim, width, dtype)
        self.preprocess_conv = Linear(channels, channels, dtype)
        self.postprocess_conv = Linear(config.io_channels, config.io_channels, dtype)
        self.transformer = Transformer(config, positions, dtype)

    def forward(self, latents: Tensor, time: Tensor, conditioning: list[Tensor]) -> Tensor:
        """Predict from noisy latents.

        Args:
            latents: [B, io_channels, T] FP32, already scaled by c_in.
            time: [B] FP32, the number that the Fourier features take.
            conditioning: Those of concat [B, C, T] (at the rate of the latents), context [B, L, C], global [B, C] and
                prepend [B, L, C] that the configuration has, in this order, FP32.

        Returns:
            [B, io_channels, T] FP32.
        """
        config, given = self.config, iter(conditioning)
        if config.input_concat_dim:
            latents = torch.cat([latents, next(given)], 1)
        context = self.to_cond_embed(next(given)) if config.cond_token_dim else None
        condition = self.to_timestep_embed(self.timestep_features(time))  # [B, width]
        if config.global_cond_dim:
            condition = condition + self.to_global_embed(next(given))
        before = [self.to_prepend_embed(next(given))] if config.prepend_cond_dim else []
        modulation = self.transformer.global_cond_embedder(condition) if _adaptive(config) else None
        if not _adaptive(config):
            before.append(condition.unsqueeze(1))
        x = latents.transpose(1, 2)  # [B, T, C]
        x = self.preprocess_conv(x) + x
        y: Tensor = self.transformer(x, before, context, modulation)
        y = self.postprocess_conv(y) + y
        return y.transpose(1, 2)  # [B, io_channels, T]


def _adaptive(config: DitConfig) -> bool:
    """Time and global conditioning modulate every block; otherwise they are one token before the latents."""
    return config.global_cond_type == "adaLN"

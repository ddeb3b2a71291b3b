"""Causal decoder of the Qwen3 family: token ids or their embeddings and a history in, logits and new history out.

One module for every system's backbone and for both flavours of its graph. It does not know experts, modalities or
sampling: a routed mixture is two of these over one cache. Architecture: Qwen3 (RMSNorm, grouped-query attention with
per-head query and key norms before the rotary embedding, SwiGLU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from voxedge.engines.manifest import Flavour
from voxedge.export.checkpoint.qwen3 import QwenConfig
from voxedge.export.modules.attention import RotaryTables
from voxedge.export.modules.basic import Embedding, Linear, RMSNorm
from voxedge.export.modules.cache import History, OrtHistory, PortableHistory


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


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    def __init__(self, config: QwenConfig, dtype: torch.dtype, norm: type[RMSNorm]) -> None:
        super().__init__()
        width, heads, groups, dim = config.hidden_size, config.heads, config.kv_heads, config.head_dim
        self.dim, self.dtype = dim, dtype
        self.q_proj = Linear(width, heads * dim, dtype, keep=True)
        self.k_proj = Linear(width, groups * dim, dtype, keep=True)
        self.v_proj = Linear(width, groups * dim, dtype, keep=True)
        self.o_proj = Linear(heads * dim, width, dtype)
        self.q_norm = norm(dim, config.rms_norm_eps)
        self.k_norm = norm(dim, config.rms_norm_eps)

    def forward(self, x: Tensor, layer: int, history: History) -> Tensor:
        batch, new, _ = x.shape
        x = x.to(self.dtype)
        q = self.q_norm(self.q_proj(x).reshape(batch, new, -1, self.dim))  # [B, S, H, D] FP32
        k = self.k_norm(self.k_proj(x).reshape(batch, new, -1, self.dim))  # [B, S, G, D] FP32
        v = self.v_proj(x).reshape(batch, new, -1, self.dim)  # [B, S, G, D]
        mixed: Tensor = self.o_proj(history.attend(layer, q, k, v))
        return mixed


class GatedMlp(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, inputs: int, inner: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = Linear(inputs, inner, dtype, keep=True)
        self.up_proj = Linear(inputs, inner, dtype, keep=True)
        self.down_proj = Linear(inner, outputs, dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.gate_proj.weight.dtype)
        gate = self.gate_proj(x).float()
        down: Tensor = self.down_proj((gate * torch.sigmoid(gate)).to(x.dtype) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """Pre-norm attention and feed-forward over an FP32 residual stream."""

    def __init__(self, config: QwenConfig, dtype: torch.dtype, norm: type[RMSNorm]) -> None:
        super().__init__()
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, dtype, norm)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, config.hidden_size, dtype)

    def forward(self, x: Tensor, layer: int, history: History) -> Tensor:
        x = x + self.attn(self.input_layernorm(x), layer, history)
        residual: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return residual


class DecoderLm(nn.Module):
    """The whole decoder."""

    def __init__(self, config: QwenConfig, form: DecoderForm, flavour: Flavour) -> None:
        super().__init__()
        norm = FusedRMSNorm if flavour == "ort" else RMSNorm
        self.form, self.flavour = form, flavour
        self.repeat = config.heads // config.kv_heads
        self.embed = nn.Identity() if form.embeds else Embedding(config.vocab_size, config.hidden_size, form.dtype)
        self.layers = nn.ModuleList(Layer(config, form.dtype, norm) for _ in range(config.layers))
        self.norm = norm(config.hidden_size, config.rms_norm_eps)
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
        x = self.embed(ids)  # [B, S, d]
        for number, layer in enumerate(self.layers):
            x = layer(x, number, history)
        hidden = self.norm(x)
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

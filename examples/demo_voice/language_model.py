"""The two experts: a text expert that is trained on prompts, a speech expert that starts from it.

In: ids of prompts and of speech. Out: losses of the text expert alone, or of the speech expert on top of the frozen
one. Layers are those that are exported; only the attention is put together here, over a batch of prompts that end, and
speech that begins, at one column. The speech table is a sum of digit vectors and a free row while it is learned
(factorised); `speech_rows` gives the ordinary matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from examples.demo_voice.speech_tokenizer import CODES, DIGITS, LEVELS, digits_table
from voxedge.export.checkpoint.qwen3 import QwenConfig
from voxedge.export.modules.attention import apply_rotary, rotary_tables
from voxedge.export.modules.basic import Linear, RMSNorm
from voxedge.export.modules.decoder_lm import Attention, Layer

MAX_POSITIONS = 1024
IGNORED = -100
THETA = 10_000.0
_EMBEDDING_STD = 0.05


def config_of(vocabulary: int) -> QwenConfig:
    """Sizes of one expert; both are alike but for the vocabulary."""
    return QwenConfig(
        hidden_size=256,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=64,
        intermediate_size=768,
        rms_norm_eps=1e-6,
        rope_theta=THETA,
        vocab_size=vocabulary,
        max_positions=MAX_POSITIONS,
        tied=True,
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts against the right edge, speech from there on."""

    text: Tensor
    """[B, P] ids; what stands before a prompt does not count."""
    text_lengths: Tensor
    """[B]."""
    speech: Tensor
    """[B, S] ids of speech tokens that are read."""
    targets: Tensor
    """[B, S + 1]: the first is predicted at the prompt's last position; `CODES` ends; `IGNORED` counts nothing."""


class Expert(nn.Module):
    """Layers and final norm of one modality."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, torch.float32, RMSNorm) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.weight.shape[0]))
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        for layer in self.blocks():  # a residual stream that starts near its embedding learns faster
            for last in (layer.attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(last.weight, std=1.0 / math.sqrt(2.0 * config.layers * last.weight.shape[0]))
        self.requires_grad_(True)

    def blocks(self) -> list[Layer]:
        """The layers with their type."""
        return [cast(Layer, layer) for layer in self.layers]

    def damp(self, factor: float) -> None:
        """Scale what every layer adds to the residual stream."""
        for layer in self.blocks():
            for last in (layer.attn.o_proj, layer.mlp.down_proj):
                last.weight.data.mul_(factor)


class TextExpert(nn.Module):
    """A language model of prompts."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = config_of(vocabulary)
        self.embed = nn.Parameter(torch.randn(vocabulary, self.config.hidden_size) * _EMBEDDING_STD)
        self.expert = Expert(self.config)

    def losses(self, ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of every next id of [B, P]; ids below 0 fill up the right edge."""
        read = ids[:, :-1].clamp(min=0)
        x = self.embed[read]
        mask = torch.ones(read.shape[1], read.shape[1], dtype=torch.bool).triu(1)[None, None]
        for layer in self.expert.blocks():
            q, k, v = _qkv(layer, x, 0)
            x = _finish(layer, x, _attend(q, k, v, mask))
        logits = self.expert.norm(x) @ self.embed.T
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=-1)
        return loss, {"text": loss.item()}


class SpeechExpert(nn.Module):
    """The speech expert over a text expert that does not learn."""

    def __init__(self, text: TextExpert, frozen: bool = True) -> None:
        super().__init__()
        self.text, self.frozen = text.requires_grad_(not frozen), frozen
        width = text.config.hidden_size
        self.expert = Expert(text.config)
        self.expert.load_state_dict(text.expert.state_dict())
        self.digits = nn.Parameter(torch.randn(DIGITS * LEVELS, width) * _EMBEDDING_STD / math.sqrt(DIGITS))
        self.free = nn.Parameter(torch.randn(CODES, width) * 0.01)
        self.end = nn.Parameter(torch.randn(1, width) * _EMBEDDING_STD)
        self.register_buffer("table", digits_table(), persistent=False)

    def speech_rows(self) -> Tensor:
        """Embedding and head, [CODES + 1, width]; the last row ends the utterance."""
        return torch.cat([self.table @ self.digits + self.free, self.end])  # type: ignore[operator]

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of speech tokens and the end."""
        rows = self.speech_rows()
        logits = self.hidden(batch, rows) @ rows.T  # [B, S + 1, CODES + 1]
        flat, targets = logits.flatten(0, 1).float(), batch.targets.flatten()
        loss = nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED)
        return loss, {"speech": loss.item()}

    def hidden(self, batch: Batch, rows: Tensor) -> Tensor:
        """Normed residual stream where speech is predicted, [B, S + 1, width]."""
        prompt, spoken = batch.text.shape[1], batch.speech.shape[1]
        mask = _hidden(batch.text_lengths, prompt, spoken)
        x, y = self.text.embed[batch.text], rows[batch.speech]
        learns = torch.is_grad_enabled() and not self.frozen
        for theirs, ours in zip(self.text.expert.blocks(), self.expert.blocks(), strict=True):
            with torch.set_grad_enabled(learns):
                text = _qkv(theirs, x, 0)
                x = _finish(theirs, x, _attend(*text, mask[..., :prompt, :prompt]))
            speech = _qkv(ours, y, prompt)
            keys, values = (torch.cat([text[part], speech[part]], 1) for part in (1, 2))
            y = _finish(ours, y, _attend(speech[0], keys, values, mask[..., prompt:, :]))
        return torch.cat([self.text.expert.norm(x[:, -1:]), self.expert.norm(y)], 1)


def _hidden(lengths: Tensor, prompt: int, spoken: int) -> Tensor:
    """Which keys no query may look at, [B, 1, P + S, P + S]."""
    columns = torch.arange(prompt + spoken)
    later = columns[:, None] < columns[None]
    filling = columns[None, None] < (prompt - lengths)[:, None, None]  # [B, 1, P + S]
    return (later[None] | filling)[:, None]


def _qkv(layer: Layer, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated queries and keys, and values, [B, S, H or G, D].

    Columns serve as positions: rotary attention knows distances alone, so the filling before a prompt shifts nothing.
    """
    attn: Attention = layer.attn
    x = layer.input_layernorm(x)
    q, k, v = (project(x).unflatten(-1, (-1, attn.dim)) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
    cos, sin = (torch.from_numpy(table[first : first + x.shape[1]]) for table in _rotary(attn.dim))
    return apply_rotary(attn.q_norm(q), cos, sin), apply_rotary(attn.k_norm(k), cos, sin), v


@lru_cache
def _rotary(dim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return rotary_tables(dim, MAX_POSITIONS, THETA)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """[B, S, H * D]; `hidden` [B, 1, S, T] is true where a query may not look."""
    batch, queries, heads, dim = q.shape
    groups, length = k.shape[2], k.shape[1]
    rows = q.reshape(batch, queries, groups, -1, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, G, H / G * S, D]
    keys, values = (part.transpose(1, 2).to(torch.bfloat16) for part in (k, v))  # [B, G, T, D]
    scores = torch.matmul((rows * dim**-0.5).to(torch.bfloat16), keys.transpose(2, 3))
    scores = scores.reshape(batch, groups, -1, queries, length).masked_fill(hidden[:, None], -1e4)
    shares = scores.softmax(-1, torch.float32).to(torch.bfloat16).flatten(2, 3)  # [B, G, H / G * S, T]
    mixed = torch.matmul(shares, values).reshape(batch, groups, -1, queries, dim)  # [B, G, H / G, S, D]
    return mixed.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads * dim)


def _finish(layer: Layer, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a layer behind its attention."""
    x = x + layer.attn.o_proj(mixed)
    return x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[no-any-return]

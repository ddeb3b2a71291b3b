"""The two experts: a text expert that is trained on prompts, a speech expert that starts from it.

In: ids of prompts and of speech. Out: losses of the text expert alone, or of both. Layers are those that are exported;
only the attention is put together here, over a batch of prompts that end, and speech that begins, at one column. The
speech table is a sum of digit vectors and a free row while it is learned (factorised); `speech_rows` gives the ordinary
matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

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
_DROPOUT = 0.1  # of what a layer adds
_NEVER = -1e4


def config_of(vocabulary: int) -> QwenConfig:
    """Sizes of one expert; both are alike but for the vocabulary."""
    return QwenConfig(
        hidden_size=320,
        layers=6,
        heads=6,
        kv_heads=2,
        head_dim=64,
        intermediate_size=896,
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
        self.layers = nn.ModuleList(Layer(config, torch.float32) for _ in range(config.layers))
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


class TextExpert(nn.Module):
    """A language model of prompts."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = config_of(vocabulary)
        self.embed = nn.Parameter(torch.randn(vocabulary, self.config.hidden_size) * _EMBEDDING_STD)
        self.expert = Expert(self.config)
        self.rotary = Rotary(self.config.head_dim)

    def losses(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of every next id of [B, P]; ids below 0 fill up the right edge."""
        read = ids[:, :-1].clamp(min=0)
        x, rotary = self.embed[read], self.rotary(read.shape[1])
        for layer in self.expert.blocks():
            q, k, v = _qkv(layer, x, *rotary)
            x = _finish(layer, x, _attend(q, k, v, None))
        loss = _cross_entropy(self.expert.norm(x), self.embed, ids[:, 1:].where(ids[:, 1:] >= 0, IGNORED))
        return loss, {"text": loss}


class SpeechExpert(nn.Module):
    """Both experts over prompts and speech."""

    def __init__(self, text: TextExpert) -> None:
        super().__init__()
        self.text = text
        width = text.config.hidden_size
        self.expert = Expert(text.config)
        self.expert.load_state_dict(text.expert.state_dict())
        self.digits = nn.Parameter(torch.randn(DIGITS * LEVELS, width) * _EMBEDDING_STD / math.sqrt(DIGITS))
        self.free = nn.Parameter(torch.randn(CODES, width) * 0.01)
        self.end = nn.Parameter(torch.randn(1, width) * _EMBEDDING_STD)
        self.register_buffer("table", digits_table(), persistent=False)
        layers = zip(text.expert.blocks(), self.expert.blocks(), strict=True)
        self._pairs: tuple[Callable[..., tuple[Tensor, Tensor]], ...] = tuple(_Pair(*pair) for pair in layers)
        self._compiled = (self._pairs, _cross_entropy)

    def compile_layers(self) -> None:
        """Compile what is learned with, one layer and the loss; judging stays as it is."""
        self._compiled = (
            tuple(torch.compile(pair, dynamic=False) for pair in self._pairs),
            torch.compile(_cross_entropy, dynamic=False),
        )

    def speech_rows(self) -> Tensor:
        """Embedding and head, [CODES + 1, width]; the last row ends the utterance."""
        return torch.cat([self.table @ self.digits + self.free, self.end])  # type: ignore[operator]

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of speech tokens and the end."""
        pairs, cross_entropy = self._compiled if self.training else (self._pairs, _cross_entropy)
        rows = self.speech_rows()
        loss = cross_entropy(self._hidden(batch, rows, pairs), rows, batch.targets)
        return loss, {"speech": loss}

    def _hidden(self, batch: Batch, rows: Tensor, pairs: Sequence[Callable[..., tuple[Tensor, Tensor]]]) -> Tensor:
        """Normed residual stream where speech is predicted, [B, S + 1, width]."""
        prompt, spoken = batch.text.shape[1], batch.speech.shape[1]
        mask = _mask(batch.text_lengths, prompt, spoken)
        x, y = self.text.embed[batch.text], rows[batch.speech]
        cos, sin = self.text.rotary(prompt + spoken)
        for pair in pairs:
            x, y = pair(x, y, cos, sin, mask)
        return torch.cat([self.text.expert.norm(x[:, -1:]), self.expert.norm(y)], 1)


class _Pair(nn.Module):
    """A layer of both experts, each over its own tokens, with one attention over all."""

    def __init__(self, theirs: Layer, ours: Layer) -> None:
        super().__init__()
        self.theirs, self.ours = theirs, ours

    def forward(self, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        prompt = x.shape[1]
        text = _qkv(self.theirs, x, cos[:prompt], sin[:prompt])
        speech = _qkv(self.ours, y, cos[prompt:], sin[prompt:])
        q, k, v = (torch.cat(parts, 1) for parts in zip(text, speech, strict=True))  # [B, P + S, H or G, D]
        mixed = _attend(q, k, v, mask)
        return _finish(self.theirs, x, mixed[:, :prompt]), _finish(self.ours, y, mixed[:, prompt:])


class Rotary(nn.Module):
    """Tables of cosines and sines on the module's device."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, table in zip(("cos", "sin"), rotary_tables(dim, MAX_POSITIONS, THETA), strict=True):
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Of the first positions.

        Columns serve as positions: rotary attention knows distances alone, so the filling before a prompt shifts
        nothing.
        """
        return self.cos[:length], self.sin[:length]


def _mask(lengths: Tensor, prompt: int, spoken: int) -> Tensor:
    """What is added to scores, [B, 1, P + S, P + S]: nothing where a query may look, much below 0 elsewhere.

    A column of the filling looks at itself, since a softmax over nothing is not a number.
    """
    columns = torch.arange(prompt + spoken, device=lengths.device)
    earlier = columns[:, None] >= columns[None]
    real = columns[None, None] >= (prompt - lengths)[:, None, None]  # [B, 1, P + S]
    seen = (earlier[None] & real) | (columns[:, None] == columns[None])
    return torch.where(seen, 0.0, _NEVER).to(torch.bfloat16)[:, None]


def _qkv(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated queries and keys, and values, [B, S, H or G, D]."""
    attn: Attention = layer.attn
    q, k, v = attn.project(layer.input_layernorm(x, None)[0])
    return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, S, H * D]; without a mask every position looks at those before it."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (part.transpose(1, 2).to(torch.bfloat16) for part in (q, k, v))  # [B, H or G, S, D]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    return mixed.transpose(1, 2).flatten(2)


def _finish(layer: Layer, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a layer behind its attention."""
    normed, x = layer.post_attention_layernorm(x, _dropped(layer, layer.attn.o_proj(mixed)))
    return x + _dropped(layer, layer.mlp(normed))


def _dropped(layer: Layer, x: Tensor) -> Tensor:
    return nn.functional.dropout(x, _DROPOUT, layer.training)


def _cross_entropy(hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Of [B, S, width] against a table's rows; targets [B, S]."""
    logits = (hidden @ rows.T).flatten(0, 1).float()  # [B * S, rows]
    return nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)

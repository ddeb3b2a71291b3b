"""Local transformers of MOSS-TTS: from the backbone's state to all codes of one frame, unrolled over the channels.

In: the state of one row, uniform numbers, penalties and the rules of drawing. Out: the codes of the frame, the
embedding of the next row, and what decides whether to go on. One call makes a frame: nothing returns to the host
between channels. v1 is the backbone's own layer without positions; v1.5 is GPT-2's block. Knows no prompts and no stop
rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig
from voxedge.export.modules.attention import RotaryTables, apply_rotary, attend, causal_mask
from voxedge.export.modules.basic import Embedding, LayerNorm, Linear, RMSNorm, gelu, parameter
from voxedge.export.modules.decoder_lm import GatedMlp, Layer, ResidualNorm
from voxedge.export.modules.draw import DrawRules, draw

CHANNEL_NORM_EPS = 1e-6
"""Of v1's norms before its heads, whatever the configuration says."""


class UnrolledHistory:
    """Keys and values [B, G, T, D] of positions that one graph makes one after the other; see `cache.History`."""

    def __init__(self, rotary: RotaryTables | None = None) -> None:
        self.kept: list[Tensor] = []
        self._rotary = rotary
        self._past: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of new queries [B, S, H, D] over the positions so far and the new ones."""
        new, groups = q.shape[1], k.shape[2]
        past = self._past[layer][0].shape[2] if layer in self._past else 0
        positions, mask = causal_mask(past, new, q.shape[2] // groups)
        if self._rotary is not None:
            cos, sin = self._rotary(positions)
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        keys, values = k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)  # [B, G, S, D]
        if past:
            keys = torch.cat([self._past[layer][0], keys], 2)
            values = torch.cat([self._past[layer][1], values], 2)
        self._past[layer] = keys, values
        return attend(q.to(v.dtype), keys, values, mask if new > 1 else None)


class GptAttention(nn.Module):
    """Multi-head attention with biases; queries, keys and values of one matrix."""

    def __init__(self, config: GptConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = Linear(config.width, 3 * config.width, dtype, bias=True, keep=True)
        self.c_proj = Linear(config.width, config.width, dtype, bias=True)

    def forward(self, x: Tensor, layer: int, history: UnrolledHistory) -> Tensor:
        batch, new, _ = x.shape
        q, k, v = (part.reshape(batch, new, self.heads, -1) for part in self.c_attn(x).chunk(3, -1))  # [B, S, H, D]
        mixed: Tensor = self.c_proj(history.attend(layer, q.float(), k.float(), v))
        return mixed


class GptMlp(nn.Module):
    """Feed-forward with biases."""

    def __init__(self, config: GptConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc_in = Linear(config.width, config.inner, dtype, bias=True)
        self.fc_out = Linear(config.inner, config.width, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc_out(_activate(self.fc_in(x), self.activation))
        return y


class GptLayer(nn.Module):
    """Pre-norm attention and feed-forward over an FP32 residual stream."""

    def __init__(self, config: GptConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.width, config.eps)
        self.attn = GptAttention(config, dtype)
        self.ln_2 = LayerNorm(config.width, config.eps)
        self.mlp = GptMlp(config, dtype)

    def forward(self, x: Tensor, layer: int, history: UnrolledHistory) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, history)
        residual: Tensor = x + self.mlp(self.ln_2(x))
        return residual


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the channels so far have made; all that one channel hands to the next besides keys and values."""

    rows: Tensor
    """[B, d] FP32, what the next position reads; or several, [B, S, d]."""
    total: Tensor
    """[B, d] FP32, sum of the embeddings."""
    codes: Tensor | None = None
    """[B, channels so far] INT32."""
    logits: Tensor | None = None
    """[B, channels so far, A] FP32."""


Position = Callable[[int, Tensor], Tensor]
"""Runs a channel's rows [B, S, d] as the next positions; gives [B, width] of the last one."""


class Channel(nn.Module):
    """One codebook: what leads from the local transformer to its head, the head, and its draw.

    Every channel is a module of its own, like a layer of a deep model, so that an exporter may trace a few and add the
    others to the graph (`frame_streams` says what it hands on).
    """

    def __init__(
        self, number: int, codebooks: tuple[int, ...], width: int, dtype: torch.dtype, leave: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.number, self.size, self.widest = number, codebooks[number], max(codebooks)
        self.first = sum(codebooks[:number]) + number  # each table ends with the row of its pad code
        self.leave = leave
        self.head = Linear(width, self.size, dtype)

    def forward(
        self, position: Position, table: Embedding, drawn: Drawn, noise: list[Tensor], rules: DrawRules
    ) -> tuple[Drawn, Tensor]:
        """Run one position and draw from it; also gives what came out of the position, [B, d]."""
        y = position(self.number, drawn.rows if drawn.rows.dim() == 3 else drawn.rows.unsqueeze(1))
        logits = self.head(y if self.leave is None else self.leave(y))  # [B, A]
        uniforms, penalties = noise
        at = slice(self.number, self.number + 1)
        code = draw(logits, penalties[:, self.number, : self.size], uniforms[:, at], rules)
        row = table(code + self.first)
        if self.widest > self.size:
            logits = nn.functional.pad(logits, (0, self.widest - self.size), value=torch.finfo(torch.float32).min)
        codes, scores = code.unsqueeze(1), logits.unsqueeze(1)  # [B, 1], [B, 1, A]
        if drawn.codes is not None and drawn.logits is not None:
            codes, scores = torch.cat([drawn.codes, codes], 1), torch.cat([drawn.logits, scores], 1)
        return Drawn(row, drawn.total + row, codes, scores), y


def frame_streams(layers: int) -> int:
    """How many values one channel hands to the next: keys and values of each layer, and what `Drawn` holds."""
    return 2 * layers + 4


def code_table(codebooks: tuple[int, ...], width: int, dtype: torch.dtype) -> Embedding:
    """Embeddings of all codebooks, one behind the other, and one row for what is no code."""
    return Embedding(sum(codebooks) + len(codebooks) + 1, width, dtype)


class GptFrame(nn.Module):
    """All codes of a frame by the local transformer of v1.5."""

    def __init__(
        self, config: GptConfig, codebooks: tuple[int, ...], dtype: torch.dtype, channels: int | None = None
    ) -> None:
        """Build it, with the first `channels` alone where given."""
        super().__init__()
        width = config.width
        self.h = nn.ModuleList(GptLayer(config, dtype) for _ in range(config.layers))
        self.ln_f = LayerNorm(width, config.eps)
        self.wpe = parameter(len(codebooks) + 1, width, dtype=dtype) if config.rope_base is None else None
        dim = width // config.heads
        self.rotary = RotaryTables(len(codebooks) + 1, dim, torch.float32) if config.rope_base is not None else None
        self.gate = Linear(width, 2, dtype)
        self.table = code_table(codebooks, width, dtype)
        self.channels = nn.ModuleList(
            Channel(number, codebooks, width, dtype) for number in range(channels or len(codebooks))
        )
        self.slot = parameter(1, width, dtype=dtype)

    def forward(self, state: Tensor, noise: list[Tensor], rules: list[Tensor]) -> list[Tensor]:
        """Make one frame.

        Args:
            state: [B, d] FP32, the backbone's.
            noise: Uniform numbers [B, n] and penalties [B, n, A], FP32.
            rules: Temperature, top-p and top-k, see `DrawRules`.

        Returns:
            Codes [B, n] INT32, the next row's embedding [B, 1, d], the gate [B, 2], and what the codes were drawn from,
            the logits [B, n, A]; a codebook that is shorter than A ends in the lowest number there is.
        """
        history = UnrolledHistory(self.rotary)
        drawn, gate = Drawn(state, self.slot.float()), None
        for channel in self.channels:
            drawn, y = channel(partial(self.position, history), self.table, drawn, noise, DrawRules(*rules))
            gate = self.gate(y) if gate is None else gate
        return [drawn.codes, drawn.total.unsqueeze(1), gate, drawn.logits]  # type: ignore[list-item]

    def position(self, history: UnrolledHistory, channel: int, x: Tensor) -> Tensor:
        """Run one position [B, 1, d]."""
        if self.wpe is not None:
            x = x + self.wpe[channel].float()
        for number, layer in enumerate(self.h):
            x = layer(x, number, history)
        y: Tensor = self.ln_f(x).squeeze(1)
        return y


class Depth(nn.Module):
    """What both graphs of v1's local transformer share."""

    def __init__(self, config: DepthConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        language, inner = config.language, config.projection
        self.layers = nn.ModuleList(Layer(language, dtype) for _ in range(language.layers))
        self.norm = ResidualNorm(language.hidden_size, language.rms_norm_eps)
        self.enter = GatedMlp(width, inner, language.hidden_size, dtype)

    def forward(self, x: Tensor, history: UnrolledHistory) -> Tensor:
        """Run rows [B, S, d] as the next positions; gives [B, width of the layers] of the last one."""
        x, update = self.enter(x), None
        for number, layer in enumerate(self.layers):
            x, update = layer(x, update, number, history)
        hidden, _ = self.norm(x, update)
        last: Tensor = hidden[:, -1]
        return last


class Exit(nn.Module):
    """From the local transformer back to the width of the heads, for one channel of v1."""

    def __init__(self, config: DepthConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.mlp = GatedMlp(config.language.hidden_size, config.projection, width, dtype)
        self.norm = RMSNorm(width, CHANNEL_NORM_EPS)

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.norm(self.mlp(y))
        return z


class DepthText(nn.Module):
    """The text channel of v1: one position of the local transformer and the whole text head."""

    def __init__(self, config: DepthConfig, width: int, vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.depth = Depth(config, width, dtype)
        self.exit = Exit(config, width, dtype)
        self.head = Linear(width, vocabulary, dtype)

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, V] FP32 from the backbone's state [B, d]."""
        y = self.depth(state.unsqueeze(1), UnrolledHistory())
        logits: Tensor = self.head(self.exit(y))
        return logits


class DepthFrame(nn.Module):
    """All codes of a frame by the local transformer of v1, behind the text token."""

    def __init__(
        self,
        config: DepthConfig,
        width: int,
        codebooks: tuple[int, ...],
        dtype: torch.dtype,
        channels: int | None = None,
    ) -> None:
        """Build it, with the first `channels` alone where given."""
        super().__init__()
        self.depth = Depth(config, width, dtype)
        self.table = code_table(codebooks, width, dtype)
        self.channels = nn.ModuleList(
            Channel(number, codebooks, width, dtype, Exit(config, width, dtype))
            for number in range(channels or len(codebooks))
        )

    def forward(self, state: Tensor, text: Tensor, noise: list[Tensor], rules: list[Tensor]) -> list[Tensor]:
        """Make one frame.

        Args:
            state: [B, d] FP32, the backbone's.
            text: [B, d] FP32, embedding of the frame's text token.
            noise: As for `GptFrame`.
            rules: Likewise.

        Returns:
            Codes [B, n] INT32, the next row's embedding [B, 1, d], and the logits [B, n, A] as there.
        """
        history = UnrolledHistory()
        drawn = Drawn(torch.stack([state, text], 1), text)  # [B, 2, d]
        for channel in self.channels:
            position = partial(self._position, history)
            drawn, _ = channel(position, self.table, drawn, noise, DrawRules(*rules))
        return [drawn.codes, drawn.total.unsqueeze(1), drawn.logits]  # type: ignore[list-item]

    def _position(self, history: UnrolledHistory, channel: int, rows: Tensor) -> Tensor:
        y: Tensor = self.depth(rows, history)
        return y


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return x * torch.sigmoid(x)
    if name == "relu":
        return torch.relu(x)
    if name == "gelu":
        return gelu(x)
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))  # GPT-2's

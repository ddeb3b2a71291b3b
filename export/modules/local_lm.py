"""Local transformers of MOSS-TTS: from the backbone's state to all codes of one frame, unrolled over the channels.

In: the state of one row, uniform numbers, penalties and the rules of drawing. Out: the codes of the frame, the
embedding of the next row, and what decides whether to go on. One call makes a frame: nothing returns to the host
between channels. v1 is the backbone's own layer without positions; v1.5 is GPT-2's block. Knows no prompts and no stop
rules.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig
from voxedge.export.modules.attention import RotaryTables, apply_rotary, attend, causal_mask
from voxedge.export.modules.basic import Embedding, LayerNorm, Linear, RMSNorm, gelu, parameter
from voxedge.export.modules.decoder_lm import GatedMlp, Layer
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


class _Channels(nn.Module):
    """Heads and tables of the audio channels."""

    def __init__(self, codebooks: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.codebooks = codebooks
        self.table = Embedding(sum(codebooks) + len(codebooks) + 1, width, dtype)
        self.heads = nn.ModuleList(Linear(width, size, dtype) for size in codebooks)

    def code(self, channel: int, z: Tensor, noise: list[Tensor], rules: DrawRules) -> tuple[Tensor, Tensor, Tensor]:
        """Draw from z [B, d]: the code [B], its embedding [B, d], and the logits [B, A]."""
        size = self.codebooks[channel]
        uniforms, penalties = noise
        logits = self.heads[channel](z)
        code = draw(logits, penalties[:, channel, :size], uniforms[:, channel : channel + 1], rules)
        first = sum(self.codebooks[:channel]) + channel  # each table ends with the row of its pad code
        wide = max(self.codebooks) - size
        if wide:
            logits = nn.functional.pad(logits, (0, wide), value=torch.finfo(torch.float32).min)
        return code, self.table(code + first), logits


class GptFrame(nn.Module):
    """All codes of a frame by the local transformer of v1.5."""

    def __init__(self, config: GptConfig, codebooks: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        width = config.width
        self.h = nn.ModuleList(GptLayer(config, dtype) for _ in range(config.layers))
        self.ln_f = LayerNorm(width, config.eps)
        self.wpe = parameter(len(codebooks) + 1, width, dtype=dtype) if config.rope_base is None else None
        dim = width // config.heads
        self.rotary = RotaryTables(len(codebooks) + 1, dim, torch.float32) if config.rope_base is not None else None
        self.gate = Linear(width, 2, dtype)
        self.channels = _Channels(codebooks, width, dtype)
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
        history, x = UnrolledHistory(self.rotary), state
        codes, logits, gate = [], [], None
        total = self.slot.float()
        for channel in range(len(self.channels.codebooks)):
            y = self.position(channel, x, history)
            gate = self.gate(y) if gate is None else gate
            code, x, row_logits = self.channels.code(channel, y, noise, DrawRules(*rules))
            codes.append(code)
            logits.append(row_logits)
            total = total + x
        return [torch.stack(codes, 1), total.unsqueeze(1), gate, torch.stack(logits, 1)]  # type: ignore[list-item]

    def position(self, channel: int, x: Tensor, history: UnrolledHistory) -> Tensor:
        """Run one position [B, d]."""
        x = x.unsqueeze(1)
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
        self.layers = nn.ModuleList(Layer(language, dtype, RMSNorm) for _ in range(language.layers))
        self.norm = RMSNorm(language.hidden_size, language.rms_norm_eps)
        self.enter = GatedMlp(width, inner, language.hidden_size, dtype)

    def forward(self, x: Tensor, history: UnrolledHistory) -> Tensor:
        """Run rows [B, S, d] as the next positions; gives [B, width of the layers] of the last one."""
        x = self.enter(x)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, history)
        last: Tensor = self.norm(x[:, -1])
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

    def __init__(self, config: DepthConfig, width: int, codebooks: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.depth = Depth(config, width, dtype)
        self.exits = nn.ModuleList(Exit(config, width, dtype) for _ in codebooks)
        self.channels = _Channels(codebooks, width, dtype)

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
        rows, total = torch.stack([state, text], 1), text  # [B, 2, d]
        codes, logits = [], []
        for channel, leave in enumerate(self.exits):
            z = leave(self.depth(rows, history))
            code, row, row_logits = self.channels.code(channel, z, noise, DrawRules(*rules))
            codes.append(code)
            logits.append(row_logits)
            rows, total = row.unsqueeze(1), total + row
        return [torch.stack(codes, 1), total.unsqueeze(1), torch.stack(logits, 1)]


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return x * torch.sigmoid(x)
    if name == "relu":
        return torch.relu(x)
    if name == "gelu":
        return gelu(x)
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))  # GPT-2's

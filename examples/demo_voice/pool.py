"""The corpus on the device that learns, growing while it is still being spoken.

In: shards of the corpus as they appear. Out: sound, log-mel and phones of all utterances so far, one behind the other,
in tensors that keep their place, and random crops of them. The first `HELD_OUT` utterances are left out of every crop.
Does not know: models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.demo_voice import corpus
from examples.demo_voice.corpus import PHONES_PER_TOKEN, TOKEN_SAMPLES, Shard
from examples.demo_voice.descriptions import SPEAKERS
from examples.demo_voice.features import HOP, MELS, SILENCE, LogMel

HELD_OUT = 64
"""Utterances at the corpus's begin that nothing learns from."""
FRAMES = TOKEN_SAMPLES // HOP
"""Mel frames per token."""
_TOKENS = 80  # room for each utterance; they have about 60 on average
_ENCODED = 64  # utterances that are encoded at once
_WAIT_S = 0.5


class Pool:
    """Utterances of the first shards."""

    def __init__(self, folder: Path, shards: int, per_shard: int, device: torch.device) -> None:
        """Make room.

        Args:
            folder: Of the corpus.
            shards: As many as it will have.
            per_shard: Utterances of each.
            device: Where the tensors are.
        """
        rows, room = shards * per_shard, shards * per_shard * _TOKENS
        self._folder, self._shards, self._device = folder, shards, device
        self._mel = LogMel().to(device)
        self.mel = torch.full((room * FRAMES, MELS), SILENCE, dtype=torch.float16, device=device)
        self.samples = torch.zeros(room * TOKEN_SAMPLES, dtype=torch.int16, device=device)
        self.phones = torch.zeros(room * PHONES_PER_TOKEN, dtype=torch.uint8, device=device)
        self.begins, self.lengths, self.styles = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(3))
        self.count, self.end = (torch.zeros((), dtype=torch.long, device=device) for _ in range(2))
        self.read = 0
        """Shards that are there."""

    def grow(self) -> None:
        """Take in what has been spoken since."""
        for shard in arriving(self._folder, self.read, self._shards):
            self._append(shard)

    def wait(self, shards: int) -> None:
        """Until there are so many shards (or all)."""
        while self.read < min(shards, self._shards):
            self.grow()
            time.sleep(_WAIT_S if self.read < min(shards, self._shards) else 0.0)

    def rows(self, size: int) -> Tensor:
        """Random utterances, [B]."""
        share = torch.rand(size, device=self._device)
        return HELD_OUT + (share * (self.count - HELD_OUT)).long()

    def crops(self, size: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random crops of utterances; silence fills short ones up.

        Returns:
            Log-mel [B, 4 T, MELS], phones [B, 2 T] and style [B].
        """
        rows = self.rows(size)
        lengths = self.lengths[rows]
        spare = (lengths - tokens + 1).clamp(min=1)
        offset = (torch.rand(size, device=self._device) * spare).long()
        start, left = self.begins[rows] + offset, lengths - offset
        frame = torch.arange(tokens * FRAMES, device=self._device)
        mel = self.mel[start[:, None] * FRAMES + frame].float()  # [B, 4 T, MELS]
        mel = torch.where((frame < left[:, None] * FRAMES)[..., None], mel, SILENCE)
        part = torch.arange(tokens * PHONES_PER_TOKEN, device=self._device)
        phones = self.phones[start[:, None] * PHONES_PER_TOKEN + part].long()  # [B, 2 T]
        return mel, torch.where(part < left[:, None] * PHONES_PER_TOKEN, phones, 0), self.styles[rows]

    def anywhere(self, size: int, tokens: int) -> Tensor:
        """First tokens of random crops that may run over the ends of utterances, [B]."""
        first = self.lengths[:HELD_OUT].sum()
        return first + (torch.rand(size, device=self._device) * (self.end - first - tokens)).long()

    def _append(self, shard: Shard) -> None:
        count, end = int(self.count), int(self.end)
        tokens = torch.from_numpy(shard.tokens).to(self._device)
        rows, total = slice(count, count + len(shard.tokens)), int(shard.tokens.sum())
        self.begins[rows] = end + tokens.cumsum(0) - tokens
        self.lengths[rows] = tokens
        self.styles[rows] = torch.tensor(
            [SPEAKERS.index(entry.speaker) * 3 + entry.pitch + 1 for entry in shard.entries],  # type: ignore[arg-type]
            device=self._device,
        )
        samples = torch.from_numpy(shard.samples).to(self._device)
        mel = log_mel(shard, self._mel)
        phones = torch.from_numpy(shard.phones).to(self._device)
        self.samples[end * TOKEN_SAMPLES : (end + total) * TOKEN_SAMPLES] = samples
        self.phones[end * PHONES_PER_TOKEN : (end + total) * PHONES_PER_TOKEN] = phones
        self.mel[end * FRAMES : (end + total) * FRAMES] = mel.half()
        self.end += total
        self.count += len(shard.tokens)  # last: what is counted is complete
        self.read += 1


def arriving(folder: Path, first: int, shards: int) -> Iterator[Shard]:
    """Shards from `first` on, in order, as far as they have been spoken."""
    for index in range(first, shards):
        if not corpus.shard_path(folder, index).exists():
            return
        yield corpus.read(folder, index)


@torch.no_grad()
def log_mel(shard: Shard, transform: LogMel) -> Tensor:
    """Of all utterances, one behind the other, [sum of tokens * 4, MELS]: there is silence between any two."""
    samples = torch.from_numpy(shard.samples).to(transform.window.device)
    mel: Tensor = transform(samples.float()[None] / 32768.0)[0].T
    return mel


@torch.no_grad()
def encode(shard: Shard, mel: Tensor, encoder: Callable[[Tensor], Tensor], per_token: int) -> Tensor:
    """Apply an encoder to every utterance.

    Args:
        shard: The utterances.
        mel: Of all, see `log_mel`.
        encoder: [B, 4 T, MELS] to [B, T * per_token, ...].
        per_token: How much it makes of a token.

    Returns:
        [sum of tokens * per_token, ...].
    """
    begins, parts = np.cumsum(shard.tokens) - shard.tokens, {}
    order = np.argsort(shard.tokens, kind="stable")
    for rows in np.array_split(order, max(1, len(order) // _ENCODED)):
        longest = int(shard.tokens[rows].max())
        padded = torch.full((len(rows), longest * FRAMES, MELS), SILENCE, device=mel.device)
        for place, row in enumerate(rows):
            frames = int(shard.tokens[row]) * FRAMES
            padded[place, :frames] = mel[int(begins[row]) * FRAMES :][:frames]
        made = encoder(padded)
        for place, row in enumerate(rows):
            parts[int(row)] = made[place, : int(shard.tokens[row]) * per_token]
    return torch.cat([parts[row] for row in range(len(order))])

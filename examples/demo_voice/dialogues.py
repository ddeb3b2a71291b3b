"""Batches for the two experts: prompts and their speech in a few fixed shapes, on the device that learns.

In: ids of prompts and speech tokens, utterance by utterance. Out: random batches, each of one shape, so that a recorded
CUDA graph fits all of them. Does not know: models, sound.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.demo_voice.language_model import IGNORED, Batch
from examples.demo_voice.speech_tokenizer import CODES

_WRONG = 0.1  # share of the tokens read in training that are replaced


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a batch."""

    prompt: int
    """Longest prompt."""
    speech: int
    """Most speech tokens."""
    share: float
    """Utterances of a batch, relative to those of the smallest shape."""


SHAPES = (Shape(96, 64, 1.0), Shape(128, 96, 0.75), Shape(216, 152, 0.45))


class _Bucket:
    """Utterances that fit one shape."""

    def __init__(self, shape: Shape, capacity: int, device: torch.device) -> None:
        self.shape, self.filled = shape, 0
        self.text = torch.zeros(capacity, shape.prompt, dtype=torch.int16, device=device)
        self.speech = torch.zeros(capacity, shape.speech, dtype=torch.int16, device=device)
        self.lengths = torch.zeros(capacity, 2, dtype=torch.long, device=device)
        self.count = torch.zeros((), dtype=torch.long, device=device)

    def add(self, text: npt.NDArray[np.int16], speech: npt.NDArray[np.int16], lengths: npt.NDArray[np.int64]) -> None:
        rows = slice(self.filled, self.filled + len(lengths))
        for store, values in ((self.text, text), (self.speech, speech), (self.lengths, lengths)):
            store[rows] = torch.from_numpy(values).to(store.device)
        self.filled += len(lengths)
        self.count.fill_(self.filled)


class Dialogues:
    """All utterances with their prompts."""

    def __init__(self, capacity: int, size: int, device: torch.device, shapes: Sequence[Shape] = SHAPES) -> None:
        """Make room.

        Args:
            capacity: Prompts that there will be.
            size: Utterances of a batch of the smallest shape.
            device: Where the tensors are.
            shapes: Of batches, smallest first.
        """
        self._size, self.shapes = size, len(shapes)
        self._buckets = [_Bucket(shape, capacity, device) for shape in shapes]

    def add(self, prompts: Sequence[npt.NDArray[np.uint16]], speech: Sequence[npt.NDArray[np.int16]]) -> int:
        """Take in prompts and the speech of each.

        Returns:
            How many fit no shape and are left out.
        """
        left = list(range(len(prompts)))
        for bucket in self._buckets:
            shape = bucket.shape
            fit = [row for row in left if len(prompts[row]) <= shape.prompt and len(speech[row]) <= shape.speech]
            left = sorted(set(left) - set(fit))
            text = np.zeros((len(fit), shape.prompt), np.int16)
            spoken = np.zeros((len(fit), shape.speech), np.int16)
            for place, row in enumerate(fit):
                text[place, shape.prompt - len(prompts[row]) :] = prompts[row]
                spoken[place, : len(speech[row])] = speech[row]
            lengths = np.asarray([(len(prompts[row]), len(speech[row])) for row in fit], np.int64).reshape(-1, 2)
            bucket.add(text, spoken, lengths)
        return len(left)

    def choose(self, seed: int, step: int) -> int:
        """A shape for a step, so that every utterance is equally likely."""
        shares = [bucket.filled / bucket.shape.share for bucket in self._buckets]
        return random.Random(f"{seed}:{step}").choices(range(self.shapes), shares)[0]  # noqa: S311 - not for secrets

    def batch(self, shape: int) -> Batch:
        """Random utterances of a shape, some of the tokens that are read replaced by others.

        A model that cannot trust what it said looks at the text. What is to be predicted stays as it is.
        """
        bucket = self._buckets[shape]
        device = bucket.count.device
        rows = (torch.rand(max(1, int(self._size * bucket.shape.share)), device=device) * bucket.count).long()
        batch = _batch(bucket, rows)
        wrong = torch.rand(batch.speech.shape, device=device) < _WRONG
        other = torch.randint(0, CODES, batch.speech.shape, device=device)
        return Batch(batch.text, batch.text_lengths, torch.where(wrong, other, batch.speech), batch.targets)

    def all_of(self, shape: int) -> Batch:
        """Every utterance of a shape, nothing replaced."""
        bucket = self._buckets[shape]
        return _batch(bucket, torch.arange(bucket.filled, device=bucket.count.device))


def held_out(
    prompts: Sequence[npt.NDArray[np.uint16]], speech: Sequence[npt.NDArray[np.int16]], device: torch.device
) -> Batch:
    """Utterances to judge by, all in the largest shape and as they are."""
    told = Dialogues(len(prompts), 1, device, SHAPES[-1:])
    told.add(prompts, speech)
    return told.all_of(0)


def _batch(bucket: _Bucket, rows: Tensor) -> Batch:
    spoken = bucket.lengths[rows, 1]
    speech = bucket.speech[rows].long()
    column = torch.arange(bucket.shape.speech + 1, device=rows.device)[None]
    padded = torch.nn.functional.pad(speech, (0, 1))
    targets = torch.where(column < spoken[:, None], padded, IGNORED)
    targets = torch.where(column == spoken[:, None], CODES, targets)
    return Batch(bucket.text[rows].long(), bucket.lengths[rows, 0], speech, targets)

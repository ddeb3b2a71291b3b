"""The training corpus: described sentences with their sound, written shard by shard.

In: sizes and a seed. Out: `shard_*.npz` (sound, phone per 20 ms) and `shard_*.json` (texts); a shard that exists is
kept, so a broken run goes on. Utterance n depends on the seed and n alone. Sentences of the test list never occur.
"""

from __future__ import annotations

import json
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from examples.demo_voice import sentences, synthesiser
from examples.demo_voice.descriptions import style_and_description
from examples.demo_voice.features import HOP, LogMel

FOLDER = Path(__file__).parent
NARROW_TEST = FOLDER / "test_narrow.txt"
PHONE_S = 0.02
"""Seconds per phone label: half a speech token."""
PHONES_PER_TOKEN = 2
TOKEN_SAMPLES = 4 * HOP
"""Samples per speech token: 25 tokens per second."""
MAX_SECONDS = 5.0
"""Longer utterances are left out."""
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an utterance besides its sound."""

    text: str
    """The sentence."""
    description: str
    """Of the voice; may be empty."""
    speaker: str
    """Voice of the synthesiser."""
    speed: int
    """-1, 0 or 1."""
    pitch: int
    """-1, 0 or 1."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """All utterances, one behind the other, each filled up with silence to whole speech tokens."""

    entries: list[Entry]
    """[N]."""
    ends: npt.NDArray[np.int64]
    """[N + 1], in tokens: utterance n is ends[n] to ends[n + 1]."""
    samples: npt.NDArray[np.int16]
    """[tokens * TOKEN_SAMPLES] at 16 kHz."""
    phones: npt.NDArray[np.uint8]
    """[tokens * 2]: index into `synthesiser.PHONES` for every `PHONE_S`."""
    mel: npt.NDArray[np.float16]
    """[tokens * 4, MELS]."""

    def tokens(self, index: int) -> slice:
        """Where an utterance is, in tokens."""
        return slice(int(self.ends[index]), int(self.ends[index + 1]))


def write(folder: Path, shards: int, per_shard: int, seed: int, workers: int) -> None:
    """Speak what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(shards) if not (folder / f"shard_{index:03d}.npz").exists()]
    with ProcessPoolExecutor(workers) as pool:
        for done in pool.map(partial(_write_shard, folder, per_shard, seed), missing):
            print(f"corpus: {done}", flush=True)


def read(folder: Path, shards: int) -> Corpus:
    """All shards in memory; 16 hours are 3 GB."""
    entries: list[Entry] = []
    sounds, phones, mels, counts = [], [], [], []
    for index in range(shards):
        path = folder / f"shard_{index:03d}.npz"
        entries += [Entry(**entry) for entry in json.loads(path.with_suffix(".json").read_text())]
        with np.load(path) as data:
            tokens = -(-data["lengths"] // TOKEN_SAMPLES)
            sounds.append(_filled(data["samples"], data["lengths"], tokens * TOKEN_SAMPLES))
            phones.append(_filled(data["phones"], data["counts"], tokens * PHONES_PER_TOKEN))
        counts.append(tokens)
        mels.append(_mel(folder / f"mel_{index:03d}.npy", sounds[-1], tokens))
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Corpus(entries, ends, np.concatenate(sounds), np.concatenate(phones), np.concatenate(mels))


def _filled(
    values: npt.NDArray[Any], lengths: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Every utterance's values followed by zeros up to the wanted length."""
    filled = np.zeros(int(wanted.sum()), values.dtype)
    begins, targets = np.cumsum(lengths) - lengths, np.cumsum(wanted) - wanted
    for begin, length, target in zip(begins, lengths, targets, strict=True):
        filled[target : target + length] = values[begin : begin + length]
    return filled


def _mel(path: Path, samples: npt.NDArray[np.int16], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    """Log-mel of a shard, [tokens * 4, MELS]; kept in a file, since every stage needs it."""
    if path.exists():
        return np.load(path)  # type: ignore[no-any-return]
    transform, parts = LogMel(), []
    for sound in np.split(samples, np.cumsum(tokens)[:-1] * TOKEN_SAMPLES):
        with torch.no_grad():
            mel = transform(torch.from_numpy(sound.astype(np.float32) / 32768.0)[None])[0]  # [MELS, frames]
        parts.append(mel.T.numpy().astype(np.float16))
    frames = np.concatenate(parts)
    unfinished = path.with_suffix(".partial.npy")
    np.save(unfinished, frames)
    unfinished.rename(path)
    return frames


def test_sentences() -> list[str]:
    """Narrow sentences that are kept out of training."""
    return NARROW_TEST.read_text().splitlines()


def _write_shard(folder: Path, count: int, seed: int, index: int) -> str:
    held_out = {sentences.key(text) for text in test_sentences()}
    entries, sounds, labels = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(index * count, (index + 1) * count):
            rng = random.Random(f"{seed}:{number}")  # noqa: S311 - not for secrets
            for _ in range(_TRIES):
                text = sentences.training_sentence(rng)
                style, description = style_and_description(rng)
                if sentences.key(text) in held_out:
                    continue
                spoken = synthesiser.speak(text, style, Path(scratch) / "speech.wav")
                if len(spoken.samples) <= MAX_SECONDS * synthesiser.SAMPLE_RATE:
                    break
            entries.append(Entry(text, description, style.speaker, style.speed, style.pitch))
            sounds.append(spoken.samples)
            labels.append(_phone_labels(spoken))
    path = folder / f"shard_{index:03d}.npz"
    path.with_suffix(".json").write_text(json.dumps([asdict(entry) for entry in entries]))
    unfinished = path.with_suffix(".partial.npz")
    np.savez(
        unfinished,
        samples=np.concatenate(sounds),
        phones=np.concatenate(labels),
        lengths=np.asarray([len(sound) for sound in sounds]),
        counts=np.asarray([len(label) for label in labels]),
    )
    unfinished.rename(path)
    return path.name


def _phone_labels(spoken: synthesiser.Utterance) -> npt.NDArray[np.uint8]:
    """The phone in the middle of every `PHONE_S`."""
    count = int(np.ceil(len(spoken.samples) / synthesiser.SAMPLE_RATE / PHONE_S))
    at = np.searchsorted(np.asarray(spoken.ends), (np.arange(count) + 0.5) * PHONE_S).clip(max=len(spoken.ends) - 1)
    ids = np.asarray([synthesiser.PHONES.index(phone) for phone in spoken.phones], dtype=np.uint8)
    labels: npt.NDArray[np.uint8] = ids[at]
    return labels

"""The training corpus: described sentences with their sound, written shard by shard.

In: sizes and a seed. Out: `shard_*.npz` (sound, phone per 20 ms, ids of prompts) and `shard_*.json` (texts); a shard
that exists is kept, so a broken run goes on. Utterance n depends on the seed and n alone. Sentences of the test lists
never occur.
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

from examples.demo_voice import sentences, synthesiser
from examples.demo_voice.descriptions import describe, style_and_description
from examples.demo_voice.features import HOP
from examples.demo_voice.prompts import prompt_ids
from voxedge.runtime.tokenizer import ChatTokenizer

FOLDER = Path(__file__).parent
NARROW_TEST = FOLDER / "test_narrow.txt"
OPEN_TEST = FOLDER / "test_open.txt"
DESCRIPTIONS = 2
"""Of every utterance, in other words each."""
PHONE_S = 0.02
"""Seconds per phone label: half a speech token."""
PHONES_PER_TOKEN = 2
TOKEN_SAMPLES = 4 * HOP
"""Samples per speech token: 25 tokens per second."""
MAX_SECONDS = 6.0
"""Longer utterances are left out."""
MAX_TOKENS = int(MAX_SECONDS * synthesiser.SAMPLE_RATE) // TOKEN_SAMPLES
"""Of an utterance, in speech tokens."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an utterance besides its sound."""

    text: str
    """The sentence."""
    descriptions: tuple[str, ...]
    """Of the voice, several ways to say it; may be empty."""
    speaker: str
    """Voice of the synthesiser."""
    speed: int
    """-1, 0 or 1."""
    pitch: int
    """-1, 0 or 1."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some utterances, one behind the other, each filled up with silence to whole speech tokens."""

    entries: list[Entry]
    """[N]."""
    tokens: npt.NDArray[np.int64]
    """[N]: length of each in speech tokens."""
    samples: npt.NDArray[np.int16]
    """[sum of tokens * TOKEN_SAMPLES] at 16 kHz."""
    phones: npt.NDArray[np.uint8]
    """[sum of tokens * 2]: index into `synthesiser.PHONES` for every `PHONE_S`."""
    prompts: list[npt.NDArray[np.uint16]]
    """[N * descriptions]: ids of each utterance's prompts, one for every description."""


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard."""
    return folder / f"shard_{index:03d}.npz"


def write(folder: Path, tokenizer: Path, shards: int, per_shard: int, seed: int, workers: int) -> None:
    """Speak what is not there yet, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(shards) if not shard_path(folder, index).exists()]
    with ProcessPoolExecutor(workers) as pool:
        for done in pool.map(partial(_write_shard, folder, tokenizer, per_shard, seed), missing):
            print(f"corpus: {done}", flush=True)


def read(folder: Path, index: int) -> Shard:
    """One shard in memory."""
    path = shard_path(folder, index)
    entries = [Entry(**entry) for entry in json.loads(path.with_suffix(".json").read_text())]
    with np.load(path) as data:
        tokens = -(-data["lengths"] // TOKEN_SAMPLES)
        samples = _filled(data["samples"], data["lengths"], tokens * TOKEN_SAMPLES)
        phones = _filled(data["phones"], data["counts"], tokens * PHONES_PER_TOKEN)
        prompts = np.split(data["prompts"], np.cumsum(data["prompt_lengths"])[:-1])
    return Shard(entries, tokens, samples, phones, prompts)


def _filled(
    values: npt.NDArray[Any], lengths: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Every utterance's values followed by zeros up to the wanted length."""
    filled = np.zeros(int(wanted.sum()), values.dtype)
    begins, targets = np.cumsum(lengths) - lengths, np.cumsum(wanted) - wanted
    for begin, length, target in zip(begins, lengths, targets, strict=True):
        filled[target : target + length] = values[begin : begin + length]
    return filled


def test_sentences(path: Path = NARROW_TEST) -> list[str]:
    """Sentences that are kept out of training."""
    return path.read_text(encoding="utf-8").splitlines()


def held_out() -> frozenset[str]:
    """Keys of all test sentences."""
    return frozenset(sentences.key(text) for path in (NARROW_TEST, OPEN_TEST) for text in test_sentences(path))


def sentence(rng: random.Random) -> str:
    """A training sentence that is in no test list."""
    while True:
        text = sentences.training_sentence(rng)
        if sentences.key(text) not in held_out():
            return text


def _write_shard(folder: Path, tokenizer: Path, count: int, seed: int, index: int) -> str:
    chat, entries, sounds, labels = ChatTokenizer.from_file(tokenizer), [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(index * count, (index + 1) * count):
            rng = random.Random(f"{seed}:{number}")  # noqa: S311 - not for secrets
            entry, spoken = _utterance(rng, Path(scratch) / "speech.wav")
            entries.append(entry)
            sounds.append(spoken.samples)
            labels.append(_phone_labels(spoken))
    prompts = [prompt_ids(chat, words, entry.text) for entry in entries for words in entry.descriptions]
    path = shard_path(folder, index)
    path.with_suffix(".json").write_text(json.dumps([asdict(entry) for entry in entries]))
    unfinished = path.with_suffix(".partial.npz")
    np.savez(
        unfinished,
        samples=np.concatenate(sounds),
        phones=np.concatenate(labels),
        lengths=np.asarray([len(sound) for sound in sounds]),
        counts=np.asarray([len(label) for label in labels]),
        prompts=np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in prompts]),
        prompt_lengths=np.asarray([len(ids) for ids in prompts]),
    )
    unfinished.rename(path)
    return path.name


def _utterance(rng: random.Random, scratch: Path) -> tuple[Entry, synthesiser.Utterance]:
    """A sentence that is not too long when it is spoken."""
    while True:
        text, (style, described) = sentence(rng), style_and_description(rng)
        spoken = synthesiser.speak(text, style, scratch)
        if len(spoken.samples) <= MAX_SECONDS * synthesiser.SAMPLE_RATE:
            others = [describe(style, rng) if described else "" for _ in range(DESCRIPTIONS - 1)]
            return Entry(text, (described, *others), style.speaker, style.speed, style.pitch), spoken


def _phone_labels(spoken: synthesiser.Utterance) -> npt.NDArray[np.uint8]:
    """The phone in the middle of every `PHONE_S`."""
    count = int(np.ceil(len(spoken.samples) / synthesiser.SAMPLE_RATE / PHONE_S))
    at = np.searchsorted(np.asarray(spoken.ends), (np.arange(count) + 0.5) * PHONE_S).clip(max=len(spoken.ends) - 1)
    ids = np.asarray([synthesiser.PHONES.index(phone) for phone in spoken.phones], dtype=np.uint8)
    labels: npt.NDArray[np.uint8] = ids[at]
    return labels

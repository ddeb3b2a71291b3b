"""Do people understand it? Words that a speech recogniser hears, against words that were to be said.

In: sounds and texts. Out: words, and word error rates. The recogniser is optional: PocketSphinx where it is installed,
or anything with the two members of `Recogniser`. Does not judge: an untrained voice is understood by nobody.
"""

from __future__ import annotations

import importlib.util
import math
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voxedge.calibration.metrics import Array
from voxedge.engines.errors import BackendUnavailableError, InputError
from voxedge.runtime.audio import resample
from voxedge.runtime.audio_files import to_pcm16

INSTALL = "pip install 'voxedge[verify]'"
_RATE_HZ = 16_000
_DISCOUNT = 0.5  # of each bigram's count, given to words that never followed: half of what was seen once
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


class Recogniser(Protocol):
    """What turns sound into words."""

    @property
    def name(self) -> str:
        """For reports."""

    def transcribe(self, samples: Array, sample_rate: int) -> str:
        """What is heard.

        Args:
            samples: [T, channels], full scale 1.
            sample_rate: In Hz.
        """


@dataclass(frozen=True, slots=True)
class WordErrors:
    """What was heard of one utterance."""

    heard: str
    """The recogniser's words."""
    errors: int
    """Words that were replaced, left out or added."""
    words: int
    """Words that were to be said."""


class PocketSphinx:
    """PocketSphinx 5 with its English sound model and a bigram model of exactly the texts that are spoken.

    With its stock language model it gets every fifth word of clean speech wrong, far too coarse to see a codec or a
    quantiser. Knowing the sentences it is nearly without errors on clean speech, so errors come from the sound. It may
    also guess a word that was not intelligible: rates are for comparing two bundles, not for comparing with papers.
    """

    name = "pocketsphinx"

    def __init__(self, texts: Sequence[str]) -> None:
        """Load the models.

        Args:
            texts: Everything that will be said.

        Raises:
            BackendUnavailableError: PocketSphinx is not installed.
            InputError: There is no English word in the texts.
        """
        if importlib.util.find_spec("pocketsphinx") is None:
            raise BackendUnavailableError(f"expected the recogniser pocketsphinx, it is not installed; type: {INSTALL}")
        from pocketsphinx import Decoder

        with tempfile.TemporaryDirectory() as folder:  # the library reads language models from files alone
            model = Path(folder) / "texts.lm"
            model.write_text(bigram_model(texts), encoding="ascii")
            self._decoder: Any = Decoder(lm=str(model), loglevel="FATAL")

    def transcribe(self, samples: Array, sample_rate: int) -> str:
        """What is heard; see `Recogniser.transcribe`."""
        mono = np.asarray(samples, np.float32).mean(axis=1)
        sound = resample(mono, sample_rate, _RATE_HZ)
        self._decoder.start_utt()
        self._decoder.process_raw(to_pcm16(sound), no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


def words_of(text: str) -> list[str]:
    """English words in small letters, without punctuation.

    Example:
        >>> words_of("I can't, she said.")
        ['i', "can't", 'she', 'said']
    """
    return _WORD.findall(text.lower())


def word_errors(text: str, heard: str) -> WordErrors:
    """Fewest replacements, omissions and insertions between both (Levenshtein 1966).

    Example:
        >>> word_errors("a b c d", "a x c d e").errors
        2
    """
    expected, found = words_of(text), words_of(heard)
    row = list(range(len(found) + 1))
    for count, word in enumerate(expected, 1):
        before, row = row, [count]
        for place, other in enumerate(found):
            row.append(min(before[place] + (word != other), before[place + 1] + 1, row[place] + 1))
    return WordErrors(heard, row[-1], len(expected))


def bigram_model(texts: Sequence[str]) -> str:
    """A language model of some sentences as an ARPA file: absolute discounting, uniform words behind it.

    Raises:
        InputError: There is no English word in them.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        if words := words_of(text):
            pairs.update(zip(["<s>", *words], [*words, "</s>"], strict=True))
    if not pairs:
        raise InputError("expected texts with English words for the recogniser, found none; use --recogniser none")
    known = sorted({word for pair in pairs for word in pair})
    seen, kinds = Counter[str](), Counter(first for first, _ in pairs)
    for (first, _), count in pairs.items():
        seen[first] += count
    uniform = -math.log10(len(known) - 1)  # all but the beginning
    singles = [
        f"{-99.0 if word == '<s>' else uniform:.4f} {word} "
        f"{math.log10(_DISCOUNT * kinds[word] / seen[word]) if word in seen else 0.0:.4f}"
        for word in known
    ]
    doubles = [
        f"{math.log10((count - _DISCOUNT) / seen[first]):.4f} {first} {second}"
        for (first, second), count in sorted(pairs.items())
    ]
    head = ["\\data\\", f"ngram 1={len(singles)}", f"ngram 2={len(doubles)}"]
    return "\n".join([*head, "", "\\1-grams:", *singles, "", "\\2-grams:", *doubles, "", "\\end\\", ""])

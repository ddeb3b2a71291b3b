"""Word error rates by PocketSphinx: a bigram of a narrow domain, or the stock English model.

In: sound at 16 kHz and what was to be said. Out: recognised words, and error rates. Does not speak.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pocketsphinx

_DISCOUNT = 0.5  # absolute discounting (Ney et al. 1994)
_SILENCE_S = 0.3  # the recogniser wants some around an utterance
_RATE = 16_000


def words_of(text: str) -> list[str]:
    """Words in lower case, without marks."""
    return re.findall(r"[a-z']+", text.lower())


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Substitutions, insertions and deletions (Levenshtein distance)."""
    row = list(range(len(heard) + 1))
    for count, word in enumerate(said, 1):
        previous, row[0] = row[0], count
        for place, other in enumerate(heard, 1):
            previous, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, previous + (word != other))
    return row[-1]


class Recogniser:
    """One language model."""

    def __init__(self, model: Path | None = None, dictionary: Path | None = None) -> None:
        """Open the stock models, or with another language model and dictionary."""
        options = {} if model is None else {"lm": str(model), "dict": str(dictionary)}
        self._decoder = pocketsphinx.Decoder(loglevel="FATAL", **options)

    @classmethod
    def of_domain(cls, sentences: Iterable[str], folder: Path) -> Recogniser:
        """With a bigram of sentences; their words must be in the stock dictionary.

        Raises:
            SystemExit: A word is not.
        """
        lines = [words_of(sentence) for sentence in sentences]
        model, dictionary = folder / "domain.arpa", folder / "domain.dict"
        model.write_text(bigram(lines))
        wanted = {word for line in lines for word in line}
        stock = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
        entries = [line for line in stock.read_text().splitlines() if re.split(r"[ (]", line)[0] in wanted]
        missing = wanted - {re.split(r"[ (]", line)[0] for line in entries}
        if missing:
            raise SystemExit(f"expected all words in {stock.name}, it lacks {sorted(missing)}")
        dictionary.write_text("\n".join(entries) + "\n")
        return cls(model, dictionary)

    def hear(self, samples: npt.NDArray[np.float32]) -> list[str]:
        """Words of an utterance [T] at 16 kHz."""
        silence = np.zeros(int(_SILENCE_S * _RATE), np.float32)
        sound = np.concatenate([silence, samples / max(1e-3, float(np.abs(samples).max())) * 0.5, silence])
        self._decoder.start_utt()
        self._decoder.process_raw((sound * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return [] if found is None else words_of(found.hypstr)

    def error_rate(self, said: Sequence[str], heard: Sequence[npt.NDArray[np.float32]]) -> float:
        """Errors of all sentences / words of all sentences."""
        texts = [words_of(text) for text in said]
        total = sum(errors(text, self.hear(sound)) for text, sound in zip(texts, heard, strict=True))
        return total / sum(map(len, texts))


def bigram(lines: Sequence[Sequence[str]]) -> str:
    """An ARPA file of a bigram with absolute discounting that backs off to unigrams."""
    singles: Counter[str] = Counter(word for line in lines for word in [*line, "</s>"])
    pairs: Counter[tuple[str, str]] = Counter(
        pair for line in lines for pair in zip(["<s>", *line], [*line, "</s>"], strict=True)
    )
    firsts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for (first, _), count in pairs.items():
        firsts[first] += count
        kinds[first] += 1
    total = sum(singles.values())
    seen: dict[str, float] = {}
    for (first, second), _ in pairs.items():
        seen[first] = seen.get(first, 0.0) + singles[second] / total
    text = ["\\data\\", f"ngram 1={len(singles) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    for word in ["<s>", *sorted(singles)]:
        held_back = _DISCOUNT * kinds[word] / firsts[word] / max(1e-9, 1.0 - seen[word]) if word in firsts else 1.0
        chance = math.log10(singles[word] / total) if word in singles else -99.0
        text.append(f"{chance:.4f} {word} {math.log10(max(held_back, 1e-9)):.4f}")
    text += ["", "\\2-grams:"]
    for (first, second), count in sorted(pairs.items()):
        text.append(f"{math.log10((count - _DISCOUNT) / firsts[first]):.4f} {first} {second}")
    return "\n".join([*text, "", "\\end\\", ""])

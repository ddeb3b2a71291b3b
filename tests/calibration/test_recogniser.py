"""Words and their errors; the recogniser itself where it is installed."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest

from voxedge.calibration.recogniser import INSTALL, PocketSphinx, bigram_model, word_errors, words_of
from voxedge.engines.errors import BackendUnavailableError, InputError

TEXTS = ["The cat sat.", "The cat can't sit on the mat."]


@pytest.mark.parametrize(
    ("text", "heard", "errors"),
    [
        ("The cat sat.", "the cat sat", 0),
        ("The cat sat.", "", 3),
        ("The cat sat.", "the sat", 1),
        ("The cat sat.", "the big cat sat", 1),
        ("The cat sat.", "a dog sat down", 3),
        ("", "noise", 1),
    ],
)
def test_word_errors_are_the_fewest_edits(text: str, heard: str, errors: int) -> None:
    found = word_errors(text, heard)
    assert (found.errors, found.words, found.heard) == (errors, len(words_of(text)), heard)


def test_the_language_model_is_a_distribution_over_the_texts() -> None:
    lines = bigram_model(TEXTS).splitlines()
    singles = [line.split() for line in lines[lines.index("\\1-grams:") + 1 : lines.index("\\2-grams:") - 1]]
    doubles = [line.split() for line in lines[lines.index("\\2-grams:") + 1 : lines.index("\\end\\") - 1]]
    assert lines[1:3] == [f"ngram 1={len(singles)}", f"ngram 2={len(doubles)}"]
    uniform = {word: 10.0 ** float(p) for p, word, _ in singles if word != "<s>"}
    assert sum(uniform.values()) == pytest.approx(1.0, abs=1e-3)  # four decimals of a logarithm: 1e-4 of each
    backoff = {word: 10.0 ** float(weight) for _, word, weight in singles}
    after_the = {second: 10.0 ** float(p) for p, first, second in doubles if first == "the"}
    assert set(after_the) == {"cat", "mat"}
    assert after_the["cat"] / after_the["mat"] == pytest.approx((2 - 0.5) / (1 - 0.5), rel=1e-3)
    assert sum(after_the.values()) + backoff["the"] == pytest.approx(1.0, abs=1e-3)
    assert math.isclose(backoff["</s>"], 1.0)


def test_texts_without_english_words_are_refused() -> None:
    with pytest.raises(InputError, match="--recogniser none"):
        bigram_model(["12", "你好"])


def test_a_missing_recogniser_names_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError) as caught:
        PocketSphinx(TEXTS)
    assert INSTALL in str(caught.value)


def test_silence_and_noise_are_no_sentence() -> None:
    pytest.importorskip("pocketsphinx", reason="the optional recogniser is not installed")
    recogniser = PocketSphinx(TEXTS)
    quiet = np.zeros((24_000, 1), np.float32)
    assert word_errors(TEXTS[1], recogniser.transcribe(quiet, 24_000)).errors >= 4
    noise = np.random.default_rng(1).standard_normal((24_000, 1)).astype(np.float32) * 0.1
    assert word_errors(TEXTS[1], recogniser.transcribe(noise, 24_000)).errors >= 4

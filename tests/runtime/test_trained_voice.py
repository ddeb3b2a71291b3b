"""The built-in voice speaks: how long, how loud, who."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from voxedge.runtime.audio import Audio
from voxedge.runtime.synthesizer import Synthesizer

TEXT = "The red door is behind the office."


@pytest.fixture(scope="module")
def voice() -> Iterator[Synthesizer]:
    with Synthesizer.from_pretrained(threads=1) as synthesizer:
        yield synthesizer


def level_db(audio: Audio) -> float:
    return float(10.0 * np.log10(np.mean(np.square(audio.samples, dtype=np.float64)) + 1e-12))


def test_it_speaks(voice: Synthesizer) -> None:
    audio = voice.synthesize(TEXT, description="A woman.", seed=1)
    assert audio.sample_rate == 16_000
    assert np.isfinite(audio.samples).all()
    # The synthesiser that it learned from takes 1.9 s; a voice that has lost its place stops early or never.
    assert 1.2 < audio.duration_s < 3.5
    assert audio.finish_reason == "stop"
    assert -40.0 < level_db(audio) < -6.0  # speech was levelled to about -20 dB; noise at full scale has -3 to -10


def test_the_same_seed_gives_the_same_take_and_another_seed_another(voice: Synthesizer) -> None:
    takes = [voice.synthesize(TEXT, description="A man.", seed=seed).samples for seed in (3, 3, 4)]
    np.testing.assert_array_equal(takes[0], takes[1])
    assert takes[0].shape != takes[2].shape or not np.array_equal(takes[0], takes[2])


def test_slow_is_longer_than_fast(voice: Synthesizer) -> None:
    # Training stretched phones by 1.3 and 0.8: three takes of each leave no doubt.
    slow, fast = (
        sum(voice.synthesize(TEXT, description=text, seed=seed).duration_s for seed in range(3))
        for text in ("A woman speaks slowly.", "A woman speaks fast.")
    )
    assert slow > 1.2 * fast


def test_a_long_text_is_spoken_piece_by_piece(voice: Synthesizer) -> None:
    one = voice.synthesize("Hello world.", seed=1)
    text = "Hello world. Good morning Anna. The red door is behind the office. Thank you John."
    three = voice.synthesize(text, seed=1)
    assert three.duration_s > 2.5 * one.duration_s  # four sentences; three pauses alone are 0.6 s

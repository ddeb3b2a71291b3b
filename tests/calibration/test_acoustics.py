"""Mel distance, loudness, silence and pitch against closed forms and against figures that standards list."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voxedge.calibration import acoustics, pitch

Array = np.ndarray


def sine(hz: float, seconds: float, rate: int, peak: float = 1.0) -> Array:
    return peak * np.sin(2.0 * np.pi * hz * np.arange(round(seconds * rate)) / rate)[:, None]


def voice(hz: Array | float, seconds: float, rate: int) -> Array:
    """Ten harmonics that fall by 6 dB per octave, of a frequency that may change: [T, 1]."""
    phase = 2.0 * np.pi * np.cumsum(np.broadcast_to(hz, (round(seconds * rate),))) / rate
    return 0.2 * sum(np.sin(order * phase) / order for order in range(1, 11))[:, None]


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_loudness_is_that_of_the_standards_own_signals(rate: int) -> None:
    # EBU Tech 3341, minimum requirements 1 to 3, within its tolerance of 0.1 LU: sines of 1 kHz in both channels.
    def stereo(*parts: tuple[float, float]) -> Array:
        tones = [sine(1000.0, seconds, rate, 10.0 ** (level / 20.0)) for level, seconds in parts]
        return np.repeat(np.concatenate(tones), 2, axis=1)

    assert acoustics.loudness_lufs(stereo((-23.0, 5.0)), rate) == pytest.approx(-23.0, abs=0.1)
    assert acoustics.loudness_lufs(stereo((-33.0, 5.0)), rate) == pytest.approx(-33.0, abs=0.1)
    gated = stereo((-36.0, 4.0), (-23.0, 24.0), (-36.0, 4.0))
    assert acoustics.loudness_lufs(gated, rate) == pytest.approx(-23.0, abs=0.1)


def test_a_gain_is_its_loudness_difference_and_silence_has_an_end() -> None:
    rate, sound = 16_000, np.random.default_rng(1).standard_normal((16_000, 1)) * 0.1
    gain = 10.0 ** (-3.0 / 20.0)
    difference = acoustics.loudness_lufs(sound * gain, rate) - acoustics.loudness_lufs(sound, rate)
    assert difference == pytest.approx(-3.0, abs=1e-9)  # linear filters, and gates that move along
    for quiet in (np.zeros((8000, 1)), np.zeros((0, 1)), sound[:8000] * 1e-6):
        assert acoustics.loudness_lufs(quiet, rate) == acoustics.QUIETEST_LUFS
    # One block, padded or cut, of a stationary tone has its level: 997 Hz, whole periods within 0.1 s.
    assert acoustics.loudness_lufs(sine(1000.0, 0.1, 48_000), 48_000) == pytest.approx(-3.01, abs=0.1)


def test_mel_distance_of_a_gain_is_the_gain() -> None:
    sound = np.random.default_rng(2).standard_normal((24_000, 2))
    assert acoustics.mel_distance(sound, sound, 24_000) == acoustics.MelDistance(0.0, 0.0)
    for gain_db in (2.0, -5.0):
        found = acoustics.mel_distance(sound, sound * 10.0 ** (gain_db / 20.0), 24_000)
        assert (found.l1_db, found.l2_db) == pytest.approx((abs(gain_db), abs(gain_db)), abs=1e-6)  # no band is floored


def test_mel_distance_of_one_band_is_its_share() -> None:
    # A tone of 3 kHz over noise 60 dB below: only the few bands that it reaches differ, so the mean over 80 bands is
    # small and the root mean square, which weighs them more, is larger.
    noise = np.random.default_rng(3).standard_normal((48_000, 1)) * 1e-3
    found = acoustics.mel_distance(noise, noise + sine(3000.0, 1.0, 48_000), 48_000)
    assert 0.5 < found.l1_db < 6.0
    assert found.l2_db > 2.0 * found.l1_db


def test_mel_distance_of_silent_short_and_unequal_sounds_is_finite() -> None:
    sound = np.random.default_rng(4).standard_normal((3000, 1))
    assert acoustics.mel_distance(sound, sound[:2000], 16_000).l1_db == 0.0
    for test in (np.zeros((3000, 1)), sound[:5], sound[:0]):
        assert math.isfinite(acoustics.mel_distance(sound, test, 16_000).l2_db)
        assert math.isfinite(acoustics.mel_distance(test, sound, 16_000).l2_db)


@pytest.mark.parametrize("hz", [75.0, 110.0, 220.5, 441.0])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_the_pitch_of_a_voice_is_found(hz: float, rate: int) -> None:
    found = pitch.track(voice(hz, 0.5, rate), rate)
    assert found.voiced.all()
    # A parabola through three samples of the difference function errs by far less than a fiftieth of a sample there;
    # at 441 Hz a period has 36 samples: 0.05 % is 1 cent.
    assert np.max(1200.0 * np.abs(np.log2(found.hz / hz))) < 2.0


def test_noise_silence_and_pauses_are_unvoiced() -> None:
    rate = 16_000
    noise = np.random.default_rng(5).standard_normal((rate, 1)) * 0.1
    assert pitch.track(noise, rate).voiced.mean() < 0.02
    assert not pitch.track(np.zeros((rate, 1)), rate).voiced.any()
    paused = np.concatenate([voice(120.0, 0.5, rate), np.zeros((rate // 2, 1))])
    assert pitch.track(paused, rate).voiced.mean() == pytest.approx(0.5, abs=0.06)  # the window sees 50 ms


def test_a_contour_that_is_raised_by_a_semitone_is_100_cents_away() -> None:
    rate = 48_000
    contour = 150.0 + 40.0 * np.sin(2.0 * np.pi * 2.0 * np.arange(rate) / rate)  # [T]
    found = pitch.pitch_difference(voice(contour, 1.0, rate), voice(contour * 2.0 ** (1.0 / 12.0), 1.0, rate), rate)
    assert found.error_cents == pytest.approx(100.0, abs=2.0)
    assert (found.voicing_agreement, found.voiced_fraction) == (1.0, 1.0)


def test_contours_that_cannot_be_compared_have_no_error() -> None:
    rate = 16_000
    tone, noise = voice(120.0, 0.5, rate), np.random.default_rng(6).standard_normal((rate // 2, 1))
    found = pitch.pitch_difference(tone, noise, rate)
    assert found.error_cents is None
    assert found.voicing_agreement < 0.1
    assert pitch.pitch_difference(tone[:50], tone[:50], rate) == pitch.PitchDifference(None, 1.0, 0.0)


def test_silence_is_counted_in_frames() -> None:
    rate = 16_000
    sound = np.concatenate([sine(300.0, 0.3, rate), sine(300.0, 0.1, rate, 10.0 ** (-60.0 / 20.0))])
    assert acoustics.silent_fraction(sound, rate) == pytest.approx(0.25)
    assert acoustics.silent_fraction(np.zeros((rate, 1)), rate) == 1.0
    assert acoustics.silent_fraction(np.zeros((0, 1)), rate) == 1.0

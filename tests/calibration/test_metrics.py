"""Figures against closed forms, and at the ends of their ranges."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from voxedge.calibration import metrics


def normal(seed: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("decibels", [3.0, 40.0, 120.0])
def test_snr_is_that_of_noise_of_known_power(decibels: float) -> None:
    signal, noise = normal(1, 5, 7), normal(2, 5, 7)
    noise *= math.sqrt(float(np.sum(signal**2) / np.sum(noise**2))) * 10.0 ** (-decibels / 20.0)
    # The noise is rounded where it is added: 2e-16 of the signal is 1e-10 of noise at -120 dB, far below 1e-3 dB.
    assert metrics.snr_db(signal, signal + noise) == pytest.approx(decibels, abs=1e-3)


@pytest.mark.parametrize("bits", [10, 23])
def test_snr_of_one_rounding_is_what_the_gate_reckons_with(bits: int) -> None:
    dtype = np.float16 if bits == 10 else np.float32
    values = np.exp(normal(3, 100_000) * 0.5)
    # Uniform errors within half a step, steps relative to the power of two below: between the figure of the gate's
    # table (values just above a power of two) and 6.02 dB more (just below the next).
    expected = 20.0 * math.log10(math.sqrt(3.0) * 2.0 ** (bits + 1))
    assert expected < metrics.snr_db(values, values.astype(dtype)) < expected + 6.03


def test_equal_zero_and_broken_arrays_have_finite_figures() -> None:
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    broken = np.array([1.0, np.nan, np.inf, 1.5], np.float32)
    assert metrics.compare("y", ones, ones) == metrics.TensorDifference("y", 200.0, 1.0, 0.0, 1.0)
    assert metrics.compare("y", zeros, zeros) == metrics.TensorDifference("y", 200.0, 1.0, 0.0, 1.0)
    assert metrics.compare("y", zeros, ones) == metrics.TensorDifference("y", -200.0, 0.0, 1.0, 1.0)
    assert metrics.compare("y", ones, broken) == metrics.TensorDifference("y", -200.0, 0.0, 0.5, 0.5)
    assert metrics.compare("y", ones[:0], ones[:0]) == metrics.TensorDifference("y", 200.0, 1.0, 0.0, 1.0)
    for test in (ones, zeros, broken):
        json.dumps(asdict(metrics.compare("y", zeros, test)), allow_nan=False)


def test_large_halves_do_not_overflow() -> None:
    large = np.full(1000, 60000.0, np.float16)  # their squares exceed FP16, the sum of them FP32's exact integers
    assert metrics.snr_db(large, large * np.float16(0.5)) == pytest.approx(20.0 * math.log10(2.0), abs=1e-3)
    assert metrics.cosine(large, -large) == pytest.approx(-1.0, abs=1e-12)


def test_worst_takes_each_figure_from_its_own_call() -> None:
    calls = [
        metrics.TensorDifference("y", 10.0, 0.9, 0.1, 1.0),
        metrics.TensorDifference("y", 20.0, 0.8, 0.3, 1.0),
        metrics.TensorDifference("y", 30.0, 0.99, 0.2, 0.5),
    ]
    assert metrics.worst(calls) == metrics.TensorDifference("y", 10.0, 0.8, 0.3, 0.5)


def test_log_spectral_distance_is_a_gain_in_decibels() -> None:
    sound = normal(4, 8000, 2)
    assert metrics.log_spectral_distance_db(sound, sound) == 0.0
    # Every bin differs by the gain; floored bins of white noise are too rare to matter at 1e-2.
    assert metrics.log_spectral_distance_db(sound, sound * 10.0 ** (2.0 / 20.0)) == pytest.approx(2.0, abs=1e-2)
    assert metrics.log_spectral_distance_db(sound, sound[::-1]) > 3.0  # independent noise


def test_log_spectral_distance_of_silent_short_and_unequal_sounds_is_finite() -> None:
    sound = normal(5, 3000, 1)
    assert metrics.log_spectral_distance_db(sound, sound[:2000]) == 0.0
    assert metrics.log_spectral_distance_db(sound[:10], sound[:10]) == 0.0
    assert metrics.log_spectral_distance_db(np.zeros((50, 1)), np.zeros((50, 1))) == 0.0
    assert math.isfinite(metrics.log_spectral_distance_db(np.zeros((50, 1)), sound[:50]))
    assert math.isfinite(metrics.log_spectral_distance_db(sound, np.zeros((3000, 1))))


def test_codes_are_judged_as_names() -> None:
    """A code that is off by one is as wrong as any other."""
    true = np.arange(100, dtype=np.int32)
    near, far = true.copy(), true.copy()
    near[7], far[7] = 8, 99
    for wrong in (near, far):
        assert metrics.compare("codes", true, wrong).agreement == 0.99
    worst = metrics.worst([metrics.compare("codes", true, each) for each in (true, near)])
    assert worst.agreement == 0.99
    assert metrics.compare("y", true.astype(np.float32), near.astype(np.float32)).agreement is None

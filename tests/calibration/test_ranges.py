"""Ranges of activations: what each method promises."""

from __future__ import annotations

import numpy as np
import pytest

from voxedge.calibration.accumulate import TensorAccumulator
from voxedge.calibration.quantise.ranges import (
    LEVELS,
    METHODS,
    PERCENTILE,
    Histogram,
    activation_range,
    rounding_errors,
)


def histogram(values: np.ndarray) -> Histogram:
    accumulator = TensorAccumulator(-1)
    accumulator.add(values.astype(np.float32)[:, None])
    found = accumulator.finish()
    assert found is not None
    return Histogram.of(found)


def normal(outliers: int = 0) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(200_000)
    values[:outliers] = 200.0
    return values


def true_error(values: np.ndarray, limit: float) -> float:
    step = limit / LEVELS
    return float(np.mean((values - np.clip(np.rint(values / step), -LEVELS, LEVELS) * step) ** 2))


@pytest.mark.parametrize("method", METHODS)
def test_no_range_is_beyond_the_largest_value(method: str) -> None:
    found = histogram(normal())
    assert 0 < activation_range(found, method) <= found.largest  # type: ignore[arg-type]


def test_minmax_clips_nothing() -> None:
    assert activation_range(histogram(normal(1)), "minmax") == 200.0


def test_percentile_clips_the_share_that_it_says() -> None:
    values = np.abs(normal())
    found = histogram(values)
    limit = activation_range(found, "percentile")
    clipped = np.mean(values > limit)
    one_bin = np.mean((values > limit - found.width) & (values <= limit))  # the histogram cannot tell within a bin
    assert 1 - PERCENTILE - one_bin <= clipped <= 1 - PERCENTILE + 1e-12


def test_mse_is_the_best_of_all_ranges() -> None:
    values = normal()
    found = histogram(values)
    limit = activation_range(found, "mse")
    # Bins of width w move a value by at most w / 2, so an error estimated from them is off by at most that in RMS.
    slack = found.width / 2
    best = min(true_error(values, other) for other in np.linspace(0.5, 5.0, 300))
    assert np.sqrt(true_error(values, limit)) <= np.sqrt(best) + 2 * slack
    assert abs(np.sqrt(rounding_errors(found, np.array([limit]))[0]) - np.sqrt(true_error(values, limit))) <= slack


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_few_outliers_are_not_worth_their_range(method: str) -> None:
    """Two of 200 000: at the full range the step is 1.6 sigma, and almost everything becomes 0."""
    assert activation_range(histogram(normal(2)), method) < 200.0  # type: ignore[arg-type]


def test_entropy_cuts_a_long_tail_and_keeps_a_short_one() -> None:
    uniform = np.random.default_rng(0).uniform(-1, 1, 200_000)
    assert activation_range(histogram(uniform), "entropy") > 0.97
    tail = np.random.default_rng(0).laplace(size=200_000)
    assert activation_range(histogram(tail), "entropy") < 0.9 * np.abs(tail).max()


@pytest.mark.parametrize("method", METHODS)
def test_zeros_give_a_step_that_can_be_divided_by(method: str) -> None:
    assert activation_range(histogram(np.zeros(10)), method) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_one_value_is_kept(method: str) -> None:
    """Its own range, but for the width of the bin that it is in."""
    limit = activation_range(histogram(np.full(10, 3.0)), method)  # type: ignore[arg-type]
    assert limit == pytest.approx(3.0, rel=2 / 2048)


def test_a_sample_knows_the_largest_of_its_population() -> None:
    found = Histogram.of_values(np.array([[0.1, -0.2]]), 4.0)
    assert (found.largest, found.limit, found.counts.sum()) == (4.0, 4.0, 2)
    assert activation_range(found, "minmax") == 4.0

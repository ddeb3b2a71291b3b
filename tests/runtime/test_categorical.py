"""Selection and draws against their plain, sorting definitions."""

from __future__ import annotations

import numpy as np
import pytest

from voxedge.runtime.categorical import draw, exponentials, largest, total


@pytest.mark.parametrize("size", [1, 2, 7, 256, 1000, 6562, 40_001])
@pytest.mark.parametrize("count", [1, 2, 25, 50, 300])
def test_largest_equals_a_stable_sort(size: int, count: int) -> None:
    count = min(size, count)
    scores = np.random.default_rng(size + count).standard_normal(size).astype(np.float32)
    scores = np.round(scores * 8) / 8  # many ties
    scores[:: max(2, size // 5)] = -np.inf
    expected = np.argsort(-scores, kind="stable")[:count]
    np.testing.assert_array_equal(largest(scores, count), expected)


def test_largest_of_equal_scores_takes_the_lowest_ids() -> None:
    np.testing.assert_array_equal(largest(np.zeros(5000, dtype=np.float32), 3), [0, 1, 2])
    np.testing.assert_array_equal(largest(np.full(5000, -np.inf, dtype=np.float32), 3), [0, 1, 2])


def test_exponentials_are_probabilities_up_to_a_factor() -> None:
    scores = np.array([-3.0, 80.0, 79.0, -np.inf], dtype=np.float32)
    weights = exponentials(scores, 0.5)
    np.testing.assert_allclose(weights, [0.0, 1.0, np.exp(-2.0), 0.0], rtol=1e-6)
    assert scores[1] == 80.0
    assert exponentials(np.array([3e38, -3e38], dtype=np.float32), 0.001).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("size", [1, 5, 1024, 1025, 6562, 70_000])
def test_draw_inverts_the_distribution_function(size: int) -> None:
    rng = np.random.default_rng(size)
    weights = rng.random(size).astype(np.float32)
    weights[rng.random(size) < 0.3] = 0.0
    weights[size // 2] = 1.0
    running = np.cumsum(weights.astype(np.float64))
    assert total(weights) == pytest.approx(running[-1], rel=1e-6)
    for uniform in [0.0, *rng.random(200), 1.0 - 2.0**-53]:
        index = draw(weights, float(uniform))
        target = uniform * running[-1]
        before = running[index] - weights[index]
        # Block sums are float32: a draw may miss an edge by that much of the total, never more.
        assert before - 1e-6 * running[-1] <= target <= running[index] + 1e-6 * running[-1]
        assert weights[index] > 0.0


@pytest.mark.parametrize("size", [64, 5000])
def test_draw_never_takes_weight_zero_at_the_ends(size: int) -> None:
    weights = np.zeros(size, dtype=np.float32)
    weights[size // 3] = 0.1
    assert {draw(weights, uniform) for uniform in (0.0, 0.5, 1.0 - 2.0**-53, 1.0)} == {size // 3}

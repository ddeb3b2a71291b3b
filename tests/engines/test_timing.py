"""Comparing two engines: what the ratio means, what noise does to it, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from voxedge.engines.timing import compare_speed


class _Time:
    """A clock that only runs while an engine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Engine:
    """Takes the next of its durations at each call."""

    def __init__(self, time: _Time, durations: Iterator[float], log: list[str], name: str) -> None:
        self._time, self._durations, self._log, self._name = time, durations, log, name

    def run(self, feeds: Mapping[str, np.ndarray]) -> None:
        assert set(feeds) == {"x"}
        self._log.append(self._name)
        self._time.now += next(self._durations)


def repeated(*values: float) -> Iterator[float]:
    while True:
        yield from values


def compare(first: Iterator[float], second: Iterator[float], **options: float):  # noqa: ANN201 - a SpeedRatio
    time, log = _Time(), []
    engines = [_Engine(time, durations, log, name) for name, durations in (("first", first), ("second", second))]
    found = compare_speed(*engines, {"x": np.zeros(1)}, clock=time, **options)
    return found, log


def test_the_ratio_is_second_over_first() -> None:
    found, _ = compare(repeated(2.0), repeated(1.0))
    assert (found.ratio, found.first_s, found.second_s) == pytest.approx((0.5, 2.0, 1.0))
    assert not found.slower
    assert compare(repeated(1.0), repeated(2.0))[0].slower


def test_order_alternates_and_the_first_round_is_dropped() -> None:
    warm = iter([100.0] + [1.0] * 20)
    found, log = compare(warm, repeated(1.0), rounds=3, budget_s=1e9)
    assert log == ["first", "second", "second", "first", "first", "second", "second", "first"]
    assert (found.rounds, found.ratio, found.first_s) == (3, 1.0, 1.0)


def test_a_busy_machine_cancels_within_a_round() -> None:
    """Load that triples both runs of every other round changes the medians, not the ratio."""
    found, _ = compare(repeated(1.0, 3.0), repeated(0.8, 2.4))
    assert (found.low, found.ratio, found.high) == pytest.approx((0.8, 0.8, 0.8))


def test_one_lost_round_in_four_is_not_slower() -> None:
    found, _ = compare(repeated(1.0), iter([1.0, 1.2, 0.9, 1.1, 0.9, 1.2]), rounds=5)
    assert not found.slower


def test_the_budget_ends_it_after_three_rounds() -> None:
    assert compare(repeated(30.0), repeated(30.0), budget_s=1.0)[0].rounds == 3
    assert compare(repeated(0.01), repeated(0.01), budget_s=1.0)[0].rounds == 9

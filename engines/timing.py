"""Which of two loaded graphs is faster here, measured so that a busy machine hits both alike.

In: two engines and the same feeds. Out: the ratio of their times, with its spread. Decides nothing, keeps nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from voxedge.engines.backend import Array

_FEWEST = 3


class Runnable(Protocol):
    """What can be timed; every `engines.backend.Engine` is one."""

    def run(self, feeds: Mapping[str, Array]) -> object:
        """Run once from host arrays."""


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """How long `second` takes, in multiples of `first`."""

    ratio: float
    """Median over the rounds of the time of `second` / the time of `first`; below 1 the second is faster."""
    low: float
    """First quartile of the same ratios."""
    high: float
    """Third quartile of the same ratios."""
    first_s: float
    """Median seconds of `first`."""
    second_s: float
    """Median seconds of `second`."""
    rounds: int
    """Rounds that count."""

    @property
    def slower(self) -> bool:
        """Whether `second` is slower beyond doubt: it lost in at least three rounds of four."""
        return self.low > 1.0


def compare_speed(
    first: Runnable,
    second: Runnable,
    feeds: Mapping[str, Array],
    *,
    rounds: int = 9,
    budget_s: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> SpeedRatio:
    """Time two engines in turns, A B, B A, A B, ...

    Both runs of a round happen right after each other, and the ratio is taken within the round, so that load of others
    and changes of the clock rate cancel; the order alternates because the first of two runs finds the caches flushed by
    the other engine. One round warms up and does not count.

    Args:
        first: What to compare with.
        second: What is compared.
        feeds: Inputs of both, by name.
        rounds: Rounds that count, odd so that the median is one of them.
        budget_s: No new round starts after so many seconds; at least three rounds always count.
        clock: Seconds, for tests.
    """

    def timed(engine: Runnable) -> float:
        started = clock()
        engine.run(feeds)
        return clock() - started

    begun = clock()
    pairs: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        if len(pairs) > _FEWEST and clock() - begun > budget_s:
            break
        if number % 2:
            later, earlier = timed(second), timed(first)
            pairs.append((earlier, later))
        else:
            pairs.append((timed(first), timed(second)))
    times = np.array(pairs[1:])  # [rounds, 2]
    low, ratio, high = np.quantile(times[:, 1] / times[:, 0], [0.25, 0.5, 0.75])
    first_s, second_s = np.median(times, axis=0)
    return SpeedRatio(float(ratio), float(low), float(high), float(first_s), float(second_s), len(times))

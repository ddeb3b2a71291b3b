"""Where to clip an activation that is to be stored in eight bits.

In: a histogram of |x|. Out: the range T, symmetric about 0; the step between two integers is T / 127. What lies beyond
is clipped. Knows no graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from voxedge.calibration.statistics import TensorStatistics

RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)

LEVELS = 127
"""Steps on each side of 0; -128 is not used, so that products are symmetric."""
PERCENTILE = 0.9999
"""Share of the numbers that are not clipped by `percentile`."""

_CANDIDATES = 128
"""Ranges that the searches try."""
_KEPT_LEVELS = 128
"""Bins that a histogram is squeezed into by `entropy`, as many as there are magnitudes."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Of |x|."""

    counts: npt.NDArray[np.int64]
    """[n], how many fall into each of n bins of equal width from 0."""
    limit: float
    """Upper end of the last bin."""
    largest: float
    """Largest |x|, within the limit."""

    @classmethod
    def of(cls, found: TensorStatistics) -> Histogram:
        """That of an activation."""
        return cls(found.counts, found.limit, found.largest)

    @classmethod
    def of_values(cls, values: npt.NDArray[np.floating], largest: float) -> Histogram:
        """That of a sample, whose population reaches up to `largest`."""
        limit = max(largest, float(np.abs(values).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        counts, _ = np.histogram(np.abs(values), 2048, (0.0, limit))
        return cls(counts.astype(np.int64), limit, largest)

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.limit / len(self.counts)

    @property
    def centres(self) -> Floats:
        """[n], of the bins."""
        centres: Floats = (np.arange(len(self.counts), dtype=np.float64) + 0.5) * self.width
        return centres

    def edges(self) -> npt.NDArray[np.int64]:
        """Bins to keep that are worth trying, up to all that are filled."""
        last = min(len(self.counts), int(self.largest / self.width) + 1)
        return np.unique(np.linspace(max(1, last // 16), last, _CANDIDATES).astype(np.int64))

    def upto(self, edges: npt.NDArray[np.int64]) -> Floats:
        """The ranges that these bins make."""
        tried: Floats = np.minimum(edges * self.width, self.largest)
        return tried


def activation_range(histogram: Histogram, method: RangeMethod) -> float:
    """Choose T.

    Args:
        histogram: Of |x|.
        method: `minmax` clips nothing; `percentile` clips the largest ten-thousandth; `entropy` loses the least
            information (Kullback-Leibler divergence, as TensorRT's calibrator did; Migacz, GTC 2017); `mse` makes the
            expected squared error of rounding and clipping least.

    Returns:
        T; 1 where every number is 0, so that the step can be divided by.
    """
    if histogram.largest <= 0.0 or not histogram.counts.sum():
        return 1.0
    return float(min(_METHODS[method](histogram), histogram.largest))


def rounding_errors(histogram: Histogram, limits: Floats) -> Floats:
    """Mean squared errors [n] of the numbers when they are clipped to each of n limits and rounded to its steps."""
    steps = limits[:, None] / LEVELS
    centres = histogram.centres
    rounded = np.minimum(np.rint(centres / steps), LEVELS) * steps
    errors: Floats = (centres - rounded) ** 2 @ histogram.counts / histogram.counts.sum()
    return errors


def _minmax(histogram: Histogram) -> float:
    return histogram.largest


def _percentile(histogram: Histogram) -> float:
    covered = np.cumsum(histogram.counts)
    last = int(np.searchsorted(covered, PERCENTILE * covered[-1]))
    return (last + 1) * histogram.width


def _mse(histogram: Histogram) -> float:
    tried = histogram.upto(histogram.edges())
    return float(tried[np.argmin(rounding_errors(histogram, tried))])


def _entropy(histogram: Histogram) -> float:
    bins = histogram.edges()
    # Fewer bins than levels hold no information to lose, they would only clip.
    bins = bins[bins >= min(_KEPT_LEVELS, int(bins[-1]))]
    losses = [_divergence(histogram.counts, int(count)) for count in bins]
    return float(histogram.upto(bins)[np.argmin(losses)])


def _divergence(counts: npt.NDArray[np.int64], kept: int) -> float:
    """Of the first `kept` bins with what lies beyond in the last, from what `_KEPT_LEVELS` levels can tell of them."""
    true = counts[:kept].astype(np.float64)
    inside = true.copy()
    true[-1] += counts[kept:].sum()
    starts = np.unique(np.linspace(0, kept, _KEPT_LEVELS, endpoint=False).astype(np.int64))
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    level = np.add.reduceat(inside, starts) / np.maximum(filled, 1.0)
    spread = np.repeat(level, np.diff(np.append(starts, kept))) * (inside > 0)
    seen = true > 0
    if not spread.sum():
        return float("inf")
    share = np.maximum(spread[seen] / spread.sum(), 1e-12)
    true = true[seen] / true.sum()
    return float(np.sum(true * np.log(true / share)))


_METHODS: Mapping[RangeMethod, Callable[[Histogram], float]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}

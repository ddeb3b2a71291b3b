"""Statistics of a stream of activations, in memory that does not grow.

In: arrays, one call after the other. Out: a `TensorStatistics`, and the exact state in between as plain arrays, so that
an interrupted calibration goes on as if nothing had happened. Every figure depends on the calls alone, not on time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.calibration.statistics import BINS, SAMPLE_ROWS, TensorStatistics
from voxedge.engines.backend import Array
from voxedge.engines.errors import InferenceError

_LOWEST_LIMIT = 2.0**-24  # a value that is zero so far needs some limit
_FP16_MAX = float(np.finfo(np.float16).max)
_BLOCK = 1 << 20  # numbers that are looked at at once

State = dict[str, npt.NDArray[Any]]


class TensorAccumulator:
    """One activation while it is being looked at."""

    STATE = ("bounds", "rows", "counts", "max", "sum", "samples", "ranks")
    """Names of the arrays of `state`."""

    def __init__(self, axis: int, state: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """Begin, or go on from a `state`.

        Args:
            axis: Which axis of the arrays holds the channels.
            state: What `state()` gave.
        """
        self.axis = axis
        self._bounds = np.array([np.inf, -np.inf, _LOWEST_LIMIT])  # minimum, maximum, limit
        self._rows = 0
        self._counts = np.zeros(BINS, np.int64)
        self._max = self._sum = np.zeros(0)
        self._samples: npt.NDArray[np.float16] = np.zeros((0, 0), np.float16)
        self._ranks = np.zeros(0, np.uint64)
        if state is not None:
            self._bounds, self._counts, self._ranks = state["bounds"], state["counts"], state["ranks"]
            self._max, self._sum, self._samples = state["max"], state["sum"], state["samples"]
            self._rows = int(state["rows"][0])

    def state(self) -> State:
        """Everything, exactly."""
        return {
            "bounds": self._bounds,
            "rows": np.array([self._rows]),
            "counts": self._counts,
            "max": self._max,
            "sum": self._sum,
            "samples": self._samples,
            "ranks": self._ranks,
        }

    def add(self, array: Array) -> None:
        """Take one call's values into account; an empty array counts for nothing.

        Raises:
            InferenceError: A value is NaN or infinite.
        """
        rows = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])  # [n, C]
        if not len(self._max):
            self._max, self._sum = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
            self._samples = np.zeros((0, rows.shape[1]), np.float16)
        step = max(1, _BLOCK // rows.shape[1])
        for start in range(0, len(rows), step):
            self._add(rows[start : start + step])

    def _add(self, rows: Array) -> None:
        low, high = float(rows.min()), float(rows.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InferenceError("expected finite activations, found NaN or infinity")
        self._bounds[0], self._bounds[1] = min(self._bounds[0], low), max(self._bounds[1], high)
        self._widen(max(abs(low), abs(high)))
        absolute = np.abs(rows)  # [n, C]
        bins = (absolute * np.float32(BINS / self._bounds[2])).astype(np.int32)  # exact: the factor is a power of two
        self._counts += np.bincount(bins.reshape(-1), minlength=BINS)
        np.maximum(self._max, absolute.max(axis=0), out=self._max)
        self._sum += absolute.sum(axis=0, dtype=np.float64)
        self._draw(rows)
        self._rows += len(rows)

    def _widen(self, largest: float) -> None:
        """Double the limit until it is above `largest`; 2, 4, 8 ... bins become one, which loses nothing else."""
        exponent = math.frexp(largest)[1]  # largest < 2 ** exponent
        limit = float(self._bounds[2])
        if largest >= limit:
            merged = round(2.0**exponent / limit)
            kept = self._counts.reshape(-1, merged).sum(axis=1) if merged <= BINS else self._counts.sum(keepdims=True)
            self._counts = np.zeros(BINS, np.int64)
            self._counts[: len(kept)] = kept
            self._bounds[2] = 2.0**exponent

    def _draw(self, rows: Array) -> None:
        """Keep the `SAMPLE_ROWS` rows of the lowest rank: an even draw from all rows, whatever their number."""
        ranks = _mixed(np.arange(self._rows, self._rows + len(rows), dtype=np.uint64))
        if len(self._ranks) == SAMPLE_ROWS:
            near = np.flatnonzero(ranks < self._ranks[-1])
            ranks, rows = ranks[near], rows[near]
        best = np.argsort(ranks, kind="stable")[:SAMPLE_ROWS]
        drawn = np.clip(rows[best], -_FP16_MAX, _FP16_MAX).astype(np.float16)
        ranks = np.concatenate([self._ranks, ranks[best]])
        order = np.argsort(ranks, kind="stable")[:SAMPLE_ROWS]
        self._samples = np.concatenate([self._samples, drawn])[order]
        self._ranks = ranks[order]

    def finish(self) -> TensorStatistics | None:
        """The statistics of all calls; None where there was none."""
        if not self._rows:
            return None
        return TensorStatistics(
            axis=self.axis,
            minimum=float(self._bounds[0]),
            maximum=float(self._bounds[1]),
            count=self._rows * len(self._max),
            limit=float(self._bounds[2]),
            counts=self._counts,
            channel_max=self._max.astype(np.float32),
            channel_mean=(self._sum / self._rows).astype(np.float32),
            samples=self._samples,
        )


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): one to one, and looks random."""
    mixed: npt.NDArray[np.uint64] = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed

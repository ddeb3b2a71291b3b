"""Round a weight to integers and scales, block by block while it is read.

In: a `LazyTensor` of floats. Out: `LazyTensor`s of the scales and of the integers, symmetric with zero-point 0. What is
resident is one block and the scales of one tensor. Does not know graphs, operators or statistics.

The scale is the smallest for which every weight is within half a step: with integers lo .. hi the reachable interval is
(lo - 1/2) s .. (hi + 1/2) s, so s = max(max w / (hi + 1/2), -min w / (|lo| + 1/2)) and |w - s q| <= s / 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ExportError
from voxedge.engines.lazy import Block, Index, InMemory, LazyTensor, materialise

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """Which weights share a scale, and how many integers there are."""

    axis: int
    """Axis of the channels that have their own scales, or along which blocks are cut."""
    block: int | None
    """Indices along `axis` that share a scale, each of the other axis alone; None shares all but the channel."""
    bits: int
    """Of each integer as it is stored."""
    largest: int | None = None
    """Largest integer; None for all that the bits can hold."""

    @property
    def low(self) -> int:
        """Smallest integer; at 8 bits -127, as kernels that multiply integers want it."""
        return -8 if self.bits == 4 else -self.high

    @property
    def high(self) -> int:
        """Largest integer."""
        return int(2 ** (self.bits - 1) - 1) if self.largest is None else self.largest

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales: [C], or the weight's with `axis` divided by the block."""
        if self.block is None:
            return (shape[self.axis],)
        return tuple(-(-n // self.block) if axis == self.axis else n for axis, n in enumerate(shape))


@dataclass(slots=True)
class Scales:
    """Scales of a weight; a `LazyTensor`. Keeps them for the integers, which are written next."""

    source: LazyTensor
    """The weight."""
    grid: Grid
    """Which weights share one."""
    dtype: str
    """Stored type, float32 or float16: that of the activations."""
    _kept: Floats | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of the weight."""
        return f"scales of {self.source.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Grid.scale_shape`."""
        return self.grid.scale_shape(self.source.shape)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """All scales at once: a sixteenth of the weight's values at most."""
        self._kept = self._compute(max_bytes)
        yield tuple(slice(0, n) for n in self.shape), self._kept.astype(self.dtype)

    def take(self, max_bytes: int) -> Floats:
        """The scales, computed again unless they were just written."""
        kept, self._kept = self._kept, None
        return self._compute(max_bytes) if kept is None else kept

    def _compute(self, max_bytes: int) -> Floats:
        """One pass over the weight."""
        high, low = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        for index, values in self.source.blocks(max_bytes):
            place, largest, smallest = self._extremes(index, values)
            np.maximum(high[place], largest, out=high[place])
            np.minimum(low[place], smallest, out=low[place])
        grid = self.grid
        return _stored_up(np.maximum(high / (grid.high + 0.5), -low / (0.5 - grid.low)), self.dtype)

    def _extremes(self, index: Index, values: npt.NDArray[Any]) -> tuple[Index, Floats, Floats]:
        """Largest and smallest weight under each scale that a block touches, and where these scales are."""
        axis, block = self.grid.axis, self.grid.block
        if block is None:
            others = tuple(other for other in range(values.ndim) if other != axis)
            return (index[axis],), values.max(others), values.min(others)
        start, stop = index[axis].start, index[axis].stop
        first = start // block
        cuts = np.maximum(np.arange(first, -(-stop // block)) * block - start, 0)
        place = tuple(slice(first, first + len(cuts)) if other == axis else part for other, part in enumerate(index))
        return place, np.maximum.reduceat(values, cuts, axis), np.minimum.reduceat(values, cuts, axis)


@dataclass(slots=True)
class Rounded:
    """Integers of a weight; a `LazyTensor` whose blocks are int8, also at 4 bits."""

    scales: Scales
    """Scales of the same weight."""

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.scales.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.scales.source.shape

    @property
    def dtype(self) -> str:
        """Type of the blocks."""
        return "int8"

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Integers; see `LazyTensor.blocks`."""
        grid, scales = self.scales.grid, self.scales.take(max_bytes)
        for index, values in self.scales.source.blocks(max_bytes):
            ratio = values.astype(np.float32) / _spread(scales, grid, index, values.ndim)
            yield index, np.clip(np.rint(ratio), grid.low, grid.high).astype(np.int8)


def dequantised(weight: Floats, grid: Grid) -> Floats:
    """What a weight in memory becomes by rounding it and making it floats again."""
    scales = Scales(InMemory("weight", weight), grid, "float32")
    integers = materialise(Rounded(scales))
    whole = tuple(slice(0, length) for length in weight.shape)
    result: Floats = integers * _spread(materialise(scales), grid, whole, weight.ndim)
    return result


def _spread(scales: Floats, grid: Grid, index: Index, axes: int) -> Floats:
    """Scales of a block, in a shape that broadcasts over it."""
    if grid.block is None:
        part: Floats = scales[index[grid.axis]]
        return part.reshape([-1 if axis == grid.axis else 1 for axis in range(axes)])
    rows = np.arange(index[grid.axis].start, index[grid.axis].stop) // grid.block
    place = tuple(rows if axis == grid.axis else part for axis, part in enumerate(index))
    chosen: Floats = scales[place]
    return chosen


def _stored_up(scales: Floats, dtype: str) -> Floats:
    """Round up to what can be stored, so that the bound of half a step holds; a block of zeros gets the scale 1."""
    with np.errstate(over="ignore"):
        stored = scales.astype(dtype)
    if not np.isfinite(stored).all():
        raise ExportError(
            f"expected scales within the range of FP16 (65504), found {scales.max():.4g}; use --activations fp32"
        )
    low = stored.astype(np.float32) < scales
    stored[low] = np.nextafter(stored[low], np.array(math.inf, dtype))
    stored[stored == 0] = 1.0
    result: Floats = stored.astype(np.float32)
    return result

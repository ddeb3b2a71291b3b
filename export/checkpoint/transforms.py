"""Rearrangements and transforms that a checkpoint's tensors need on the way to a graph.

In: `LazyTensor`s. Out: wrappers that are `LazyTensor`s themselves: transpose, rows, stack, reshape, elementwise, weight
norm. None holds more than a block. Does not know: file formats, names of models, graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.tensors import (
    Array,
    Block,
    LazyTensor,
    RowReadable,
    array_dtype,
    block_indices,
    item_bytes,
    materialise,
)


@dataclass(frozen=True, slots=True)
class Transposed:
    """A matrix with its two axes swapped: a block of rows becomes a block of columns."""

    tensor: LazyTensor
    """The matrix to transpose, [M, N]."""

    def __post_init__(self) -> None:
        if len(self.tensor.shape) != 2:
            raise CheckpointError(
                f"{self.tensor.name}: expected a matrix to transpose, found shape {self.tensor.shape}"
            )

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, M]."""
        return self.tensor.shape[::-1]

    @property
    def dtype(self) -> str:
        """Stored type of the source."""
        return self.tensor.dtype

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Column blocks; see `LazyTensor.blocks`."""
        for (rows, columns), values in self.tensor.blocks(max_bytes):
            yield (columns, rows), values.T


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of a tensor's first axis; only these are read where the source allows it."""

    tensor: LazyTensor
    """The source, [M, ...]."""
    start: int
    """First row."""
    stop: int
    """One past the last row."""

    def __post_init__(self) -> None:
        if not self.tensor.shape or not 0 <= self.start < self.stop <= self.tensor.shape[0]:
            raise CheckpointError(
                f"{self.name}: expected rows within its first axis, but the tensor has shape {self.tensor.shape}"
            )

    @property
    def name(self) -> str:
        """Name of the source and the range."""
        return f"{self.tensor.name}[{self.start}:{self.stop}]"

    @property
    def shape(self) -> tuple[int, ...]:
        """[stop - start, ...]."""
        return (self.stop - self.start, *self.tensor.shape[1:])

    @property
    def dtype(self) -> str:
        """Stored type of the source."""
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> LazyTensor:
        """A range of this range."""
        return Rows(self.tensor, self.start + start, self.start + stop)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Blocks of the range; see `LazyTensor.blocks`."""
        if isinstance(self.tensor, RowReadable):
            yield from self.tensor.rows(self.start, self.stop).blocks(max_bytes)
            return
        for (rows, *rest), values in self.tensor.blocks(max_bytes):
            low, high = max(rows.start, self.start), min(rows.stop, self.stop)
            if low < high:
                part = values[low - rows.start : high - rows.start]
                yield (slice(low - self.start, high - self.start), *rest), part


@dataclass(frozen=True, slots=True)
class RotaryHalves:
    """Rows of rotated heads, moved so that the pairs (0, 1), (2, 3), ... become (0, D / 2), (1, D / 2 + 1), ...

    A score is a sum over the channels of a head, so their order may change if queries and keys change alike: with rows
    in this order the one rotary embedding, which pairs halves, computes what the interleaved one does.
    """

    tensor: LazyTensor
    """The source, [heads * dim or more, ...]; such as the weight or the bias of a joint projection."""
    dim: int
    """Channels of a head."""
    stop: int
    """Rows from here on (values) stay where they are; a multiple of `dim`."""

    def __post_init__(self) -> None:
        if self.dim % 2 or self.stop % self.dim or not 0 < self.stop <= self.tensor.shape[0]:
            raise CheckpointError(f"{self.name}: expected whole heads of {self.dim} rows, found {self.tensor.shape}")

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """Stored type of the source."""
        return self.tensor.dtype

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """One block for each rotated head, then those of the rest; see `LazyTensor.blocks`."""
        whole = tuple(slice(0, size) for size in self.shape[1:])
        for start in range(0, self.stop, self.dim):
            head = materialise(Rows(self.tensor, start, start + self.dim))
            yield (slice(start, start + self.dim), *whole), np.concatenate([head[::2], head[1::2]])
        if self.stop < self.shape[0]:
            for (rows, *rest), values in Rows(self.tensor, self.stop, self.shape[0]).blocks(max_bytes):
                yield (slice(rows.start + self.stop, rows.stop + self.stop), *rest), values


@dataclass(frozen=True, slots=True)
class Stacked:
    """Several tensors joined along their first axis."""

    tensors: tuple[LazyTensor, ...]
    """The parts in order; they agree in type and in all axes but the first."""

    def __post_init__(self) -> None:
        first = self.tensors[0]
        for part in self.tensors[1:]:
            if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                raise CheckpointError(
                    f"{part.name}: expected {first.dtype} rows of shape {first.shape[1:]} like {first.name}, "
                    f"found {part.dtype} {part.shape[1:]}"
                )

    @property
    def name(self) -> str:
        """Names of the parts."""
        return " + ".join(part.name for part in self.tensors)

    @property
    def shape(self) -> tuple[int, ...]:
        """[sum of first axes, ...]."""
        return (sum(part.shape[0] for part in self.tensors), *self.tensors[0].shape[1:])

    @property
    def dtype(self) -> str:
        """Stored type of the parts."""
        return self.tensors[0].dtype

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Blocks of the parts, moved along axis 0; see `LazyTensor.blocks`."""
        offset = 0
        for part in self.tensors:
            for (rows, *rest), values in part.blocks(max_bytes):
                yield (slice(rows.start + offset, rows.stop + offset), *rest), values
            offset += part.shape[0]


@dataclass(frozen=True, slots=True)
class Zeros:
    """Zeros that a model has no tensor for, such as the row of an id that adds nothing."""

    shape: tuple[int, ...]
    """Lengths of the axes."""
    dtype: str
    """Type that the tensors beside it are stored in."""
    name: str = "zeros"
    """For messages."""

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Blocks of zeros; see `LazyTensor.blocks`."""
        for index in block_indices(self.shape, item_bytes(self.dtype), max_bytes):
            yield index, np.zeros([part.stop - part.start for part in index], array_dtype(self.dtype))


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A tensor with axes of length 1 added or removed (the only reshape that block order cannot disturb)."""

    tensor: LazyTensor
    """The source."""
    shape: tuple[int, ...]
    """The new shape; without its ones it equals the source's without its ones."""

    def __post_init__(self) -> None:
        if [n for n in self.shape if n != 1] != [n for n in self.tensor.shape if n != 1]:
            raise CheckpointError(f"{self.name}: expected shape {self.shape}, found {self.tensor.shape}")

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.tensor.name

    @property
    def dtype(self) -> str:
        """Stored type of the source."""
        return self.tensor.dtype

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Blocks with their slices moved to the new axes; see `LazyTensor.blocks`."""
        for index, values in self.tensor.blocks(max_bytes):
            kept = iter([part for part, n in zip(index, self.tensor.shape, strict=True) if n != 1])
            moved = tuple(slice(0, 1) if n == 1 else next(kept) for n in self.shape)
            yield moved, values.reshape([part.stop - part.start for part in moved])


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A function applied to every block; it must act on each element alone."""

    tensor: LazyTensor
    """The source."""
    function: Callable[[Array], Array]
    """Array in, array of the same shape out."""
    label: str
    """What the function does, for messages."""
    dtype: str = "float32"
    """Type that the function returns."""

    @property
    def name(self) -> str:
        """The function's label and the source."""
        return f"{self.label}({self.tensor.name})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.tensor.shape

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Transformed blocks; see `LazyTensor.blocks`."""
        for index, values in self.tensor.blocks(max_bytes):
            yield index, self.function(values).astype(self.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class WeightNorm:
    """Weight normalisation folded in float64: w = g v / ||v|| (Salimans and Kingma 2016, eq. 2).

    The norm runs over all axes but the first. That is right for transposed convolutions too, whose first axis is the
    INPUT channel, because the layer normalises its stored weight along axis 0.
    """

    gain: LazyTensor
    """g, [C, 1, ...]: one value per index of the direction's first axis."""
    direction: LazyTensor
    """v, [C, ...]."""

    def __post_init__(self) -> None:
        expected = (self.direction.shape[:1] + (1,) * (len(self.direction.shape) - 1)) if self.direction.shape else ()
        if self.gain.shape != expected or not expected:
            raise CheckpointError(
                f"{self.gain.name}: expected weight-norm gains of shape {expected} for directions of shape "
                f"{self.direction.shape}, found {self.gain.shape}; only normalisation along axis 0 is supported"
            )

    @property
    def name(self) -> str:
        """Name of the direction."""
        return self.direction.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the direction."""
        return self.direction.shape

    @property
    def dtype(self) -> str:
        """The folded weight is float32."""
        return "float32"

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Folded blocks, in two passes over the direction; see `LazyTensor.blocks`."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a zero direction gives NaN, which checked_blocks names
            scale = materialise(self.gain).astype(np.float64).reshape(-1) / self._norms(max_bytes)  # [C]
            for index, values in self.direction.blocks(max_bytes):
                factor = scale[index[0]].reshape((-1,) + (1,) * (values.ndim - 1))
                yield index, (values.astype(np.float64) * factor).astype(np.float32)

    def _norms(self, max_bytes: int) -> npt.NDArray[np.float64]:
        squares = np.zeros(self.shape[0], np.float64)
        for index, values in self.direction.blocks(max_bytes):
            rows = values.astype(np.float64).reshape(values.shape[0], -1)  # [c, rest]
            squares[index[0]] += (rows * rows).sum(axis=1)
        return np.sqrt(squares)

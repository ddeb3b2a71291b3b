"""Values of a checkpoint's tensors that lie elsewhere in a graph's: the same numbers in another order.

In: `LazyTensor`s. Out: wrappers that are `LazyTensor`s themselves: transpose, rows, rotary halves, stack, reshape. None
holds more than a block. Computes nothing (see `checkpoint.transforms`); does not know: file formats, names of models,
graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.tensors import Block, LazyTensor, RowReadable, materialise


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

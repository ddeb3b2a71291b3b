"""Tensors that are read block by block, and the two ways to read one: block by checked block, or whole.

In: any `LazyTensor` (of a file, `InMemory`, or a wrapper). Out: blocks or arrays. One block is in
memory at a time, unless `materialise` is called. Does not know: file formats, names of models, graphs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import CheckpointError

Array = npt.NDArray[Any]
Index = tuple[slice, ...]
Block = tuple[Index, Array]

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "bool": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
}  # fmt: skip
FLOATING = frozenset({"float64", "float32", "float16", "bfloat16"})
DEFAULT_BLOCK_BYTES = 16 * 2**20
MAX_AXES = 16


class LazyTensor(Protocol):
    """A named tensor whose values are read in blocks."""

    @property
    def name(self) -> str:
        """Where the values come from (file and key), for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; `()` is a scalar."""

    @property
    def dtype(self) -> str:
        """Stored type: a key of `ITEM_BYTES`."""

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Disjoint blocks that cover the tensor, in no promised order.

        Args:
            max_bytes: upper bound of a block's source bytes (a single element may exceed it).

        Yields:
            Slices into `shape`, one per axis, and values in native byte order; bfloat16 arrives as float32, exactly.
        """


@runtime_checkable
class RowReadable(Protocol):
    """A tensor that can read a range of its first axis without reading the rest."""

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows [start, stop) of axis 0."""


def item_bytes(dtype: str) -> int:
    """Bytes of one stored element of a type named as in `ITEM_BYTES`."""
    return ITEM_BYTES[dtype]


def array_dtype(dtype: str) -> np.dtype[Any]:
    """Numpy type in which blocks of a stored type arrive."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def source_bytes(tensor: LazyTensor) -> int:
    """Bytes that a tensor takes in its stored type."""
    return math.prod(tensor.shape) * item_bytes(tensor.dtype)


def total_bytes(tensors: Iterable[LazyTensor]) -> int:
    """Bytes that several tensors take in their stored types."""
    return sum(source_bytes(tensor) for tensor in tensors)


def decode(data: npt.NDArray[np.uint8], dtype: str) -> Array:
    """Little-endian bytes (at least one element) as a flat array in native order; bfloat16 as float32, exactly."""
    if dtype == "bool":
        return data.astype(np.bool_)
    if dtype == "bfloat16":
        bits = np.left_shift(np.frombuffer(data, np.dtype("<u2")).astype(np.uint32), np.uint32(16))
        exact: Array = bits.view(np.float32)
        return exact
    values: Array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return values.astype(np.dtype(dtype), copy=False)


def block_indices(shape: tuple[int, ...], item_size: int, max_bytes: int) -> Iterator[Index]:
    """Cut a row-major tensor into runs that are contiguous in memory.

    Args:
        shape: lengths of the axes.
        item_size: bytes of one element.
        max_bytes: upper bound of one run; at least one element is given.

    Yields:
        One slice per axis: single indices first, then one partial axis, then whole axes.
    """
    if 0 in shape:
        return
    axis, inner = _partial_axis(shape, item_size, max_bytes)
    if axis == len(shape):
        yield tuple(slice(0, length) for length in shape)
        return
    step = max(1, max_bytes // inner)
    tail = tuple(slice(0, length) for length in shape[axis + 1 :])
    for prefix in itertools.product(*(range(length) for length in shape[:axis])):
        head = tuple(slice(i, i + 1) for i in prefix)
        for start in range(0, shape[axis], step):
            yield (*head, slice(start, min(start + step, shape[axis])), *tail)


def _partial_axis(shape: tuple[int, ...], item_size: int, max_bytes: int) -> tuple[int, int]:
    """First axis along which a cut makes runs small enough, and the bytes of one step along it."""
    remaining = math.prod(shape) * item_size
    if remaining <= max_bytes or not shape:
        return len(shape), item_size
    for axis, length in enumerate(shape):
        remaining //= length
        if remaining <= max_bytes:
            return axis, remaining
    return len(shape) - 1, item_size


@dataclass(frozen=True, slots=True)
class InMemory:
    """An array that is already there (small constants, tests)."""

    name: str
    """Where the values come from, for messages."""
    array: Array
    """The values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> str:
        """Stored type."""
        return str(self.array.dtype)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows [start, stop) of axis 0, without a copy."""
        return InMemory(f"{self.name}[{start}:{stop}]", self.array[start:stop])

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Views into the array; see `LazyTensor.blocks`."""
        for index in block_indices(self.shape, self.array.itemsize, max_bytes):
            yield index, self.array[index]


def checked_blocks(tensor: LazyTensor, max_bytes: int = DEFAULT_BLOCK_BYTES) -> Iterator[Block]:
    """Read a tensor block by block and refuse values that no trained model has.

    Args:
        tensor: what to read.
        max_bytes: upper bound of a block's source bytes.

    Yields:
        Blocks as `LazyTensor.blocks` gives them.

    Raises:
        CheckpointError: a value is NaN or infinite, or the blocks do not cover the tensor.
    """
    seen = 0
    for index, values in tensor.blocks(max_bytes):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise CheckpointError(
                f"{tensor.name}: expected finite weights, found {count} NaN or infinite values; "
                "the file is damaged or training diverged: download it again or use another checkpoint"
            )
        seen += values.size
        yield index, values
    if seen != math.prod(tensor.shape):
        raise CheckpointError(f"{tensor.name}: expected {math.prod(tensor.shape)} values, read {seen}")


def materialise(tensor: LazyTensor, max_bytes: int = DEFAULT_BLOCK_BYTES) -> Array:
    """Read a whole tensor into memory; meant for small ones and for tests.

    Returns:
        Array of the tensor's shape; bfloat16 arrives as float32.

    Raises:
        CheckpointError: as `checked_blocks`.
    """
    whole = np.empty(tensor.shape, array_dtype(tensor.dtype))
    for index, values in checked_blocks(tensor, max_bytes):
        whole[index] = values
    return whole

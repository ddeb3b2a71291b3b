"""Tensors that lie in a file with strides: transposed or sliced views that were saved as they were.

In: a place in a file, shape and strides. Out: a `LazyTensor`. Reads only the span of each block, so memory stays
bounded whatever the layout. Does not know: containers, torch.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.file_access import SourceFile
from voxedge.export.checkpoint.tensors import MAX_AXES, Array, Block, Index, LazyTensor, decode, item_bytes


@dataclass(frozen=True, slots=True)
class StridedTensor:
    """A view into one storage of a file, little-endian; elements must not overlap."""

    file: SourceFile
    """The file."""
    key: str
    """Name inside the file."""
    shape: tuple[int, ...]
    """Lengths of the axes."""
    strides: tuple[int, ...]
    """Elements between neighbours along each axis, not negative."""
    dtype: str
    """Stored type."""
    offset: int
    """First element's byte in the file."""
    checksum: int | None = None
    """CRC-32 of the tensor's bytes, if it is exactly one checksummed storage in row-major order."""

    def __post_init__(self) -> None:
        inner = 1  # elements spanned by the faster axes
        for axis in () if 0 in self.shape else self._order()[::-1]:
            if self.shape[axis] > 1 and self.strides[axis] < inner:
                raise CheckpointError(
                    f"{self.name}: shape {self.shape} with strides {self.strides} overlaps itself (an expanded view); "
                    "save it with .contiguous(), as safetensors"
                )
            inner += self.strides[axis] * (self.shape[axis] - 1)

    @property
    def name(self) -> str:
        """File and key."""
        return f"{self.file.path.name}: {self.key}"

    @property
    def span_bytes(self) -> int:
        """Bytes from the first to the last element."""
        return _span(self.shape, self.strides) * item_bytes(self.dtype)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows [start, stop) of axis 0; nothing else is read."""
        place = self.offset + start * self.strides[0] * item_bytes(self.dtype)
        return StridedTensor(self.file, self.key, (stop - start, *self.shape[1:]), self.strides, self.dtype, place)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Blocks in the order in which they lie in the file; see `LazyTensor.blocks`.

        Raises:
            CheckpointError: the bytes do not have the checksum that the file gives.
        """
        order = self._order()
        shape = tuple(self.shape[axis] for axis in order)
        strides = tuple(self.strides[axis] for axis in order)
        back = tuple(int(axis) for axis in np.argsort(order))
        size, checksum = item_bytes(self.dtype), 0
        with self.file.opened() as descriptor:
            for index in _strided_indices(shape, strides, size, max_bytes):
                lengths = tuple(part.stop - part.start for part in index)
                place = sum(part.start * stride for part, stride in zip(index, strides, strict=True)) * size
                data = self.file.read(descriptor, self.offset + place, _span(lengths, strides) * size)
                checksum = zlib.crc32(data.data, checksum) if self.checksum is not None else 0
                values = _view(decode(data, self.dtype), lengths, strides)
                yield tuple(index[axis] for axis in back), values.transpose(back)
        if self.checksum not in (None, checksum):
            raise CheckpointError(
                f"{self.name}: expected checksum {self.checksum:08x}, found {checksum:08x}; the file is damaged: "
                "download it again"
            )

    def _order(self) -> tuple[int, ...]:
        """Axes from the slowest to the fastest in the file."""
        return tuple(sorted(range(len(self.shape)), key=lambda axis: (-self.strides[axis], self.shape[axis] == 1)))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor without gaps."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[: len(shape)] if shape else ()


def checked_view(tensor: StridedTensor, storage_offset: int, storage_bytes: int) -> StridedTensor:
    """Check a view against the storage it claims to lie in.

    Args:
        tensor: the view; its offset already includes `storage_offset`.
        storage_offset: bytes between the storage's start and the first element.
        storage_bytes: size of the storage in the file.

    Raises:
        CheckpointError: too many axes, negative sizes, or elements outside the storage.
    """
    values = (*tensor.shape, *tensor.strides, storage_offset)
    fits = len(tensor.shape) == len(tensor.strides) <= MAX_AXES and all(0 <= value < 2**62 for value in values)
    if not fits or (0 not in tensor.shape and storage_offset + tensor.span_bytes > storage_bytes):
        raise CheckpointError(
            f"{tensor.name}: shape {tensor.shape} with strides {tensor.strides} does not fit the {storage_bytes} bytes "
            "that the file holds for it; download the file again"
        )
    return tensor


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + 1


def _view(flat: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    steps = tuple(stride * flat.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


def _strided_indices(
    shape: tuple[int, ...], strides: tuple[int, ...], item_size: int, max_bytes: int
) -> Iterator[Index]:
    """Blocks whose spans are at most `max_bytes`, for axes sorted from slow to fast."""
    if 0 in shape:
        return
    if not shape:
        yield ()
        return
    axis = 0
    while axis < len(shape) - 1 and strides[axis] * item_size > max_bytes:
        axis += 1
    step = max(1, max_bytes // max(strides[axis] * item_size, 1))
    tail = tuple(slice(0, length) for length in shape[axis + 1 :])
    for prefix in itertools.product(*(range(length) for length in shape[:axis])):
        head = tuple(slice(i, i + 1) for i in prefix)
        for start in range(0, shape[axis], step):
            yield (*head, slice(start, min(start + step, shape[axis])), *tail)

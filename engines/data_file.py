"""Write tensors into the data file of a graph: aligned, block by block, packed as ONNX packs them.

In: lazily read tensors and the types they are stored in. Out: one file, every tensor of a page or more on a 4 KiB
boundary so that it can be memory-mapped. What is resident is one block of one tensor, whatever its size. Does not know
graphs.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ExportError
from voxedge.engines.lazy import Index, LazyTensor, checked_blocks

ALIGNMENT = 4096
"""Page size: an unaligned tensor could not be mapped without a copy."""
SMALL_ALIGNMENT = 64
"""Of tensors smaller than a page, which share one: a cache line, so that vector loads stay aligned. A vocoder has some
two hundred; with a page for each the rounded one would be half padding."""
BLOCK_BYTES = 8 * 2**20
INT4 = "int4"
"""Stored two to a byte, the first in the low half; its blocks arrive as int8, one value each."""

Progress = Callable[[int], None]
"""Called with the number of bytes just read."""
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of one tensor in the data file."""

    source: LazyTensor
    """Where the values come from; floats are cast, integers must arrive as they are stored."""
    dtype: str
    """Stored type: a name of numpy, or `int4`."""
    offset: int
    """First byte."""

    @property
    def size(self) -> int:
        """Bytes."""
        return stored_bytes(self.source.shape, self.dtype)


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that a tensor takes in the file."""
    count = math.prod(shape)
    return (count + 1) // 2 if dtype == INT4 else count * np.dtype(dtype).itemsize


def lay_out(tensors: Mapping[Key, tuple[LazyTensor, str]]) -> dict[Key, Slot]:
    """Give every tensor its place, in the given order."""
    slots: dict[Key, Slot] = {}
    offset = 0
    for key, (source, dtype) in tensors.items():
        size = stored_bytes(source.shape, dtype)
        boundary = ALIGNMENT if size >= ALIGNMENT else SMALL_ALIGNMENT
        slots[key] = Slot(source, dtype, -(-offset // boundary) * boundary)
        offset = slots[key].offset + size
    return slots


def file_bytes(slots: Iterable[Slot]) -> int:
    """Size that the data file will have."""
    return max((slot.offset + slot.size for slot in slots), default=0)


def write_data(path: Path, slots: Mapping[Key, Slot], progress: Progress) -> None:
    """Write the file.

    Raises:
        ExportError: A value does not fit the type it is stored in.
        CheckpointError: A source is damaged.
    """
    with path.open("w+b") as file:
        os.ftruncate(file.fileno(), file_bytes(slots.values()))
        for slot in slots.values():
            for index, block in checked_blocks(slot.source, BLOCK_BYTES):
                if slot.dtype == INT4:
                    _write_nibbles(file.fileno(), slot, index, block)
                else:
                    _write_block(file.fileno(), slot, index, _cast(block, slot))
                progress(block.nbytes)


def _cast(block: npt.NDArray[Any], slot: Slot) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = block.astype(slot.dtype, copy=False)
    if slot.dtype == "float16" and not np.isfinite(cast).all():
        raise ExportError(
            f"{slot.source.name}: expected weights within the range of FP16 (65504), found {np.abs(block).max():.4g}; "
            "export this checkpoint with --precision fp32"
        )
    return cast


def _write_block(descriptor: int, slot: Slot, index: Index, block: npt.NDArray[Any]) -> None:
    """Write one block, as few runs as its place in the tensor allows."""
    for start, run in _runs(slot, index, block):
        data = np.ascontiguousarray(run).reshape(-1).view(np.uint8)
        _write_all(descriptor, data, slot.offset + start * np.dtype(slot.dtype).itemsize)


def _write_nibbles(descriptor: int, slot: Slot, index: Index, block: npt.NDArray[Any]) -> None:
    """Write one block of values -8 .. 7; a byte that another block shares keeps that one's half."""
    for start, run in _runs(slot, index, block):
        values = np.ascontiguousarray(run).reshape(-1)
        lead, count = start % 2, values.size
        halves = np.zeros(count + lead + (count + lead) % 2, np.uint8)
        halves[lead : lead + count] = values.view(np.uint8) & 15
        packed: npt.NDArray[np.uint8] = (halves[0::2] | (halves[1::2] << 4)).astype(np.uint8, copy=False)
        place = slot.offset + start // 2
        if lead:
            packed[0] |= os.pread(descriptor, 1, place)[0]
        if (count + lead) % 2:
            packed[-1] |= os.pread(descriptor, 1, place + packed.size - 1)[0]
        _write_all(descriptor, packed, place)


def _runs(slot: Slot, index: Index, block: npt.NDArray[Any]) -> Iterable[tuple[int, npt.NDArray[Any]]]:
    """Parts of a block that lie together in the tensor, each with the element it starts at."""
    shape = slot.source.shape
    partial = [axis for axis, part in enumerate(index) if part.stop - part.start != shape[axis]]
    split = partial[-1] if partial else 0
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    base = sum(part.start * stride for part, stride in zip(index, strides, strict=True))
    for prefix in itertools.product(*(range(size) for size in block.shape[:split])):
        yield base + sum(p * stride for p, stride in zip(prefix, strides, strict=False)), block[prefix]


def _write_all(descriptor: int, run: npt.NDArray[np.uint8], offset: int) -> None:
    data = run.data
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written

"""Positioned reads of a file that may lie about itself, and row-major tensors that lie in one.

In: a path. Out: byte ranges, read into fresh arrays with `pread`, and `LazyTensor`s. Never maps a file: mapped pages
count as resident memory. Does not know: formats.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.engines.lazy import Block, LazyTensor, block_indices, decode, item_bytes

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file and the size it had when it was opened first."""

    path: Path
    """The file."""
    size: int
    """Its bytes."""

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Look at a file before reading it.

        Raises:
            MissingResourceError: there is nothing at the path.
            CheckpointError: it is no regular file.
        """
        try:
            status = path.stat()
        except FileNotFoundError as error:
            message = f"{path}: no such file; check the path, or download the checkpoint completely"
            raise MissingResourceError(message) from error
        except (OSError, ValueError) as error:  # a name too long, a zero byte in it, a folder without permission
            raise CheckpointError(f"{path}: cannot be opened ({error}); check the path") from error
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a file, found something else; give the weight file itself")
        return cls(path, status.st_size)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A file descriptor, closed at the end of the block."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, descriptor: int, offset: int, count: int) -> Bytes:
        """Read exactly `count` bytes at `offset`.

        Raises:
            CheckpointError: the range is outside the file, or the file ended early.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CheckpointError(f"{self.path}: expected bytes up to {offset + count}, the file has {self.size}")
        buffer = np.empty(count, np.uint8)
        view, done = buffer.data, 0
        while done < count:
            try:
                got = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: reading failed at {offset + done} ({error.strerror})") from error
            if got == 0:
                raise CheckpointError(f"{self.path}: ended at byte {offset + done}; it was cut off while being read")
            done += got
        return buffer


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A row-major, little-endian tensor at a place in a file."""

    file: SourceFile
    """The file."""
    key: str
    """Name inside the file."""
    shape: tuple[int, ...]
    """Lengths of the axes."""
    dtype: str
    """Stored type."""
    offset: int
    """First byte of the values in the file."""

    @property
    def name(self) -> str:
        """File and key."""
        return f"{self.file.path.name}: {self.key}"

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows [start, stop) of axis 0; nothing else is read."""
        row_bytes = math.prod(self.shape[1:]) * item_bytes(self.dtype)
        return FileTensor(
            self.file, self.key, (stop - start, *self.shape[1:]), self.dtype, self.offset + start * row_bytes
        )

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Contiguous blocks, one `pread` each; see `LazyTensor.blocks`."""
        size = item_bytes(self.dtype)
        position = self.offset
        with self.file.opened() as descriptor:
            for index in block_indices(self.shape, size, max_bytes):
                lengths = [part.stop - part.start for part in index]
                count = math.prod(lengths) * size
                values = decode(self.file.read(descriptor, position, count), self.dtype)
                position += count  # runs come in row-major order
                yield index, values.reshape(lengths)

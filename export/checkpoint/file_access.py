"""Positioned reads of a file that may lie about itself.

In: a path. Out: byte ranges, read into fresh arrays with `pread`. Never maps a file: mapped pages count as resident
memory. Does not know: formats.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import CheckpointError, MissingResourceError

MAX_NAME_BYTES = 255
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


def path_inside(folder: Path, relative: str, root: Path, where: str) -> Path:
    """A path that a configuration gives, relative to its folder and inside a root.

    The comparison is by name, so links that a download tool makes inside the folder work.

    Raises:
        CheckpointError: the path is absolute or leaves the root.
    """
    target = Path(os.path.normpath(folder.absolute() / relative))
    plain = relative and not set(relative) & {"\\", "\0"} and not Path(relative).is_absolute()
    short = len(relative.encode(errors="replace")) <= MAX_NAME_BYTES
    if not plain or not short or not target.is_relative_to(Path(os.path.normpath(root.absolute()))):
        raise CheckpointError(f"{where}: expected a relative path inside {root}, found {relative[:80]!r}")
    return target


def sibling_root(folder: Path) -> Path:
    """The folder above a checkpoint, by name."""
    return Path(os.path.normpath(folder.absolute())).parent

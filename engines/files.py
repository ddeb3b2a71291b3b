"""Small, careful file operations that the bundle and the engines share.

In: paths and bytes. Out: hashes, decoded JSON, atomically replaced files, and free space that was checked.
Does not know what a bundle or an engine is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from voxedge.engines.errors import BundleError, ExportError, VoxedgeError

CHUNK_BYTES = 8 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def format_bytes(count: int) -> str:
    """A size for people, in decimal units.

    Example:
        >>> format_bytes(1_234_000_000)
        '1.23 GB'
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex digits, read in chunks of `CHUNK_BYTES`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of bytes in memory, in hex digits."""
    digest, view = hashlib.sha256(), memoryview(data).cast("B")
    for start in range(0, len(view), CHUNK_BYTES):
        digest.update(view[start : start + CHUNK_BYTES])
    return digest.hexdigest()


def read_json(path: Path, max_bytes: int) -> object:
    """Decode a JSON file from outside; its size is checked before it is read.

    Raises:
        BundleError: It is no regular file, too large, not UTF-8, not JSON, or repeats a key.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: expected a regular file")
    if status.st_size > max_bytes:
        raise BundleError(f"{path}: expected at most {format_bytes(max_bytes)}, found {format_bytes(status.st_size)}")
    try:
        text = path.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BundleError(f"{path}: nested too deeply") from error
    except ValueError as error:
        raise BundleError(f"{path}: expected JSON in UTF-8, found {error}") from error


def read_text(path: Path, max_bytes: int = 1 << 20) -> str:
    """The start of a small text file of the system; empty where there is none, or nothing that can be read at once."""
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return ""
        with path.open("rb") as file:
            return file.read(max_bytes).decode("utf-8", errors="replace")
    except OSError:
        return ""


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace a file in one step; a killed process leaves the old content or the new."""
    write_partial(path, data).replace(path)
    sync_path(path.parent)


def write_partial(path: Path, data: bytes | memoryview) -> Path:
    """Write what shall become `path` to a hidden file beside it and flush it; removed if interrupted."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    view = memoryview(data).cast("B")
    try:
        with partial.open("wb") as file:
            for start in range(0, len(view), CHUNK_BYTES):  # Ctrl-C is heard between two of them
                file.write(view[start : start + CHUNK_BYTES])
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def sync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def user_cache_folder() -> Path:
    """Where what can be made again is kept: XDG's cache folder; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voxedge"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds `folder`, which need not exist yet."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def ensure_free_space(folder: Path, needed_bytes: int, failure: type[VoxedgeError] = ExportError) -> None:
    """Refuse to start work that the disk has no room for.

    Args:
        folder: Where the work goes; need not exist yet.
        needed_bytes: What it will write at most, in bytes.
        failure: The error to raise.

    Raises:
        VoxedgeError: An error of the type `failure`: the disk has less than that.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise failure(
            f"{folder}: expected {format_bytes(needed_bytes)} of free disk space, found {format_bytes(free)}; "
            "free some, or choose a folder on another disk"
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"the number {name}")

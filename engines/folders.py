"""Replace a folder in one step, whatever kills the process.

In: a finished folder and the name it shall have. Out: that name holds the old folder or the new one at any moment, on
Linux file systems with renameat2; elsewhere it can be missing for an instant, and `recover` mends what a kill in that
instant left. Abandoned folders are told from living ones by locks, not by process ids, which containers reuse.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import shutil
from pathlib import Path

from voxedge.engines.files import sync_path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_log = logging.getLogger(__name__)


def partial_path(target: Path) -> Path:
    """Where this process writes what shall become `target`."""
    return target.with_name(f".{target.name}.partial-{os.getpid()}")


def put_in_place(partial: Path, target: Path) -> None:
    """Give `partial` the name `target`; afterwards `partial` holds what was there before, if anything."""
    if not target.exists():
        partial.rename(target)
    elif not exchange(partial, target):
        _replace_in_two_steps(partial, target)
    sync_path(target.parent)


def _replace_in_two_steps(partial: Path, target: Path) -> None:
    previous = _previous_path(target)
    remove_folder(previous)
    lock = lock_folder(target)
    try:
        target.rename(previous)  # killed after this line: `recover` brings it back
        partial.rename(target)
    finally:
        if lock is not None:
            os.close(lock)
    remove_folder(previous)


def recover(target: Path) -> None:
    """Bring back a folder whose replacement was killed between its two renames."""
    previous = _previous_path(target)
    if target.exists() or not previous.is_dir():
        return
    lock = lock_folder(previous)
    if lock is not None:
        _log.warning("%s: a process was killed while it replaced the folder; the old one was restored", target)
        previous.rename(target)
        os.close(lock)


def remove_abandoned(target: Path) -> None:
    """Delete what killed processes left beside `target`; the folders of living ones are locked."""
    for folder in target.parent.glob(f".{target.name}.partial-*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        lock = lock_folder(folder)
        if lock is not None:
            _log.info("removing %s, left by a process that was killed", folder)
            remove_folder(folder)
            os.close(lock)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step (renameat2 with RENAME_EXCHANGE).

    Returns:
        Whether they were swapped; False where this system or file system has no such call.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned handle is closed or the process dies, however it dies.

    Returns:
        An open file descriptor, or None where a living process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:  # a network file system without locks: nobody's folder is ever taken for abandoned
        _log.debug("%s: no lock (%s)", folder, error)
        os.close(handle)
        return None
    return handle


def remove_folder(folder: Path) -> None:
    """Delete a folder tree; what cannot be deleted is logged and left."""

    def tell(_: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
        _log.warning("%s was not deleted: %s", path, info[1])

    if folder.is_dir():
        shutil.rmtree(folder, onerror=tell)


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of all files below `folder`."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _previous_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")

"""Paths that a checkpoint's configuration gives, and the files they lead to.

In: a folder and a relative path. Out: a path inside a root. Does not know: formats.
"""

from __future__ import annotations

import os
from pathlib import Path

from voxedge.engines.errors import CheckpointError
from voxedge.engines.source_files import SourceFile

__all__ = ["MAX_NAME_BYTES", "SourceFile", "path_inside", "sibling_root"]

MAX_NAME_BYTES = 255


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

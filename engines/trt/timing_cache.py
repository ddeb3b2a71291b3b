"""The timing cache: kernel times that TensorRT measured, kept between builds of one device and version.

In: a file, or none yet. Out: a cache for one build, saved afterwards. A cache that TensorRT refuses is moved aside, not
deleted, and whatever is wrong with it never costs an engine.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from voxedge.engines import files
from voxedge.engines.trt.api import Library

MAX_BYTES = 1 << 30
_log = logging.getLogger(__name__)


def load_timing_cache(library: Library, builder_config: Any, path: Path) -> Any:  # noqa: ANN401
    """Give a build its cache: the one in `path`, or an empty one; None where the library has none."""
    if not library.has_timing_cache:
        return None
    content = _read(path)
    cache = builder_config.create_timing_cache(content)
    if cache is None or not builder_config.set_timing_cache(cache, False):
        _log.warning("%s is damaged, or of another device or library: it is not used", path)
        _move_aside(path)
        cache = builder_config.create_timing_cache(b"")
        builder_config.set_timing_cache(cache, False)
    return cache


def save_timing_cache(cache: Any, path: Path) -> None:  # noqa: ANN401
    """Keep what a build measured; a disk that refuses it is told about, and costs the next build its time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, memoryview(cache.serialize()))
    except OSError as error:
        _log.warning("the timing cache could not be saved, so later builds take as long as this one: %s", error)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        if path.stat().st_size > MAX_BYTES:
            _log.warning("%s is larger than a timing cache can be: it is not used", path)
            _move_aside(path)
            return b""
        return path.read_bytes()
    except OSError as error:
        _log.warning("the timing cache cannot be read: %s", error)
        return b""


def _move_aside(path: Path) -> None:
    try:
        path.replace(path.with_name(f"{path.name}.refused"))
    except OSError as error:
        _log.debug("%s stays where it is: %s", path, error)

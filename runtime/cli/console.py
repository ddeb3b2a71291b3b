"""What the command line shows: results on stdout, everything else on stderr.

In: results, notes, warnings and progress of a verb. Out: text for people or one JSON object, log handlers, progress
bars. The only module of voxedge that writes to a terminal. Does not decide exit codes.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from voxedge.engines.errors import InputError
from voxedge.runtime.cli.common import GlobalOptions

Progress = Callable[[str, int, int], None]
"""What long tasks call: the step's name, how much of it is done, how much there is (0 when that is unknown)."""

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class Console:
    """Where a verb sends what it has to say."""

    def __init__(self, options: GlobalOptions) -> None:
        self.options = options

    def result(self, data: Mapping[str, Any], text: str) -> None:
        """Print the result of a verb: `data` with --json, else `text`."""
        print(json.dumps(data, ensure_ascii=False, default=str) if self.options.as_json else text, flush=True)

    def failure(self, kind: str, message: str, exit_code: int) -> None:
        """Print an error on stderr, and with --json as an object on stdout too."""
        print(f"error: {message}", file=sys.stderr, flush=True)
        if self.options.as_json:
            error = {"type": kind, "message": message, "exit_code": exit_code}
            print(json.dumps({"error": error}, ensure_ascii=False), flush=True)

    def note(self, text: str) -> None:
        """Tell people something on stderr; silent with -q."""
        if not self.options.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Warn on stderr."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback that draws one bar for each step where stderr is a terminal, and is silent elsewhere."""
        if not self.options.progress or self.options.quiet or not sys.stderr.isatty():
            yield lambda step, done, total: None
            return
        bars = _Bars()
        try:
            yield bars.update
        finally:
            bars.close()


class _Bars:
    """One tqdm bar at a time; a new step's name ends the last one."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._step = ""

    def update(self, step: str, done: int, total: int) -> None:
        if self._bar is None or step != self._step:
            self.close()
            self._bar = tqdm(desc=step, total=total or None, file=sys.stderr, unit_scale=True, dynamic_ncols=True)
            self._step = step
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, as wide as their widest cell.

    Example:
        >>> print(table([["a", "1"], ["long", "2"]]))
        a     1
        long  2
    """
    lines = [list(header), *rows] if header else list(rows)
    if not lines:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@contextmanager
def logging_to(options: GlobalOptions) -> Iterator[None]:
    """Send voxedge's log to stderr at the level of -v, and all of it to --log-file.

    Raises:
        InputError: The log file cannot be written.
    """
    logger = logging.getLogger("voxedge")
    level, propagate = logger.level, logger.propagate
    handlers = [_stderr_handler(options)]
    if options.log_file is not None:
        handlers.append(_file_handler(options))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _stderr_handler(options: GlobalOptions) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.ERROR if options.quiet else _LEVELS[min(options.verbosity, 2)])
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return handler


def _file_handler(options: GlobalOptions) -> logging.Handler:
    try:
        handler = logging.FileHandler(str(options.log_file), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"expected a writable --log-file, found: {error}; name a file in an existing folder"
        ) from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler

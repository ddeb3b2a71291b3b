"""What a bundle says while it is calibrated: named sets of texts, or the user's JSONL.

In: the name of a set or a file with one JSON object on each line: `text`, and `description` and `seed` where wanted.
Out: a checked `CalibrationSet` with a hash over what it says. Does not speak it (see `calibration.collect`).
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from voxedge.engines.errors import ConfigError, InputError, MissingResourceError
from voxedge.engines.files import hash_bytes
from voxedge.engines.json_lines import read_json_lines
from voxedge.engines.records import to_dict
from voxedge.runtime.prompt import check_text

FEW_LINES = 8
"""Fewer say little about the range of an activation."""

_FOLDER = Path(__file__).parent / "data" / "sets"
_SUFFIX = ".jsonl"
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to say."""

    text: str
    description: str = ""
    """Of the voice; empty for none."""
    seed: int | None = None
    """None takes the set's seed plus the number of the line, from 0."""

    def __post_init__(self) -> None:
        try:
            check_text(self.text, "`text`")
            if self.description:
                check_text(self.description, "`description`")
        except InputError as error:
            raise ConfigError(str(error)) from error
        if self.seed is not None and not 0 <= self.seed <= _MAX_SEED:
            raise ConfigError(f"expected a `seed` of 0 .. {_MAX_SEED}, found {str(self.seed)[:40]}")


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Lines to say, in their order."""

    name: str
    """Of a set of voxedge's, or the user's file."""
    lines: tuple[Line, ...]

    @property
    def sha256(self) -> str:
        """Of what is said; spaces, key order and empty lines of the file do not matter."""
        return hash_bytes(json.dumps([to_dict(line) for line in self.lines], sort_keys=True).encode())

    @property
    def warning(self) -> str | None:
        """What to know before the statistics are trusted."""
        if len(self.lines) >= FEW_LINES:
            return None
        return (
            f"{self.name} has {len(self.lines)} line{'s' * (len(self.lines) > 1)}: ranges seen in so little speech may "
            f"be too narrow for other texts; give {FEW_LINES} lines or more, or take a set of voxedge's "
            f"({', '.join(set_names())})"
        )


def set_names() -> tuple[str, ...]:
    """Sets that come with the package."""
    return tuple(sorted(path.name.removesuffix(_SUFFIX) for path in _FOLDER.glob(f"*{_SUFFIX}")))


def load_set(name: str) -> CalibrationSet:
    """A set by its name, or a user's file.

    Args:
        name: Of a set that comes with the package, or a path that ends in `.jsonl`.

    Raises:
        InputError: The name is unknown, or the file is too large, empty, no UTF-8, no JSON, or says nothing useful.
        MissingResourceError: There is no such file.
    """
    if name in set_names():
        return _read(name, _FOLDER / f"{name}{_SUFFIX}")
    path = Path(name)
    if path.suffix != _SUFFIX:
        close = difflib.get_close_matches(name, set_names(), n=1)
        raise InputError(
            f"expected a set of {', '.join(set_names())} or a file that ends in {_SUFFIX}, found {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    if not path.exists():
        raise MissingResourceError(f"no such calibration set: {path}; the sets of voxedge are {', '.join(set_names())}")
    return _read(name, path)


def _read(name: str, path: Path) -> CalibrationSet:
    lines = read_json_lines(path, Line, '{"text": "Good morning."}')
    return CalibrationSet(name, tuple(line for _, line in lines))

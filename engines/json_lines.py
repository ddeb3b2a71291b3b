"""Files with one JSON object on each line, from outside.

In: a path, and the frozen dataclass that every line must fit. Out: the records with the numbers of their lines. Empty
lines are passed over; a byte order mark is no text. Does not know what the records mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from voxedge.engines.errors import ConfigError, InputError
from voxedge.engines.files import format_bytes
from voxedge.engines.records import from_dict

MAX_BYTES = 16 << 20
"""Of a file; a larger one was named by mistake."""
MAX_LINES = 10_000
"""Of a file."""

Record = TypeVar("Record")


def read_json_lines(path: Path, kind: type[Record], example: str) -> list[tuple[int, Record]]:
    """Read and check a whole file.

    Args:
        path: Of the file.
        kind: What a line must hold; a key that it has no field for is an error.
        example: Of a line, for messages.

    Returns:
        Line numbers, from 1, and records.

    Raises:
        InputError: The file is too large, empty, no UTF-8 or no JSON, or a line does not fit; names the line.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)  # not stat: a pipe or a device has no size
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: expected at most {format_bytes(MAX_BYTES)}; give a part of it")
    records = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if raw.strip():
            records.append((number, _parse(raw, kind, f"{path}, line {number}", example)))
        if len(records) > MAX_LINES:
            raise InputError(f"{path}: expected at most {MAX_LINES} lines, found more; give a part of it")
    if not records:
        raise InputError(f"{path}: expected lines such as {example}, found an empty file")
    return records


def _parse(raw: bytes, kind: type[Record], where: str, example: str) -> Record:
    try:
        return from_dict(kind, json.loads(raw.decode("utf-8")), where)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8, found byte 0x{raw[error.start]:02x} at its offset {error.start}; "
            "convert the file, for instance with `iconv -f ISO-8859-1 -t UTF-8`"
        ) from error
    except ConfigError as error:
        text = str(error)
        raise InputError(text if text.startswith(where) else f"{where}: {text}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON such as {example}, found {error}") from error

"""The text to speak: from the command line, a file or a pipe.

In: the parsed arguments of `say`. Out: one string that is valid Unicode, and the bundle's folder where the words on the
command line name one. Does not normalise or split the text; that is the runtime's.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.engines.files import format_bytes
from voxedge.engines.manifest import MANIFEST_NAME
from voxedge.runtime.cli.common import UsageError

MAX_TEXT_BYTES = 4 << 20
"""More than a long novel; a larger file was named by mistake."""


def bundle_and_text(arguments: argparse.Namespace) -> tuple[Path | None, str]:
    """Sort `[BUNDLE] [TEXT]`, --bundle, --text, --text-file and --stdin out.

    Returns:
        The bundle's folder (None: the built-in voice) and the text.

    Raises:
        UsageError: Two texts or two bundles were given, or no text.
        InputError: The text is no UTF-8, or too large.
        MissingResourceError: The text file does not exist, or the first of two words is no folder.
    """
    words = list(arguments.words)
    if len(words) > 2:
        raise UsageError(f"expected [BUNDLE] TEXT, found {len(words)} words; put the text in quotes")
    sources = _sources(arguments)
    bundle = arguments.bundle
    if len(words) == 2 or (words and (sources or _means_bundle(words[0]))):
        if bundle is not None:
            raise UsageError(f"expected one bundle, found {words[0]!r} and --bundle {bundle}")
        bundle = _folder(words.pop(0))
    if words:
        sources.append(("TEXT", words[0]))
    if len(sources) > 1:
        raise UsageError(f"expected one text, found {' and '.join(name for name, _ in sources)}; keep one of them")
    return bundle, _read(sources)


def decode(data: bytes, origin: str) -> str:
    """UTF-8 to text.

    Raises:
        InputError: The bytes are no UTF-8; names the offset of the first wrong one.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # an editor's byte order mark is not to be spoken
    except UnicodeDecodeError as error:
        raise InputError(
            f"{origin}: expected UTF-8, found byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it, for instance with `iconv -f ISO-8859-1 -t UTF-8`"
        ) from error


def _sources(arguments: argparse.Namespace) -> list[tuple[str, str | Path | None]]:
    """The texts that flags name."""
    found: list[tuple[str, str | Path | None]] = []
    if arguments.text is not None:
        found.append(("--text", str(arguments.text)))
    if arguments.text_file is not None:
        found.append(("--text-file", Path(arguments.text_file)))
    if arguments.stdin:
        found.append(("--stdin", None))
    return found


def _means_bundle(word: str) -> bool:
    return (Path(word) / MANIFEST_NAME).is_file()


def _folder(word: str) -> Path:
    if not Path(word).is_dir():
        raise MissingResourceError(
            f"expected the folder of a bundle, found {word!r}; put a text of several words in quotes"
        )
    return Path(word)


def _read(sources: list[tuple[str, str | Path | None]]) -> str:
    if not sources:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError('expected a text; type voxedge say "Hello there." -f hello.wav')
        sources = [("stdin", None)]
    name, source = sources[0]
    if isinstance(source, str):
        return decode(os.fsencode(source), name)  # fsencode gives back the bytes that were typed
    if isinstance(source, Path):
        return _read_file(source)
    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    _check_size(len(data), name)
    return decode(data, name)


def _read_file(path: Path) -> str:
    if not path.exists():
        raise MissingResourceError(f"no such text file: {path}")
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT_BYTES + 1)  # not stat: a pipe or a device has no size
    _check_size(len(data), str(path))
    return decode(data, str(path))


def _check_size(count: int, origin: str) -> None:
    if count > MAX_TEXT_BYTES:
        raise InputError(f"{origin}: expected at most {format_bytes(MAX_TEXT_BYTES)} of text; split it into several")

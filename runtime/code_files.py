"""Codes of a recording as a file: safetensors with one tensor, and a few words on where it comes from.

In: codes, or a path. Out: bytes, or codes that were checked against the codec that shall read them. Files are hostile:
their size is checked before they are read, and nothing in them is executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.engines.files import format_bytes
from voxedge.runtime.codec import Codec, Codes

FORMAT = "voxedge codes 1"
ENTRY = "voxedge"
SUFFIX = ".safetensors"
MAX_BYTES = 64 << 20
"""A day of 32 codes at 12.5 frames per second takes 138 MB, so half a day fits."""
MAX_TEXT = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class CodeFile:
    """Codes and what is known of them."""

    codes: Codes
    """[codebooks, T]."""
    fingerprint: str
    """Of the codec that made them; see `CodecSettings`."""
    frame_rate: float
    """Frames per second."""
    text: str = ""
    """What is said in the recording; needed to go on from it."""
    recording: str = ""
    """SHA-256 of the file that was encoded."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return int(self.codes.shape[1]) / self.frame_rate

    def to_bytes(self) -> bytes:
        """The content of the file."""
        words = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "frame_rate": self.frame_rate,
            "text": self.text,
            "recording": self.recording,
        }
        # One entry: safetensors writes several in no fixed order, and equal voices must be equal files.
        entry = {ENTRY: json.dumps(words, ensure_ascii=False, sort_keys=True)}
        content: bytes = save({"codes": np.ascontiguousarray(self.codes, np.int32)}, entry)
        return content


def read_codes(path: Path, codec: Codec) -> CodeFile:
    """Read codes for a codec.

    Raises:
        MissingResourceError: There is no such file.
        InputError: It is no file of codes, too large, damaged, or of another codec.
    """
    if not path.is_file():
        raise MissingResourceError(f"expected a file of codes at {path}, found none; check the path")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path}: expected at most {format_bytes(MAX_BYTES)} of codes, found {format_bytes(size)}")
    try:
        with safe_open(path, framework="np") as file:
            words, names = _words((file.metadata() or {}).get(ENTRY, "{}")), list(file.keys())
            codes = file.get_tensor("codes") if names == ["codes"] else None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: expected a file of codes, cannot read it: {str(error)[:200]}") from error
    if words.get("format") != FORMAT or codes is None:
        raise InputError(
            f"{path}: expected codes written by voxedge ({FORMAT!r}), found {words.get('format', 'another file')!r}; "
            "make them with `voxedge codec encode` or `voxedge voice add`"
        )
    if words.get("fingerprint") != codec.settings.fingerprint:
        raise InputError(
            f"{path}: expected codes of this codec ({codec.settings.fingerprint[:12]}), found those of another "
            f"({words.get('fingerprint', '')[:12]}); encode the recording again with this bundle"
        )
    try:
        checked = codec.check(codes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not checked.shape[1]:
        raise InputError(f"{path}: expected at least one frame of codes, found none; encode the recording again")
    text = words.get("text", "")[:MAX_TEXT]
    return CodeFile(checked, codec.settings.fingerprint, codec.frame_rate, text, words.get("recording", "")[:64])


def _words(text: str) -> dict[str, str]:
    """The texts of the entry; whatever else is in it is left out."""
    found = json.loads(text)
    return {key: word for key, word in found.items() if isinstance(word, str)} if isinstance(found, dict) else {}

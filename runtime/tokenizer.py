"""Text and control tokens to ids, such that a user's text can never become a control token.

In: a `tokenizer.json`, segments of a prompt. Out: ids, in runs of one modality.
Does not know: prompt formats, models. The file is hostile: its size is bounded and what it declares is tried out.

A tokenizer finds its added tokens anywhere in what it is given, whoever wrote it. So text is encoded by a twin of the
tokenizer that has no added tokens, where `<|im_end|>` is ten ordinary characters; control tokens come as ids from the
file's list and only from there. Added tokens split the text around them before normalisation and before any merge, so
encoding each text between control tokens alone gives exactly the ids that the whole has there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from voxedge.engines.errors import BundleError, ConfigError, MissingResourceError
from voxedge.runtime.prompt import CONTROL_TOKENS, Segment

MAX_FILE_BYTES = 256 << 20
"""Largest `tokenizer.json` that is read; real ones have 5 to 35 MB."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one modality: what one expert's graph processes at once."""

    is_speech: bool
    """Whether the ids count speech tokens from 0, or are rows of the text vocabulary."""
    ids: tuple[int, ...]
    """The tokens."""


class ChatTokenizer:
    """A tokenizer that keeps apart what a user wrote and what the prompt says.

    Example:
        >>> tokenizer = ChatTokenizer.from_file("bundle/tokenizer/tokenizer.json")  # doctest: +SKIP
        >>> tokenizer.encode(render_prompt("You speak.", [Turn("user", "Hello")]))  # doctest: +SKIP
        [151644, 8948, 198, ...]
    """

    def __init__(self, plain: Tokenizer, control_ids: dict[str, int]) -> None:
        """Use `from_file`.

        Args:
            plain: Encoder without added tokens.
            control_ids: Ids of the added tokens, by their text.
        """
        self._plain = plain
        self._control_ids = control_ids

    @classmethod
    def from_file(cls, path: str | Path, required: Sequence[str] = CONTROL_TOKENS) -> ChatTokenizer:
        """Read a `tokenizer.json`.

        Args:
            path: The file.
            required: Control tokens that prompts will use.

        Raises:
            MissingResourceError: There is no such file.
            BundleError: It is damaged, of an unknown kind, or lacks a required token.
        """
        source = Path(path)
        if not source.is_file():
            raise MissingResourceError(f"expected a tokenizer at {source}, found no file; export the bundle again")
        if source.stat().st_size > MAX_FILE_BYTES:
            raise BundleError(f"{source}: expected at most {MAX_FILE_BYTES} bytes, found {source.stat().st_size}")
        declared = _declared(source)
        added = _added_tokens(source, declared)
        # Truncation, padding and a post-processor would change or extend what is encoded.
        stripped = {**declared, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        try:
            plain = Tokenizer.from_str(json.dumps(stripped))
        except Exception as error:  # the tokenizers wheel raises Exception itself
            raise BundleError(
                f"{source}: the tokenizers library cannot read it: {error}; copy it again, or if it is newer than the "
                "library type: pip install -U tokenizers"
            ) from error
        _check(source, plain, added, required)
        return cls(plain, {text: int(entry["id"]) for text, entry in added.items()})

    def encode_text(self, text: str) -> list[int]:
        """Ids of ordinary text; what looks like a control token is encoded as the characters it is made of."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, text: str) -> int:
        """How many ids the text takes."""
        return len(self.encode_text(text))

    def control_id(self, token: str) -> int:
        """Id of a control token.

        Raises:
            BundleError: The tokenizer has no such token.
        """
        if token not in self._control_ids:
            raise BundleError(
                f"expected the tokenizer to have the control token {token!r}, found {sorted(self._control_ids)}"
            )
        return self._control_ids[token]

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of a prompt without speech.

        Raises:
            ConfigError: A segment is speech; see `runs`.
        """
        runs = self.runs(segments)
        if any(run.is_speech for run in runs):
            raise ConfigError("expected a prompt of text alone, found speech tokens in it; process it run by run")
        return [token for run in runs for token in run.ids]

    def runs(self, segments: Sequence[Segment]) -> list[Run]:
        """Ids of a prompt, in the fewest runs of one modality."""
        runs: list[Run] = []
        for segment in segments:
            run = Run(segment.kind == "speech", self._ids(segment))
            if runs and runs[-1].is_speech == run.is_speech:
                run = Run(run.is_speech, runs.pop().ids + run.ids)
            runs.append(run)
        return runs

    def _ids(self, segment: Segment) -> tuple[int, ...]:
        if segment.kind == "speech":
            return segment.speech
        if segment.kind == "control":
            return (self.control_id(segment.text),)
        return tuple(self.encode_text(segment.text))


def _declared(source: Path) -> dict[str, Any]:
    try:
        declared = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: expected JSON, cannot read it: {error}; copy the file again") from error
    model = declared.get("model") if isinstance(declared, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE":
        raise BundleError(f"{source}: expected a BPE tokenizer, found the kind {kind!r}; chat prompts need Qwen's")
    return dict(declared)


def _added_tokens(source: Path, declared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    added: dict[str, dict[str, Any]] = {}
    entries = declared.get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
            raise BundleError(f"{source}: expected added tokens with a content and an id, found {str(entry)[:80]}")
        added[entry["content"]] = entry
    return added


def _check(source: Path, plain: Tokenizer, added: dict[str, dict[str, Any]], required: Sequence[str]) -> None:
    """That required tokens are there, and that no text can be encoded as one of them."""
    for token in required:
        if token not in added:
            raise BundleError(
                f"{source}: expected the control token {token!r} among the added tokens, found {sorted(added)[:20]}; "
                "the tokenizer belongs to another model"
            )
        if added[token].get("lstrip") or added[token].get("rstrip"):
            raise BundleError(f"{source}: the control token {token!r} swallows white space around it; prompts need it")
    for token, entry in added.items():
        if token in required and entry["id"] in plain.encode(token, add_special_tokens=False).ids:
            raise BundleError(f"{source}: text {token!r} would become the control token; the vocabulary is not safe")

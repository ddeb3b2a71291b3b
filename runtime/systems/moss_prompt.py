"""Prompts of MOSS-TTS: what the user wants, as rows of text tokens and codes.

In: a `MossPrompt`: text, reference and prefix audio as codes, and the fields of the instruction. Out: a grid. The delay
model and local v1 read a message as one text, v1.5 reads its pieces one by one, and that gives other tokens. What a
user writes can never become a control token, and a placeholder within a field stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from voxedge.engines.errors import InputError
from voxedge.runtime.systems.moss_grid import Frames, Grid, delayed, text_rows
from voxedge.runtime.systems.moss_settings import MossSettings
from voxedge.runtime.tokenizer import ChatTokenizer

Mode = Literal["speak", "whole"]
"""`speak`: up to where the model goes on; `whole`: with the end of the assistant's turn, as in training."""

_FIELDS = ("instruction", "tokens", "quality", "sound_event", "ambient_sound", "language")


@dataclass(frozen=True, slots=True, eq=False)
class MossPrompt:
    """What to say and how; fields that are None are told to the model as such."""

    text: str
    references: tuple[Frames | None, ...] | None = None
    """Audio of the voice; a place that is None keeps its number free."""
    prefix: Frames | None = None
    """Speech to go on from; its transcript stands at the beginning of `text`."""
    instruction: str | None = None
    tokens: int | None = None
    """Frames that the speech should have."""
    quality: str | None = None
    sound_event: str | None = None
    ambient_sound: str | None = None
    language: str | None = None
    """In English, such as `Chinese`."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Audio within a message."""

    frames: Frames
    slot: int
    """Text token of its rows."""
    flush: int
    """Text token of the rows in which delayed channels end."""
    end: bool = True
    """False where the model is to go on."""


Piece = str | int | Span
"""Text, a control token, or audio."""


class PromptBuilder:
    """Builds the prompts of one model."""

    def __init__(self, settings: MossSettings, tokenizer: ChatTokenizer) -> None:
        self.settings = settings
        self._tokenizer = tokenizer

    def grid(self, prompt: MossPrompt, mode: Mode = "speak", *, whole_messages: bool | None = None) -> Grid:
        """Rows of a prompt.

        Args:
            prompt: What to say.
            mode: `whole` needs a prefix, which then is the answer.
            whole_messages: Tokenise each message as one text; None for what the model was trained with.

        Raises:
            InputError: Codes do not fit the model.
        """
        kind, ids = self.settings.kind, self.settings.ids
        at_once = kind != "local_v15" or mode == "whole" if whole_messages is None else whole_messages
        user = self._pieces(prompt) if at_once else self._stripped_pieces(prompt)
        pieces: list[Piece] = [ids.im_start, "user\n", *user, ids.im_end, "\n", ids.im_start, "assistant\n"]
        if prompt.prefix is not None:
            delay_slot = ids.gen_slot if ids.delay_slot is None else ids.delay_slot
            pieces.append(Span(prompt.prefix, ids.gen_slot, delay_slot, end=mode == "whole"))
            pieces += [ids.im_end, "\n"] if mode == "whole" else []
        elif kind != "delay":
            pieces.append(ids.audio_start)
        return np.concatenate(list(self._rows(_joined(pieces) if at_once else pieces)))

    def _pieces(self, prompt: MossPrompt) -> list[Piece]:
        """The user's turn as one text around its audio."""
        fields = [getattr(prompt, name) for name in _FIELDS]
        values = ["None" if value is None else str(value) for value in fields]
        return [
            "<user_inst>\n- Reference(s):\n",
            *self._references(prompt.references),
            f"{_middle(values)}{prompt.text}\n</user_inst>",
        ]

    def _references(self, references: tuple[Frames | None, ...] | None) -> list[Piece]:
        if references is None:
            return ["None"]
        pieces: list[Piece] = []
        for number, frames in enumerate(references, 1):
            if frames is not None:
                label = f"[S{number}]:\n" if self.settings.kind != "local_v15" else ""
                pieces += ["\n" if pieces else "", label, self._reference(frames)]
        return pieces

    def _reference(self, frames: Frames) -> Span:
        slot = self.settings.ids.user_slot
        return Span(frames, slot, slot)

    def _stripped_pieces(self, prompt: MossPrompt) -> list[Piece]:
        """The user's turn of v1.5: each piece a text of its own; with a prefix it has no references."""
        fields = [getattr(prompt, name) for name in _FIELDS]
        values = ["" if value is None else str(value).strip() for value in fields]
        given = [] if prompt.prefix is not None else [each for each in prompt.references or () if each is not None]
        references: list[Piece] = [self._reference(frames) for frames in given]
        middle = _middle([value or "None" for value in values])
        start = "<user_inst>\n- Reference(s):\n"
        return [start, *(references or ["None"]), middle, prompt.text, "\n</user_inst>"]

    def _rows(self, pieces: Iterable[Piece]) -> Iterable[Grid]:
        channels, pad_code = self.settings.channels, self.settings.pad_code
        for piece in pieces:
            if isinstance(piece, Span):
                yield self._span(piece)
            else:
                ids = [piece] if isinstance(piece, int) else self._tokenizer.encode_text(piece)
                yield text_rows(ids, channels, pad_code)

    def _span(self, span: Span) -> Grid:
        settings, ids = self.settings, self.settings.ids
        frames = self.checked(span.frames)
        rows = delayed(frames, settings.pad_code) if settings.kind == "delay" else frames
        slots = [span.slot] * len(frames) + [span.flush] * (len(rows) - len(frames))
        grid = text_rows([ids.audio_start, *slots, ids.audio_end], settings.channels, settings.pad_code)
        grid[1:-1, 1:] = rows
        return grid if span.end else grid[: 1 + len(frames)]

    def checked(self, frames: Frames) -> Frames:
        """Codes of the model's own channels; a codec may give more, since the first k describe the same sound.

        Raises:
            InputError: There are no frames, too few channels, or codes that the model has not.
        """
        settings = self.settings
        if frames.ndim != 2 or not len(frames) or frames.shape[1] < settings.channels:
            raise InputError(
                f"expected codes [frames, {settings.channels}] of at least one frame, found {list(frames.shape)}; "
                f"encode the audio with {settings.channels} codebooks"
            )
        used = frames[:, : settings.channels]
        if used.min() < 0 or (used >= np.array(settings.codebooks)).any():
            raise InputError(
                f"expected codes of 0 .. {min(settings.codebooks) - 1}, found {used.min()} .. {used.max()}; "
                "they are of another codec"
            )
        return used.astype(np.int32)


def _middle(values: Sequence[str]) -> str:
    """The fields between the references and the text."""
    names = ("Instruction", "Tokens", "Quality", "Sound Event", "Ambient Sound", "Language")
    lines = [f"- {name}:\n{value}\n" for name, value in zip(names, values, strict=True)]
    return "\n" + "".join(lines) + "- Text:\n"


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same with neighbouring texts made one: a tokenizer may merge across where they met."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined

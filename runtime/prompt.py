"""Chat prompts as a model saw them in training, built without templates.

In: system text, turns of a conversation. Out: segments, each one control token, a stretch of text, or speech tokens.
Does not know: vocabularies (see `runtime.tokenizer`), models, what the texts say. Users' text is checked here and can
never act as a control token, because a control token is a segment of its own kind and never a piece of text.

The format is Qwen's ChatML: `<|im_start|>role`, newline, content, `<|im_end|>`, newline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from voxedge.engines.errors import ConfigError, InputError

MAX_TEXT_CHARACTERS = 100_000
"""Longest text that is accepted at once: two hours of speech."""

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
THINK_START = "<think>"
THINK_END = "</think>"
CONTROL_TOKENS = (TURN_START, TURN_END, THINK_START, THINK_END)

_BROKEN = re.compile("[\0\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt."""

    kind: Literal["control", "text", "speech"]
    """One control token, ordinary text, or speech tokens."""
    text: str = ""
    """The token's or the text's characters; empty for speech."""
    speech: tuple[int, ...] = ()
    """Ids of speech tokens, from 0; empty for the others."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said: text, or speech tokens where the assistant spoke."""

    role: Literal["user", "assistant"]
    """Who said it."""
    text: str = ""
    """What was written; empty where it is speech."""
    speech: tuple[int, ...] = ()
    """Speech tokens of an assistant's turn."""

    def __post_init__(self) -> None:
        """Check that it is one or the other."""
        if self.role not in ("user", "assistant"):
            raise ConfigError(f"expected the role 'user' or 'assistant', got {self.role!r}")
        if bool(self.text) == bool(self.speech) or (self.role == "user" and self.speech):
            raise ConfigError(f"expected text, or speech of the assistant, in a turn of the {self.role}")


def check_text(text: str, what: str = "the text", limit: int = MAX_TEXT_CHARACTERS) -> str:
    """The text itself, after a look for what no tokenizer can take.

    Args:
        text: From the user.
        what: Its name in messages.
        limit: Most characters.

    Raises:
        InputError: It is empty or too long, or holds NUL or half a surrogate pair (a sign of broken UTF-8).
    """
    if not text.strip():
        raise InputError(f"expected {what} to have something to say, found it empty")
    if len(text) > limit:
        raise InputError(f"expected {what} to have at most {limit} characters, found {len(text)}; split it")
    broken = _BROKEN.search(text)
    if broken is not None:
        raise InputError(
            f"expected {what} to be valid UTF-8, found U+{ord(broken[0]):04X} at character {broken.start()}; "
            "save the text as UTF-8 and try again"
        )
    return text


def fill_template(template: str, **values: str) -> str:
    r"""Put texts in the places of `{name}`; braces within the texts stay what they are.

    Raises:
        ConfigError: The template names another value, or leaves `{text}` out.

    Example:
        >>> fill_template("{description}\n{text}", description="Calm {text}.", text="Hi")
        'Calm {text}.\nHi'
    """
    names = set(_PLACEHOLDER.findall(template))
    if "text" not in names or not names <= values.keys():
        raise ConfigError(f"expected a template with {{text}} and of {sorted(values)} only, found {template!r}")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def render_prompt(system: str | None, turns: Sequence[Turn], enable_thinking: bool = False) -> list[Segment]:
    r"""The conversation up to where the assistant's next token follows.

    An earlier answer in text stands without a think block, as Qwen3's own template renders it; an earlier answer in
    speech stands behind the empty think block that it was generated behind.

    Args:
        system: Text of the system turn; None leaves the turn out.
        turns: What was said; the last turn is the user's.
        enable_thinking: Whether the model may think first; otherwise an empty think block is put in its mouth.

    Returns:
        Segments without two texts in a row, so that each text is tokenised as it is in the whole.

    Raises:
        ConfigError: The last turn is not the user's.
        InputError: A text cannot be used.

    Example:
        >>> prompt = render_prompt(None, [Turn("user", "Hi")])
        >>> "".join(segment.text for segment in prompt)
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n'
    """
    if not turns or turns[-1].role != "user":
        raise ConfigError("expected the last turn to be the user's; there is nothing to answer otherwise")
    segments: list[Segment] = []
    if system is not None:
        segments += _turn("system", check_text(system, "the system prompt"))
    for turn in turns:
        if turn.speech:
            segments += [*_answer_start(think_block=True), Segment("speech", speech=turn.speech), *_TURN_STOP]
        else:
            segments += _turn(turn.role, check_text(turn.text, f"the {turn.role}'s text"))
    return _joined([*segments, *_answer_start(think_block=not enable_thinking)])


def render_reply(user: str, enable_thinking: bool = False) -> list[Segment]:
    """What follows generated speech when the conversation goes on: the end of that turn and the user's next one.

    Args:
        user: The user's next text.
        enable_thinking: As for `render_prompt`.
    """
    asked = _turn("user", check_text(user, "the user's text"))
    return _joined([*_TURN_STOP, *asked, *_answer_start(think_block=not enable_thinking)])


_TURN_STOP = (Segment("control", TURN_END), Segment("text", "\n"))


def _turn(role: str, content: str) -> list[Segment]:
    return [Segment("control", TURN_START), Segment("text", f"{role}\n{content}"), *_TURN_STOP]


def _answer_start(think_block: bool) -> list[Segment]:
    start = [Segment("control", TURN_START), Segment("text", "assistant\n")]
    if not think_block:
        return start
    think = (Segment("control", THINK_START), Segment("text", "\n\n"))
    return [*start, *think, Segment("control", THINK_END), Segment("text", "\n\n")]


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """The same with neighbouring texts made one: a tokenizer may merge across where they met."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].kind == segment.kind == "text":
            joined[-1] = Segment("text", joined[-1].text + segment.text)
        else:
            joined.append(segment)
    return joined

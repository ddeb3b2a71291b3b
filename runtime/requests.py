"""What is asked of a voice, and the pieces that a text is spoken in.

In: a `Request` and the system that will speak it. Out: `Utterance`s, each short enough to be spoken at once. Does not
speak (see `runtime.synthesizer`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.directions import NO_DIRECTIONS, Directions
from voxedge.runtime.prompt import Turn, check_text
from voxedge.runtime.systems.base import System, Utterance
from voxedge.runtime.text import split_text


@dataclass(frozen=True, slots=True)
class Request:
    """What to say and how; one of a batch."""

    text: str
    description: str = ""
    """Of the voice, in the language that the system was trained with; empty for none."""
    seed: int | None = None
    """The same seed says the same again; None draws a fresh one, which the result holds."""
    config: SynthesisConfig | None = None
    """None takes the bundle's own options."""
    speech_prompt: tuple[int, ...] = ()
    """Speech tokens to go on from; they are not heard again."""
    earlier: tuple[Turn, ...] = ()
    """The conversation before."""
    directions: Directions = NO_DIRECTIONS
    """Language, length, voice and more, where the system follows such."""


def options_of(request: Request, default: SynthesisConfig) -> Iterator[str]:
    """Names of the options by which a request differs from one that leaves all to the bundle.

    Args:
        request: What is asked.
        default: The bundle's own options.
    """
    yield from request.directions.given()
    yield from (name for name in ("speech_prompt", "earlier") if getattr(request, name))
    config = request.config or default
    for field in dataclasses.fields(config):
        if getattr(config, field.name) != getattr(default, field.name):
            yield field.name


def utterances_of(request: Request, seed: int, system: System) -> list[Utterance]:
    """The pieces of a text.

    Raises:
        InputError: The text or an option cannot be used.
    """
    first = Utterance(
        text=check_text(request.text),
        config=request.config or system.default_config,
        seed=seed,
        description=request.description,
        speech_prompt=request.speech_prompt,
        earlier=request.earlier,
        directions=request.directions,
    )
    texts = split_text(request.text, *system.budget(first))
    prompts = [request.speech_prompt, *([()] * (len(texts) - 1))]
    return [
        dataclasses.replace(first, text=text, index=number, speech_prompt=prompt, share=_share(texts, number))
        for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
    ]


def _share(texts: Sequence[str], number: int) -> tuple[float, float]:
    """Where a piece begins and ends in the whole text."""
    ends = [sum(map(len, texts[:count])) for count in (number, number + 1, len(texts))]
    return ends[0] / ends[2], ends[1] / ends[2]

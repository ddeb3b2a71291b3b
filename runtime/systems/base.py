"""What every system gives to `runtime.synthesizer`: one utterance in, pieces of sound out.

In: an `Utterance`. Out: `Piece`s as they are made. Only types; no system is imported here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from voxedge.runtime.audio import FinishReason
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.directions import NO_DIRECTIONS, Directions
from voxedge.runtime.prompt import Turn

Samples = npt.NDArray[np.float32]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One piece of text, short enough to be spoken at once."""

    text: str
    config: SynthesisConfig
    seed: int
    description: str = ""
    """Of the voice; empty for none."""
    index: int = 0
    """Place among the pieces of a long text; each draws noise of its own."""
    speech_prompt: tuple[int, ...] = ()
    """Speech tokens to go on from; they are heard by the model and not by the listener."""
    earlier: tuple[Turn, ...] = ()
    """The conversation before."""
    directions: Directions = NO_DIRECTIONS
    """What else the request asks for."""
    share: tuple[float, float] = (0.0, 1.0)
    """Where this piece begins and ends in the whole text, as parts of its length."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A stretch of one utterance."""

    samples: Samples
    """[T, channels]."""
    tokens: tuple[int, ...] = ()
    """All speech tokens of the utterance; on the last piece only."""
    finish_reason: FinishReason | None = None
    """Set on the last piece only."""


@dataclass(slots=True)
class Stopwatch:
    """Seconds by stage; the stages of a stream take turns, so each adds up its own stretches."""

    stages_s: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.stages_s[stage] = self.stages_s.get(stage, 0.0) + seconds


class System(Protocol):
    """One loaded system."""

    @property
    def sample_rate(self) -> int:
        """In Hz."""

    @property
    def channels(self) -> int:
        """Of the audio."""

    @property
    def default_config(self) -> SynthesisConfig:
        """The bundle's own options."""

    @property
    def stream_window_s(self) -> float | None:
        """The window that `stream` takes unless told otherwise; None for a system that has none."""

    def budget(self, utterance: Utterance) -> tuple[int, Callable[[str], int]]:
        """Most text tokens of one utterance with these options, and how to count them.

        Raises:
            InputError: The options leave no room for text.
        """

    def utter(self, utterance: Utterance, watch: Stopwatch) -> Iterator[Piece]:
        """Speak one utterance; the last piece has a finish reason."""


def timed(items: Iterator[_Item], stage: str, watch: Stopwatch, *inner: str) -> Iterator[_Item]:
    """Pass items on and add the time that making them took, without that of the stages inside."""
    while True:
        started = time.perf_counter()
        before = sum(watch.stages_s.get(name, 0.0) for name in inner)
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            spent = time.perf_counter() - started
            watch.add(stage, spent - sum(watch.stages_s.get(name, 0.0) for name in inner) + before)
        yield item

"""What a request may tell a system besides its text: language, length, the voice, and how it should sound.

In: options of a call. Out: one frozen record. Systems say which of them they follow; one that is given and not followed
is an error there, never ignored.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError
from voxedge.runtime.languages import language_name

Frames = npt.NDArray[np.int32]
"""[T, n]: codes of each frame of a codec."""

MAX_DURATION_S = 36_000.0


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Options of one call; what is None is left to the model."""

    language: str | None = None
    """English name or ISO 639 code."""
    duration_s: float | None = None
    """Length of the speech, met exactly to a frame."""
    frames: int | None = None
    """The same in frames of the codec."""
    codebooks: int | None = None
    """Audio channels to use, where a model can do with fewer."""
    quality: str | None = None
    """How the recording should sound, in the model's words."""
    sound_event: str | None = None
    ambient_sound: str | None = None
    references: tuple[Frames | None, ...] = ()
    """Audio of the voices, as codes; a place that is None keeps its number free."""
    prefix: Frames | None = None
    """Speech to go on from, as codes; it is not heard again."""
    prefix_text: str = ""
    """What `prefix` says."""

    def __post_init__(self) -> None:
        if self.language is not None:
            language_name(self.language)
        given = self.duration_s
        if given is not None and not (math.isfinite(given) and 0.0 < given <= MAX_DURATION_S):
            raise ConfigError(f"expected a duration above 0 and up to {MAX_DURATION_S:g} s, found {given}; try 7.5")
        for name in ("frames", "codebooks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected {name} of 1 or more, found {value}")
        if self.frames is not None and self.duration_s is not None:
            raise ConfigError("expected a duration or a number of frames, found both; leave one out")

    @property
    def is_timed(self) -> bool:
        """Whether the speech must have a certain length."""
        return self.frames is not None or self.duration_s is not None

    def given(self) -> list[str]:
        """Names of the options that are set."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return [name for name, value in values.items() if value is not None and not _is_empty(value)]


def _is_empty(value: object) -> bool:
    return isinstance(value, (tuple, str)) and not value


NO_DIRECTIONS = Directions()
"""Everything is left to the model."""

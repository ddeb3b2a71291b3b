"""Settings of a MOSS-TTS bundle: what export writes into the manifest and the runtime reads.

In: the manifest's `settings`. Out: frozen records, whose every number can be worked with. Knows no graphs and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from voxedge.engines.errors import ConfigError
from voxedge.runtime.sampling import SamplingConfig

SYSTEM = "moss_tts"
FRAME_RATE = 12.5
"""Frames per second of both codecs."""

MossKind = Literal["delay", "local", "local_v15"]
"""MOSS-TTS with the delay pattern, MOSS-TTS-Local-Transformer v1, and v1.5."""

_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class MossIds:
    """Text tokens with a meaning of their own, by id."""

    pad: int
    im_start: int
    im_end: int
    audio_start: int
    audio_end: int
    user_slot: int
    """Of rows that carry reference audio."""
    gen_slot: int
    """Of rows that carry generated audio."""
    delay_slot: int | None = None
    """Of the rows in which the delay model ends its channels one after the other; None for the others."""

    def values(self) -> tuple[int | None, ...]:
        """All ids."""
        slots = (self.user_slot, self.gen_slot, self.delay_slot)
        return (self.pad, self.im_start, self.im_end, self.audio_start, self.audio_end, *slots)


@dataclass(frozen=True, slots=True)
class MossSettings:
    """Everything that is not in the graphs."""

    kind: MossKind
    ids: MossIds
    codebooks: tuple[int, ...]
    """Codes of each audio channel; the pad code is none of them."""
    pad_code: int
    """What a row holds in a channel without a code."""
    vocabulary: int
    """Columns of the text head."""
    sample_rate: int
    """Of the codec, in Hz."""
    codec_name: str
    """Name of the codec that the model was trained with, to look for a codec bundle."""
    max_context: int
    """Rows of prompt and speech together."""
    text: SamplingConfig
    """How text tokens, or the decision to go on, are drawn unless the user says otherwise."""
    audio: SamplingConfig
    """How codes are drawn unless the user says otherwise; its `max_tokens` is in frames."""
    frame_rate: float = FRAME_RATE

    def __post_init__(self) -> None:
        ids = [value for value in self.ids.values() if value is not None]
        if not self.codebooks or not all(1 <= size <= self.pad_code for size in self.codebooks):
            raise ConfigError(f"settings: expected codebooks of 1 .. {self.pad_code} codes, found {self.codebooks[:9]}")
        if not all(0 <= value < self.vocabulary <= _LARGEST for value in ids):
            raise ConfigError(f"settings: expected special ids below {self.vocabulary}, found {ids}")
        if (self.kind == "delay") != (self.ids.delay_slot is not None):
            raise ConfigError(f"settings: expected a delay slot in the delay model and only there, found {self.kind}")
        for name in ("sample_rate", "max_context"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise ConfigError(f"settings: expected {name} above 0, found {getattr(self, name)}")
        if not 0.1 <= self.frame_rate <= 1000.0:
            raise ConfigError(f"settings: expected a frame rate of 0.1 .. 1000, found {self.frame_rate}")

    @property
    def channels(self) -> int:
        """Audio channels of a row."""
        return len(self.codebooks)


def recommended(kind: MossKind, frames: int) -> tuple[SamplingConfig, SamplingConfig]:
    """How the authors draw text and codes: class defaults for text, model cards for audio.

    Args:
        kind: Which model.
        frames: Longest speech.
    """
    text = SamplingConfig(temperature=1.0 if kind == "local_v15" else 1.5, top_k=50, max_tokens=frames)
    if kind == "local":
        return text, SamplingConfig(1.0, top_k=50, top_p=0.95, repetition_penalty=1.1, max_tokens=frames)
    return text, SamplingConfig(1.7, top_k=25, top_p=0.8, max_tokens=frames)

"""What speaking gives back: chunks while it goes on, the whole at the end, and a check that it is sound at all.

In: float32 samples and how they were made. Out: frozen records, files, PCM bytes, findings.
Does not know: models, engines, how samples came to be. Reading and writing files is `runtime.audio_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import InferenceError
from voxedge.runtime.audio_files import read_audio, resample, to_pcm16, write_audio

__all__ = ["Audio", "AudioCheck", "AudioChunk", "FinishReason", "Timing", "check_audio", "read_audio", "resample"]

Samples = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "cancelled"]
"""Why speech ended: the model said so, a length cap was hit, or the caller stopped it."""

_SILENCE = 1e-4  # -80 dB of full scale, three steps of 16 bit


@dataclass(frozen=True, slots=True)
class Timing:
    """How long speaking took."""

    wall_s: float
    """Seconds from the call to the last sample."""
    audio_s: float
    """Seconds of speech made."""
    first_audio_s: float
    """Seconds from the call to the first sample."""
    tokens: int = 0
    """Speech tokens drawn."""
    stages_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent in each stage, by its name."""

    @property
    def rtf(self) -> float:
        """Real-time factor: wall time per second of speech; below 1 is faster than real time.

        Example:
            >>> Timing(wall_s=1.0, audio_s=4.0, first_audio_s=0.2).rtf
            0.25
        """
        return self.wall_s / self.audio_s if self.audio_s > 0.0 else float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """A stretch of speech, ready to be played."""

    samples: Samples
    """[T, channels], full scale 1."""
    sample_rate: int
    """In Hz."""
    index: int
    """Place in the stream, from 0."""
    is_last: bool
    """Whether no chunk follows."""
    finish_reason: FinishReason | None = None
    """Why speech ended; set on the last chunk only."""

    def to_pcm16(self) -> bytes:
        """16-bit little-endian PCM, channels interleaved."""
        return to_pcm16(self.samples)


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """A finished utterance; unpacks as `samples, rate = audio`."""

    samples: Samples
    """[T, channels], full scale 1."""
    sample_rate: int
    """In Hz."""
    seed: int
    """Says the same again with the same voice, text and settings."""
    finish_reason: FinishReason
    """Why speech ended; `length` means that it was cut."""
    timing: Timing
    """How long it took."""
    speech_tokens: tuple[int, ...] = ()
    """What was drawn; give it as the speech prompt of a further text to go on in the same voice."""

    def __iter__(self) -> Iterator[Samples | int]:
        yield self.samples
        yield self.sample_rate

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a `.wav`, `.flac` or `.ogg` file, complete or not at all.

        Raises:
            InputError: The suffix is unknown, or the file exists and `overwrite` is not set.
            MissingResourceError: The folder does not exist.
            VoxedgeError: The disk is full or may not be written to.
        """
        write_audio(path, self.samples, self.sample_rate, overwrite)

    def to_pcm16(self) -> bytes:
        """16-bit little-endian PCM, channels interleaved."""
        return to_pcm16(self.samples)


@dataclass(frozen=True, slots=True)
class AudioCheck:
    """What a look at the samples alone tells."""

    peak: float
    """Largest absolute value; above 1 is clipped when saved."""
    clipped_fraction: float
    """Share of the samples beyond full scale, 0 .. 1."""
    silent: bool
    """Whether nothing is louder than -80 dB of full scale; speech never is."""


def check_audio(samples: Samples) -> AudioCheck:
    """Look for what is no speech: values that are no numbers, silence, clipping.

    Args:
        samples: [T, channels] or [T].

    Raises:
        InferenceError: A sample is NaN or infinite.

    Example:
        >>> check_audio(np.array([[0.5], [-2.0]], dtype=np.float32))
        AudioCheck(peak=2.0, clipped_fraction=0.5, silent=False)
    """
    if samples.size == 0:
        return AudioCheck(peak=0.0, clipped_fraction=0.0, silent=True)
    high, low = float(samples.max()), float(samples.min())  # both pass a NaN on
    if not (np.isfinite(high) and np.isfinite(low)):
        bad = np.flatnonzero(~np.isfinite(samples))
        raise InferenceError(
            f"expected finite samples, found {samples.reshape(-1)[bad[0]]} at sample {bad[0]} ({len(bad)} of "
            f"{samples.size}); a graph overflowed: use a bundle of higher precision or run `voxedge verify` on it"
        )
    peak = max(high, -low)
    clipped = int(np.count_nonzero(np.abs(samples) > 1.0)) if peak > 1.0 else 0
    return AudioCheck(peak=peak, clipped_fraction=clipped / samples.size, silent=peak < _SILENCE)

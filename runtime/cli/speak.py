"""Speaking for the command line: one text into `Audio`, or into raw samples on stdout, with the figures to print.

In: an open `Synthesizer` and a `Request`. Out: `Audio`, bytes on stdout, and a flat record of figures. Does not open
bundles and writes no files.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from voxedge.engines.errors import InferenceError
from voxedge.runtime.audio import Audio, Timing, resample
from voxedge.runtime.audio_files import to_pcm16
from voxedge.runtime.cli.console import Console
from voxedge.runtime.cli.synthesis import CUT
from voxedge.runtime.directions import NO_DIRECTIONS, Directions

if TYPE_CHECKING:
    from voxedge.runtime.audio import AudioChunk
    from voxedge.runtime.synthesizer import SynthesisConfig, Synthesizer


@dataclass(frozen=True, slots=True)
class Request:
    """What to speak, in the words of `Synthesizer`."""

    text: str
    """As the user gave it."""
    description: str
    """Of the voice; empty where none was given."""
    seed: int
    """Chosen here where the user gave none, so that it can be told before the first sample."""
    config: SynthesisConfig
    """How to draw and solve."""
    speech_prompt: tuple[int, ...] = ()
    """Speech tokens to continue."""
    directions: Directions = NO_DIRECTIONS
    """Language, length, voice and more."""

    def audio(self, synthesizer: Synthesizer) -> Audio:
        """All of it."""
        return synthesizer.synthesize(
            self.text,
            description=self.description,
            seed=self.seed,
            config=self.config,
            speech_prompt=self.speech_prompt,
            directions=self.directions,
        )

    def stream(self, synthesizer: Synthesizer) -> Iterator[AudioChunk]:
        """Piece by piece, as it is made."""
        return synthesizer.stream(
            self.text,
            description=self.description,
            seed=self.seed,
            config=self.config,
            speech_prompt=self.speech_prompt,
            directions=self.directions,
        )


def speak(synthesizer: Synthesizer, request: Request, console: Console) -> Audio:
    """Speak piece by piece and tell about every piece.

    Returns:
        All pieces joined; `timing.tokens` is 0, since pieces do not say it.

    Raises:
        InferenceError: The voice gave nothing.
    """
    started = time.perf_counter()
    chunks: list[AudioChunk] = []
    first_s = 0.0
    for chunk in request.stream(synthesizer):
        now_s = time.perf_counter() - started
        first_s = first_s or now_s
        seconds = len(chunk.samples) / chunk.sample_rate
        console.note(f"chunk {chunk.index}: {seconds:.2f} s of audio after {now_s:.2f} s")
        chunks.append(chunk)
    wall_s = time.perf_counter() - started
    if not chunks:
        raise InferenceError("expected speech, the voice gave none; try another text or --seed")
    samples, rate = np.concatenate([chunk.samples for chunk in chunks]), chunks[0].sample_rate  # [T, channels]
    timing = Timing(wall_s=wall_s, audio_s=len(samples) / rate, first_audio_s=first_s)
    return Audio(samples, rate, request.seed, chunks[-1].finish_reason or "stop", timing)


def speak_raw(synthesizer: Synthesizer, request: Request, rate: int | None, console: Console) -> None:
    """Write 16-bit PCM to stdout as it is made; tells its format on stderr first.

    Args:
        synthesizer: Who speaks.
        request: What.
        rate: Sample rate to convert to, in Hz; None keeps the voice's.
        console: Where to tell.
    """
    resampler: soxr.ResampleStream | None = None
    for chunk in request.stream(synthesizer):
        if chunk.index == 0:
            channels, target = chunk.samples.shape[1], rate or chunk.sample_rate
            console.note(
                f"raw PCM: s16le, {channels} channel(s), {target} Hz, seed {request.seed}; "
                f"play it with: aplay -t raw -f S16_LE -c {channels} -r {target}"
            )
            if target != chunk.sample_rate:
                resampler = soxr.ResampleStream(chunk.sample_rate, target, channels, quality="HQ")
        samples = chunk.samples if resampler is None else resampler.resample_chunk(chunk.samples, last=chunk.is_last)
        sys.stdout.buffer.write(to_pcm16(samples))
        sys.stdout.buffer.flush()
        if chunk.finish_reason == "length":
            console.warn(CUT)


def resampled(audio: Audio, rate: int | None) -> Audio:
    """The same speech at another sample rate in Hz; None keeps it."""
    if rate is None or rate == audio.sample_rate:
        return audio
    return dataclasses.replace(audio, samples=resample(audio.samples, audio.sample_rate, rate), sample_rate=rate)


def figures(audio: Audio, synthesizer: Synthesizer) -> dict[str, Any]:
    """What to tell about a finished utterance; RTF is wall seconds / audio seconds."""
    return {
        "seconds": audio.duration_s,
        "sample_rate": audio.sample_rate,
        "seed": audio.seed,
        "finish_reason": audio.finish_reason,
        "wall_s": audio.timing.wall_s,
        "rtf": audio.timing.rtf,
        "first_audio_s": audio.timing.first_audio_s,
        "tokens": audio.timing.tokens,
        "backend": synthesizer.backend,
        "note": synthesizer.bundle.manifest.note,
    }

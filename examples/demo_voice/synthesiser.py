"""Speech with exact phone times from `flite` (Black and Lenzo 2001; Debian package flite).

In: a sentence and a style. Out: samples at 16 kHz without the silence around them, and the phones' end times. Runs the
program once per sentence. Pitch: the voices slt and awb take a mean F0; rms ignores it, so that voice is spoken faster
or slower and resampled, which moves its formants too.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from examples.demo_voice.descriptions import Level, Speaker, Style

SAMPLE_RATE = 16_000
STRETCH: dict[Level, float] = {-1: 1.3, 0: 1.0, 1: 0.8}
"""Duration of phones at each speed, relative to the voice's own."""
PITCH: dict[Level, float] = {-1: 0.82, 0: 1.0, 1: 1.22}
"""Mean F0 at each pitch, relative to the voice's own."""
MEAN_F0: dict[Speaker, float] = {"slt": 172.0, "awb": 121.0}
"""Hz; the voices whose F0 can be set."""
_NAMES = "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
PHONES: tuple[str, ...] = tuple(_NAMES.split())
"""US English, silence first."""
_LEVEL = 0.5  # of the 99.5th percentile of |samples|
_EDGE_S = 0.08  # silence that is kept before and after


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken sentence."""

    samples: npt.NDArray[np.int16]
    """[T] at `SAMPLE_RATE`."""
    phones: tuple[str, ...]
    """Names out of `PHONES`."""
    ends: tuple[float, ...]
    """End of each phone, seconds."""


def installed() -> bool:
    """Whether the program is there."""
    return shutil.which("flite") is not None


def speak(text: str, style: Style, scratch: Path) -> Utterance:
    """Speak one sentence.

    Args:
        text: English.
        style: Who, how fast, how high.
        scratch: Where a wav may be written for a moment.

    Raises:
        RuntimeError: The program failed, or its phones are not US English.
    """
    stretch, factor = STRETCH[style.speed], PITCH[style.pitch]
    resampled = style.speaker not in MEAN_F0 and factor != 1.0
    command = ["flite", "-voice", style.speaker, "-psdur", "-t", text, "-o", str(scratch)]
    command += ["--setf", f"duration_stretch={stretch * factor if resampled else stretch:.4f}"]
    if style.speaker in MEAN_F0:
        command += ["--setf", f"int_f0_target_mean={MEAN_F0[style.speaker] * factor:.2f}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - no shell
    pairs = [entry.rsplit(":", 1) for entry in told.split()]
    phones, ends = tuple(phone for phone, _ in pairs), np.asarray([float(end) for _, end in pairs])
    if not phones or not set(phones) <= set(PHONES):
        raise RuntimeError(f"expected flite to tell US English phones of {text!r}, found {told!r}")
    samples, rate = soundfile.read(scratch, dtype="float32")
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"expected flite to speak at {SAMPLE_RATE} Hz, found {rate}")
    if resampled:
        samples, ends = soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE), ends / factor
    return _trimmed(samples, phones, ends)


def _trimmed(samples: npt.NDArray[np.float32], phones: tuple[str, ...], ends: npt.NDArray[np.float64]) -> Utterance:
    """Without the silence around, at one level."""
    start = max(0.0, float(ends[0]) - _EDGE_S) if phones[0] == "pau" else 0.0
    last = ends[-2] if phones[-1] == "pau" and len(ends) > 1 else ends[-1]
    stop = min(len(samples) / SAMPLE_RATE, float(last) + _EDGE_S)
    cut = samples[int(start * SAMPLE_RATE) : int(stop * SAMPLE_RATE)]
    level = max(float(np.quantile(np.abs(cut), 0.995)), 1e-3)
    scaled = np.clip(cut * (_LEVEL / level), -1.0, 1.0) * 32767.0
    times = np.clip(ends, start, stop) - start
    return Utterance(scaled.astype(np.int16), phones, tuple(float(end) for end in times))

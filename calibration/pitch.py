"""The pitch of a voice over time, and how far two contours are apart.

In: samples and their rate. Out: a `PitchTrack`, and a `PitchDifference`. The method is YIN (de Cheveigne and Kawahara
2002, "YIN, a fundamental frequency estimator for speech and music", steps 1 to 5). Does not know: models, thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxedge.calibration.metrics import Array, Float64
from voxedge.runtime.audio import resample

RATE_HZ = 16_000
LOW_HZ, HIGH_HZ = 60.0, 500.0
"""Range of speaking voices."""

_WINDOW = 512  # 32 ms, about two periods of the lowest voice
_HOP = 160  # 10 ms
_THRESHOLD = 0.15  # step 4: a dip of the normalised difference below it is a period
_QUIET_DB = -40.0  # below the loudest frame nothing is voiced: noise between words has accidental periods
_FEWEST = 10  # voiced frames, 0.1 s, below which a median means nothing


@dataclass(frozen=True, slots=True, eq=False)
class PitchTrack:
    """A contour with one frame every 10 ms."""

    hz: Float64
    """[frames], fundamental frequency; 0 where unvoiced."""

    @property
    def voiced(self) -> npt.NDArray[np.bool_]:
        """[frames]."""
        return self.hz > 0.0


@dataclass(frozen=True, slots=True)
class PitchDifference:
    """Two contours of the same words."""

    error_cents: float | None
    """Median absolute difference on frames that are voiced in both, in hundredths of a semitone; None below 0.1 s."""
    voicing_agreement: float
    """Share of frames on which both agree whether they are voiced, 0 .. 1."""
    voiced_fraction: float
    """Share of the reference's frames that are voiced, 0 .. 1."""


def pitch_difference(reference: Array, test: Array, sample_rate: int) -> PitchDifference:
    """Compare the contours of two sounds of the same words and length.

    Args:
        reference: [T, channels], full scale 1.
        test: [T', channels]; the longer one is cut to the shorter one.
        sample_rate: Of both, in Hz.
    """
    length = min(len(reference), len(test))
    true, other = (track(samples[:length], sample_rate) for samples in (reference, test))
    if not len(true.hz):
        return PitchDifference(None, 1.0, 0.0)
    both = true.voiced & other.voiced
    cents = 1200.0 * np.abs(np.log2(true.hz[both] / other.hz[both]))
    error = float(np.median(cents)) if len(cents) >= _FEWEST else None
    return PitchDifference(error, float(np.mean(true.voiced == other.voiced)), float(np.mean(true.voiced)))


def track(samples: Array, sample_rate: int) -> PitchTrack:
    """Fundamental frequency of every 10 ms.

    Args:
        samples: [T, channels]; channels are averaged.
        sample_rate: In Hz.

    Example:
        >>> sine = np.sin(2 * np.pi * 200 * np.arange(48000) / 48000)[:, None]
        >>> round(float(np.median(track(sine, 48000).hz)), 1)
        200.0
    """
    mono = np.asarray(samples, np.float32).mean(axis=1)
    sound = np.asarray(resample(mono, sample_rate, RATE_HZ), np.float64)
    lags = int(RATE_HZ / LOW_HZ) + 2
    if len(sound) < _WINDOW + lags:
        return PitchTrack(np.zeros(0))
    frames = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW + lags)[::_HOP]  # [frames, _WINDOW + lags]
    normalised = _normalised_difference(frames, lags)
    period, depth = _first_dip(normalised)
    power = np.square(frames[:, :_WINDOW]).mean(axis=1)
    loud = power > max(float(power.max()) * 10.0 ** (_QUIET_DB / 10.0), 1e-12)
    with np.errstate(divide="ignore"):
        hz = np.where(loud & (depth < _THRESHOLD), RATE_HZ / period, 0.0)
    return PitchTrack(np.where((hz >= LOW_HZ) & (hz <= HIGH_HZ), hz, 0.0))


def _normalised_difference(frames: Float64, lags: int) -> Float64:
    """Steps 2 and 3: the squared difference of a window and its shifted self over its mean up to that lag.

    Args:
        frames: [frames, _WINDOW + lags].
        lags: How many.

    Returns:
        [frames, lags]; 1 at lag 0.
    """
    size = 1 << (2 * frames.shape[1] - 1).bit_length()
    window = np.fft.rfft(frames[:, :_WINDOW], size, axis=1)
    product = np.fft.irfft(np.conj(window) * np.fft.rfft(frames, size, axis=1), size, axis=1)[:, :lags]
    sums = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    energy = sums[:, _WINDOW : _WINDOW + lags] - sums[:, :lags]  # of the window at each lag
    difference = np.maximum(energy[:, :1] + energy - 2.0 * product, 0.0)
    running = np.cumsum(difference[:, 1:], axis=1)
    normalised: Float64 = np.ones_like(difference)
    counts = np.arange(1, lags)
    normalised[:, 1:] = difference[:, 1:] * counts / np.maximum(running, 1e-20)
    return normalised


def _first_dip(normalised: Float64) -> tuple[Float64, Float64]:
    """Steps 4 and 5: the first local minimum below the threshold, else the lowest; refined by a parabola.

    Returns:
        Periods in samples and depths, [frames] each.
    """
    first = int(RATE_HZ / HIGH_HZ)
    inner = normalised[:, first:-1]
    lower = (inner <= normalised[:, first - 1 : -2]) & (inner < normalised[:, first + 1 :]) & (inner < _THRESHOLD)
    lag = first + np.where(lower.any(axis=1), lower.argmax(axis=1), inner.argmin(axis=1))  # [frames]
    rows = np.arange(len(normalised))
    before, here, after = (normalised[rows, lag + shift] for shift in (-1, 0, 1))
    bend = before - 2.0 * here + after
    shift = np.where(bend > 0.0, 0.5 * (before - after) / np.where(bend > 0.0, bend, 1.0), 0.0)
    periods: Float64 = lag + np.clip(shift, -0.5, 0.5)
    return periods, here

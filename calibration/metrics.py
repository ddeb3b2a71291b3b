"""How far a tensor or a sound is from its reference, in a few numbers that JSON can hold.

In: two arrays of one shape. Out: plain floats, never NaN or infinite. Does not know: graphs, bundles, thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

SNR_CAP_DB = 200.0
"""Stands for infinity: above it are only equal arrays, since FP32 itself rounds at about 150 dB."""

_FRAME, _HOP = 1024, 256
_SPECTRUM_RANGE_DB = 80.0  # what lies deeper below the loudest bin is not heard beside it


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One output of a graph beside what it should be."""

    name: str
    """Of the output."""
    snr_db: float
    """Power of the reference over that of the error, -200 .. 200 dB; higher is better."""
    cosine: float
    """Of the angle between both, -1 .. 1; 1 is the same direction."""
    max_error: float
    """Largest absolute error among finite values; lower is better."""
    finite: float
    """Share of values that are numbers, 0 .. 1; anything below 1 is broken."""
    agreement: float | None = None
    """Share of equal values, 0 .. 1, where they are whole numbers: codes are names, and the power of the difference of
    two names says nothing."""


def compare(name: str, reference: Array, test: Array) -> TensorDifference:
    """All figures of one tensor.

    Args:
        name: Of the tensor.
        reference: [...], any dtype.
        test: [...], of the same shape.

    Example:
        >>> compare("y", np.array([0.0, 10.0]), np.array([0.0, 9.0]))
        TensorDifference(name='y', snr_db=20.0, cosine=1.0, max_error=1.0, finite=1.0, agreement=None)
    """
    return TensorDifference(
        name,
        snr_db(reference, test),
        cosine(reference, test),
        max_error(reference, test),
        finite_share(test),
        equal_share(reference, test) if np.issubdtype(reference.dtype, np.integer) else None,
    )


def worst(differences: Iterable[TensorDifference]) -> TensorDifference:
    """The worst of each figure over several calls; a gate that looks at the mean misses the one call that breaks."""
    found = list(differences)
    return TensorDifference(
        found[0].name,
        min(difference.snr_db for difference in found),
        min(difference.cosine for difference in found),
        max(difference.max_error for difference in found),
        min(difference.finite for difference in found),
        min(shares) if (shares := [item.agreement for item in found if item.agreement is not None]) else None,
    )


def snr_db(reference: Array, test: Array) -> float:
    """Signal-to-noise ratio: 10 log10 of the reference's power over that of the difference.

    Returns:
        Decibels within +-`SNR_CAP_DB`: the upper end for equal arrays, the lower end where `test` has a NaN or an
        infinity, or where the reference is zero and the test is not.

    Example:
        >>> snr_db(np.array([1.0]), np.array([1.0])), snr_db(np.array([1.0]), np.array([0.9]))
        (200.0, 20.0)
    """
    true, error = _wide(reference), _error(reference, test)
    noise, signal = float(np.dot(error, error)), float(np.dot(true, true))
    if noise == 0.0:
        return SNR_CAP_DB
    if not math.isfinite(noise) or not math.isfinite(signal) or signal == 0.0:
        return -SNR_CAP_DB
    ratio = 10.0 * math.log10(signal / noise)
    return round(min(max(ratio, -SNR_CAP_DB), SNR_CAP_DB), 4)


def cosine(reference: Array, test: Array) -> float:
    """Cosine of the angle between two arrays; 0 where one is not finite, 1 where both are zero.

    Example:
        >>> cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0]))
        0.0
    """
    true, other = _wide(reference), _wide(test)
    lengths = math.sqrt(float(np.dot(true, true))) * math.sqrt(float(np.dot(other, other)))
    if not math.isfinite(lengths):
        return 0.0
    if lengths == 0.0:
        return float(np.array_equal(true, other))
    return min(1.0, max(-1.0, float(np.dot(true, other)) / lengths))


def max_error(reference: Array, test: Array) -> float:
    """Largest absolute difference among the places where both are finite; 0 where there are none."""
    error = np.abs(_error(reference, test))
    return float(error[np.isfinite(error)].max(initial=0.0))


def finite_share(test: Array) -> float:
    """Share of values that are neither NaN nor infinite; 1 for an empty array.

    Example:
        >>> finite_share(np.array([1.0, np.nan, 2.0, np.inf]))
        0.5
    """
    return float(np.isfinite(test).mean()) if test.size else 1.0


def equal_share(reference: Array, test: Array) -> float:
    """Share of values that are the same; 1 for empty arrays.

    Example:
        >>> equal_share(np.array([3, 1, 4, 1]), np.array([3, 1, 4, 2]))
        0.75
    """
    return float((reference == test).mean()) if reference.size else 1.0


def log_spectral_distance_db(reference: Array, test: Array) -> float:
    """Root mean square difference of the log power spectra, over bins, then the mean over frames and channels.

    Gray and Markel 1976, "Distance measures for speech processing", with short-time spectra; bins are floored 80 dB
    below the reference's loudest one.

    Args:
        reference: [T, channels], full scale 1.
        test: [T', channels]; the longer one is cut to the shorter one.

    Returns:
        Decibels; 0 for equal sounds, about 1 where a difference begins to be heard.
    """
    length = min(len(reference), len(test))
    true, other = (
        power_spectra(np.asarray(samples[:length], np.float64), _FRAME, _HOP) for samples in (reference, test)
    )
    floor = max(float(true.max(initial=0.0)) * 10.0 ** (-_SPECTRUM_RANGE_DB / 10.0), np.finfo(np.float64).tiny)
    difference = 10.0 * np.log10(np.maximum(true, floor) / np.maximum(other, floor))  # [channels, frames, bins]
    return float(np.sqrt(np.square(difference).mean(axis=-1)).mean())


def power_spectra(samples: Float64, frame: int, hop: int) -> Float64:
    """Power of each short-time bin under a Hann window; what is shorter than a frame is filled up with zeros.

    Args:
        samples: [T, channels].
        frame: Samples of a window.
        hop: Samples between windows.

    Returns:
        [channels, frames, frame // 2 + 1].
    """
    missing = max(0, frame - len(samples))
    padded = np.pad(samples, ((0, missing), (0, 0))).T  # [channels, T]
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame, axis=-1)[:, ::hop]  # [channels, frames, frame]
    spectra = np.fft.rfft(frames * np.hanning(frame), axis=-1)
    return np.square(np.abs(spectra))


def _error(reference: Array, test: Array) -> Float64:
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which the callers look for
        return _wide(reference) - _wide(test)


def _wide(values: Array) -> Float64:
    return np.asarray(values, np.float64).reshape(-1)

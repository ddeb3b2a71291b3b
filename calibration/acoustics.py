"""How alike two sounds of the same words are to a listener: mel distance, loudness, silence.

In: samples and their rate. Out: plain floats, never NaN or infinite. numpy alone. Does not know: models, thresholds;
pitch is in `calibration.pitch`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from voxedge.calibration.metrics import Array, Float64, power_spectra

MEL_BANDS = 80
QUIETEST_LUFS = -70.0
"""The absolute gate of BS.1770: what has no block above it is silence."""

_FRAME_S = 0.04  # about two pitch periods of a low voice
_TOP_HZ = 12_000.0
_RANGE_DB = 80.0  # what lies deeper below the loudest band is not heard beside it
_BLOCK_S, _STEP_S = 0.4, 0.1  # BS.1770-4: 400 ms that overlap by 75 %
_RELATIVE_GATE_LU = -10.0
_OFFSET_LU = -0.691  # makes a sine of 997 Hz read its own level
_SILENCE_DB = -50.0
_SILENCE_FRAME_S = 0.02


@dataclass(frozen=True, slots=True)
class MelDistance:
    """Difference of two log-mel spectra."""

    l1_db: float
    """Mean absolute difference over bands and frames, in dB; 0 for equal sounds."""
    l2_db: float
    """Root mean square over bands, then mean over frames, in dB."""


def mel_distance(reference: Array, test: Array, sample_rate: int) -> MelDistance:
    """Distance of log-mel spectra in dB.

    80 triangular bands, evenly spaced on the mel scale of O'Shaughnessy (1987; m = 2595 log10(1 + f / 700)) from 0 to
    12 kHz or the Nyquist frequency; Hann windows of about 40 ms (a power of two samples), a quarter of that apart;
    power in dB, floored 80 dB below the reference's loudest band.

    Args:
        reference: [T, channels], full scale 1.
        test: [T', channels]; the longer one is cut to the shorter one.
        sample_rate: Of both, in Hz.
    """
    length = min(len(reference), len(test))
    true, other = (mel_power(samples[:length], sample_rate) for samples in (reference, test))
    floor = max(float(true.max(initial=0.0)) * 10.0 ** (-_RANGE_DB / 10.0), float(np.finfo(np.float64).tiny))
    difference = 10.0 * np.log10(np.maximum(true, floor) / np.maximum(other, floor))  # [channels, frames, bands]
    return MelDistance(float(np.abs(difference).mean()), float(np.sqrt(np.square(difference).mean(axis=-1)).mean()))


def mel_power(samples: Array, sample_rate: int) -> Float64:
    """Power of each mel band: [T, channels] to [channels, frames, bands]; callers floor it and take the logarithm."""
    frame = 2 ** round(math.log2(_FRAME_S * sample_rate))
    return power_spectra(np.asarray(samples, np.float64), frame, frame // 4) @ _mel_filters(frame, sample_rate)


@lru_cache(maxsize=8)
def _mel_filters(frame: int, sample_rate: int) -> Float64:
    """Triangles of height 1: [bins, bands]."""
    top = 2595.0 * math.log10(1.0 + min(_TOP_HZ, sample_rate / 2.0) / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, MEL_BANDS + 2) / 2595.0) - 1.0)  # [bands + 2], Hz
    bins = np.fft.rfftfreq(frame, 1.0 / sample_rate)[:, None]  # [bins, 1]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    filters: Float64 = np.maximum(0.0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
    return filters


def loudness_lufs(samples: Array, sample_rate: int) -> float:
    """Integrated loudness after ITU-R BS.1770-4: K-weighted, 400 ms blocks, gated at -70 LUFS and 10 LU below the rest.

    Sounds shorter than a block count as one block. Front channels alone: all have the weight 1.

    Args:
        samples: [T, channels], full scale 1.
        sample_rate: In Hz.

    Returns:
        LUFS; `QUIETEST_LUFS` where no block passes the absolute gate.

    Example:
        >>> sine = np.sin(2 * np.pi * 997 * np.arange(96000) / 48000)[:, None]
        >>> round(loudness_lufs(sine, 48000), 2)  # a full-scale sine in one channel reads -3.01 LUFS
        -3.01
    """
    weighted = _k_weighted(np.asarray(samples, np.float64), sample_rate)
    block, step = (min(round(seconds * sample_rate), len(weighted)) for seconds in (_BLOCK_S, _STEP_S))
    if block == 0:
        return QUIETEST_LUFS
    squares = np.concatenate([[0.0], np.cumsum(np.square(weighted).sum(axis=1))])  # [T + 1], channels summed
    starts = np.arange(0, len(weighted) - block + 1, max(1, step))
    power = (squares[starts + block] - squares[starts]) / block  # [blocks]
    loud = power[_lufs(power) > QUIETEST_LUFS]
    if not loud.size:
        return QUIETEST_LUFS
    kept = loud[_lufs(loud) > _lufs(loud.mean()) + _RELATIVE_GATE_LU]
    return max(QUIETEST_LUFS, float(_lufs(kept.mean())))


def _lufs(power: Float64 | np.float64) -> Float64:
    result: Float64 = _OFFSET_LU + 10.0 * np.log10(np.maximum(power, 1e-30))
    return result


def _k_weighted(samples: Float64, sample_rate: int) -> Float64:
    """Both filters of BS.1770-4, applied to the spectrum; half a second of zeros takes the tail and none wraps."""
    padded = 2 ** math.ceil(math.log2(max(1, len(samples)) + sample_rate / 2))
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(padded))[:, None]  # z^-1, [bins, 1]
    response = np.ones_like(turn)
    for above, below in _k_filters(sample_rate):
        response *= np.polyval(above[::-1], turn) / np.polyval(below[::-1], turn)
    weighted: Float64 = np.fft.irfft(np.fft.rfft(samples, padded, axis=0) * response, padded, axis=0)[: len(samples)]
    return weighted


def _k_filters(sample_rate: int) -> tuple[tuple[Float64, Float64], ...]:
    """Numerators and denominators of the head's shelf and of the high-pass, for any rate.

    The analogue prototypes behind the coefficients that BS.1770-4 lists for 48 kHz (De Man 2018, "Evaluation of
    implementations of the EBU R128 loudness measurement"), through the bilinear transform.
    """
    warped, q = math.tan(math.pi * 1681.9744509555319 / sample_rate), 0.7071752369554193
    high = 10.0 ** (3.99984385397 / 20.0)
    band = high**0.499666774155
    shelf = (
        np.array(
            [high + band * warped / q + warped**2, 2.0 * (warped**2 - high), high - band * warped / q + warped**2]
        ),
        np.array([1.0 + warped / q + warped**2, 2.0 * (warped**2 - 1.0), 1.0 - warped / q + warped**2]),
    )
    warped, q = math.tan(math.pi * 38.13547087613982 / sample_rate), 0.5003270373253953
    below = np.array([1.0 + warped / q + warped**2, 2.0 * (warped**2 - 1.0), 1.0 - warped / q + warped**2])
    # The high-pass is listed with the numerator 1, -2, 1 beside a denominator that begins with 1.
    return shelf, (np.array([1.0, -2.0, 1.0]), below / below[0])


def silent_fraction(samples: Array, sample_rate: int) -> float:
    """Share of 20 ms frames that are more than 50 dB below the loudest one, 0 .. 1; 1 where there is no sound at all.

    Example:
        >>> silent_fraction(np.concatenate([np.ones((100, 1)), np.zeros((300, 1))]), 1000)
        0.75
    """
    frame = max(1, round(_SILENCE_FRAME_S * sample_rate))
    count = len(samples) // frame
    if count == 0:
        return 0.0 if np.any(samples) else 1.0
    power = np.square(np.asarray(samples[: count * frame], np.float64)).reshape(count, -1).mean(axis=1)  # [frames]
    loudest = float(power.max())
    if loudest == 0.0:
        return 1.0
    return float(np.mean(power < loudest * 10.0 ** (_SILENCE_DB / 10.0)))

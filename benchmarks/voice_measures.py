"""What can be measured of a voice: who speaks, how high, how long.

In: sound at 16 kHz. Out: the likeliest speaker of the synthesiser that made the training data, the median F0, seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from examples.demo_voice.descriptions import SPEAKERS
from examples.demo_voice.features import HOP, SILENCE, LogMel

_RATE = 16_000
_WINDOW, _STEP = 800, 160
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 350.0
_VOICED = 0.45  # least normalised autocorrelation of a voiced frame
_RIDGE = 1.0

Sound = npt.NDArray[np.float32]


def median_f0(sound: Sound) -> float:
    """Median of the F0 of voiced frames, Hz, by autocorrelation; NaN where nothing is voiced."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW)[::_STEP].astype(np.float64)
    frames = (frames - frames.mean(1, keepdims=True)) * np.hanning(_WINDOW)
    loud = np.sqrt((frames**2).mean(1))
    frames = frames[loud > 0.2 * loud.max()]
    spectra = np.abs(np.fft.rfft(frames, 4 * _WINDOW, axis=1)) ** 2
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(_WINDOW), 4 * _WINDOW)) ** 2)  # its own decay with the lag
    correlation = np.fft.irfft(spectra, axis=1) / np.maximum(window / window[0], 1e-2)
    shortest, longest = int(_RATE / _HIGHEST_HZ), int(_RATE / _LOWEST_HZ)
    scores = correlation[:, shortest:longest] / correlation[:, :1]
    best = scores.max(1, keepdims=True)
    first = (scores > 0.9 * best).argmax(1)  # the shortest lag that is nearly as good: no octave below
    lags = shortest + np.asarray([lag + scores[row, lag : lag + 8].argmax() for row, lag in enumerate(first)])
    voiced = best[:, 0] > _VOICED
    return float(np.median(_RATE / lags[voiced])) if voiced.any() else float("nan")


class SpeakerClassifier:
    """Ridge regression from the mean and spread of log-mel to the synthesiser's three speakers."""

    def __init__(self, sounds: Sequence[Sound], speakers: Sequence[str]) -> None:
        """Learn from the synthesiser's own utterances."""
        features = np.stack([_features(sound) for sound in sounds])
        self._centre, self._scale = features.mean(0), features.std(0) + 1e-3
        scaled = self._scaled(features)
        targets = np.eye(len(SPEAKERS))[[SPEAKERS.index(speaker) for speaker in speakers]]  # type: ignore[arg-type]
        gram = scaled.T @ scaled + _RIDGE * np.eye(scaled.shape[1])
        self._weights = np.linalg.solve(gram, scaled.T @ targets)

    def speaker(self, sound: Sound) -> str:
        """Who it sounds like most."""
        return SPEAKERS[int((self._scaled(_features(sound)[None]) @ self._weights).argmax())]

    def _scaled(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scaled = (features - self._centre) / self._scale
        return np.concatenate([scaled, np.ones((len(scaled), 1))], 1)


def _features(sound: Sound) -> npt.NDArray[np.float64]:
    level = max(float(np.quantile(np.abs(sound), 0.995)), 1e-3)
    padded = np.pad(sound * (0.5 / level), (0, -len(sound) % HOP))
    mel = LogMel()(torch.from_numpy(padded.astype(np.float32))[None])[0].numpy()  # [MELS, frames]
    heard = mel[:, mel.mean(0) > SILENCE + 0.5]
    return np.concatenate([heard.mean(1), heard.std(1)]).astype(np.float64)

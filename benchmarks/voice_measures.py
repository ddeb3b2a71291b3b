"""What can be measured of a voice: who speaks, how high, how long.

In: sound at 16 kHz. Out: the likeliest speaker of the synthesiser that made the training data, the median F0, seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pocketsphinx
import torch

from examples.demo_voice.descriptions import SPEAKERS
from examples.demo_voice.features import HOP, SILENCE, LogMel
from voxedge.calibration.recogniser import PocketSphinx, Recogniser, word_errors

_RATE = 16_000
_SILENCE_S, _LEVEL = 0.3, 0.5
_WINDOW, _STEP = 800, 160
_LOWEST_HZ, _HIGHEST_HZ = 65.0, 300.0
_HIGHEST_HARMONIC_HZ = 1500.0
_RIDGE = 1.0

Sound = npt.NDArray[np.float32]


class StockEnglish(PocketSphinx):
    """PocketSphinx with its own language model: whoever speaks may say anything."""

    name = "pocketsphinx, stock English model"

    def __init__(self) -> None:
        """Load the models."""
        self._decoder = pocketsphinx.Decoder(loglevel="FATAL")


def error_rate(recogniser: Recogniser, texts: Sequence[str], sounds: Sequence[Sound]) -> float:
    """Errors of all sentences / words of all sentences."""
    silence = np.zeros(int(_SILENCE_S * _RATE), np.float32)  # a recogniser wants some around an utterance
    found = []
    for text, sound in zip(texts, sounds, strict=True):
        loud = sound * (_LEVEL / max(1e-3, float(np.abs(sound).max())))
        padded = np.concatenate([silence, loud, silence])
        found.append(word_errors(text, recogniser.transcribe(padded[:, None], _RATE)))
    return sum(each.errors for each in found) / sum(each.words for each in found)


def median_f0(sound: Sound) -> float:
    """Median F0 in Hz by autocorrelation over loud frames; NaN for silence.

    `calibration.pitch` finds hardly a voiced frame in the males: this voice's decoder makes periods that are alike in
    their spectrum, not sample by sample. A median over all loud frames needs no decision about voicing.
    """
    frames = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW)[::_STEP].astype(np.float64)
    frames = (frames - frames.mean(1, keepdims=True)) * np.hanning(_WINDOW)
    loud = np.sqrt((frames**2).mean(1))
    spectra = np.abs(np.fft.rfft(frames[loud > 0.3 * loud.max()], 4 * _WINDOW, axis=1)) ** 2
    spectra[:, int(_HIGHEST_HARMONIC_HZ * 4 * _WINDOW / _RATE) :] = 0.0
    decay = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(_WINDOW), 4 * _WINDOW)) ** 2)  # of the window itself
    correlation = np.fft.irfft(spectra, axis=1) / np.maximum(decay / decay[0], 1e-2)
    shortest, longest = int(_RATE / _HIGHEST_HZ), int(_RATE / _LOWEST_HZ)
    scores = correlation[:, shortest:longest] / correlation[:, :1]
    best = scores.max(1, keepdims=True)
    first = (scores > 0.85 * best).argmax(1)  # the shortest lag that is nearly as good: no octave below
    lags = [shortest + at + scores[row, at : at + 8].argmax() for row, at in enumerate(first)]
    strong = best[:, 0] >= np.median(best)  # the more periodic half
    return float(np.median(_RATE / np.asarray(lags)[strong])) if len(lags) else float("nan")


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

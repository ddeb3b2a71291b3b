"""Log-mel spectra, the input of both encoders.

In: samples at 16 kHz. Out: log-mel [B, MELS, frames], 100 frames per second, scaled to about unit variance. Does not
know: models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.demo_voice.synthesiser import SAMPLE_RATE

MELS = 80
HOP = 160
"""Samples per frame: four frames per speech token, two per latent."""
_WINDOW, _FFT = 640, 1024
_FLOOR = 1e-3
_OFFSET, _SCALE = 1.0, 2.5  # centre and spread of the log of mel magnitudes at this level of speech
SILENCE = (math.log(_FLOOR) + _OFFSET) / _SCALE
"""Log-mel of nothing."""


class LogMel(nn.Module):
    """Magnitude spectrum through triangular mel filters, then the logarithm."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(_WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(MELS, _FFT), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """[B, T] float in -1 .. 1, T a multiple of `HOP`, to [B, MELS, T / HOP]."""
        spectrum = torch.stft(samples, _FFT, HOP, _WINDOW, self.window, pad_mode="constant", return_complex=True)
        mel = torch.matmul(self.filters, spectrum.abs()[..., :-1])  # [B, MELS, T / HOP]
        return (mel.clamp(min=_FLOOR).log() + _OFFSET) / _SCALE


def mel_filters(bands: int, fft: int) -> Tensor:
    """Triangles [bands, fft / 2 + 1] of equal area on the mel scale of O'Shaughnessy (1987), 0 Hz to half the rate."""
    top = 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, bands + 2, dtype=torch.float64) / 2595.0) - 1.0)
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, fft // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]  # [bands, 1]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    filters = torch.minimum(rising, falling).clamp(min=0.0) * (2.0 / (high - low)) * 40.0
    return filters.float()

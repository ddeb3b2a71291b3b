"""The autoencoder: log-mel to 32 latents at 50 Hz, and Oobleck's decoder from these to the waveform.

In: log-mel [B, 4 T, MELS] and the waveform it belongs to. Out: latents [B, 32, 2 T], and a trained decoder. The encoder
is a small network of its own that sees no phase; it is not shipped, so the checkpoint's `vae` folder holds a decoder
alone. Losses are spectral, there is no discriminator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.demo_voice.corpus import TOKEN_SAMPLES
from examples.demo_voice.features import MELS, LogMel
from examples.demo_voice.pool import FRAMES, Pool
from examples.demo_voice.speech_tokenizer import Residual
from voxedge.export.checkpoint.oobleck import CoderConfig
from voxedge.export.modules.basic import Conv1d, ConvTranspose1d, Snake
from voxedge.export.modules.oobleck import decoder as oobleck_decoder

LATENTS = 32
LATENTS_PER_TOKEN = 2
DECODER = CoderConfig(
    audio_channels=1,
    channels=32,
    multiples=(1, 2, 4, 8),
    strides=(4, 8, 10),
    latent_dim=LATENTS,
    use_snake=True,
    final_tanh=False,
)
"""16 kHz, 320 samples per latent."""
_RESOLUTIONS = (64, 256, 512, 1024)
_CROP_TOKENS = 16
_MEL_WEIGHT, _WAVE_WEIGHT, _KL_WEIGHT = 2.0, 1.0, 0.01


class Vocoder(nn.Module):
    """Encoder and decoder; one pair of mel frames per latent."""

    def __init__(self) -> None:
        super().__init__()
        width = 256
        self.encoder = nn.Sequential(
            nn.Conv1d(2 * MELS, width, 5, padding=2),
            *(Residual(width, 1) for _ in range(3)),
            nn.Conv1d(width, 2 * LATENTS, 1),
        )
        self.decoder = oobleck_decoder(DECODER, torch.float32)
        _initialise(self.decoder)
        self.mel = LogMel()

    def latents(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [B, 32, 2 T] each."""
        pairs = mel.reshape(mel.shape[0], -1, 2 * MELS).transpose(1, 2)  # [B, 2 MELS, 2 T]
        mean, scale = self.encoder(pairs).float().chunk(2, 1)
        return mean, nn.functional.softplus(scale) + 1e-4

    def losses(self, mel: Tensor, wave: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch: mel [B, 4 T, MELS], wave [B, samples], noise [B, 32, 2 T]."""
        mean, deviation = self.latents(mel)
        made = self.decoder(mean + deviation * noise).float()[:, 0]  # [B, samples]
        kl = 0.5 * (mean**2 + deviation**2 - 2.0 * deviation.log() - 1.0).mean()
        with torch.autocast(wave.device.type, enabled=False):
            spectral = torch.stack([_stft_loss(made, wave, size) for size in _RESOLUTIONS]).mean()
            mels = nn.functional.l1_loss(self.mel(made), self.mel(wave))
        waves = nn.functional.l1_loss(made, wave)
        loss = spectral + _MEL_WEIGHT * mels + _WAVE_WEIGHT * waves + _KL_WEIGHT * kl
        return loss, {"stft": spectral, "mel": mels, "kl": kl, "std": deviation.mean()}


def batch(pool: Pool, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops: mel, wave and noise, see `Vocoder.losses`; crops may run over the end of an utterance."""
    start = pool.anywhere(size, _CROP_TOKENS)[:, None]
    frame = torch.arange(_CROP_TOKENS * FRAMES, device=start.device)
    sample = torch.arange(_CROP_TOKENS * TOKEN_SAMPLES, device=start.device)
    mel, wave = pool.mel[start * FRAMES + frame], pool.samples[start * TOKEN_SAMPLES + sample]
    noise = torch.randn(size, LATENTS, _CROP_TOKENS * LATENTS_PER_TOKEN, device=start.device)
    return mel.float(), wave.float() / 32768.0, noise


def _stft_loss(made: Tensor, wave: Tensor, size: int) -> Tensor:
    """Spectral convergence and log magnitude (Yamamoto et al. 2020)."""
    window = torch.hann_window(size, device=wave.device)
    spectra = [
        torch.stft(x, size, size // 4, size, window, pad_mode="constant", return_complex=True).abs().clamp(min=1e-4)
        for x in (made, wave)
    ]
    convergence: Tensor = (spectra[1] - spectra[0]).norm() / spectra[1].norm().clamp(min=1e-3)
    return convergence + nn.functional.l1_loss(spectra[0].log(), spectra[1].log())


def _initialise(module: nn.Module) -> None:
    """As PyTorch does for its own convolutions; the package's modules come without values."""
    for layer in module.modules():
        if isinstance(layer, (Conv1d, ConvTranspose1d)):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5.0))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, Snake):
            nn.init.ones_(layer.alpha)
            nn.init.ones_(layer.inverse_beta)
    module.requires_grad_(True)

"""Speech tokenizer: log-mel to one of 3^8 = 6561 codes, 25 times per second, by finite scalar quantisation.

In: log-mel [B, 4 T, MELS]. Out: digits [B, 8, T] of -1, 0, 1 and ids [B, T]. Trained to rebuild the log-mel, to tell
the phones (which makes codes phonetic and so easy to predict from text), and to tell speaker and pitch from all codes
together. Only the ids are used afterwards: nothing of this is shipped. Source: Mentzer et al. 2023; the rate and size
are those of CosyVoice 2 (Du et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.demo_voice.corpus import PHONES_PER_TOKEN
from examples.demo_voice.descriptions import SPEAKERS
from examples.demo_voice.features import MELS
from examples.demo_voice.pool import FRAMES
from examples.demo_voice.synthesiser import PHONES

DIGITS, LEVELS = 8, 3
CODES = LEVELS**DIGITS
_WIDTH = 256
_REACH = 1.2  # tanh times this: the outer codes cover as much as the middle one
CROP_TOKENS = 48
"""Of what is learned from."""
_PHONE_WEIGHT, _STYLE_WEIGHT = 0.15, 0.05


class Residual(nn.Module):
    """Dilated convolution, GELU, pointwise convolution; added to its input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(nn.functional.gelu(self.first(nn.functional.gelu(x))))
        return x + y


class SpeechTokenizer(nn.Module):
    """Encoder, quantiser, and the heads that it learns by."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(2 * MELS, _WIDTH, 5, padding=2),  # two frames at a time: 50 per second
            Residual(_WIDTH, 1),
            nn.Conv1d(_WIDTH, _WIDTH, 4, stride=2, padding=1),
            *(Residual(_WIDTH, 1) for _ in range(2)),
            nn.Conv1d(_WIDTH, DIGITS, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(DIGITS, _WIDTH, 5, padding=2),
            *(Residual(_WIDTH, dilation) for dilation in (1, 3, 9, 1)),
            nn.GELU(),
            nn.Conv1d(_WIDTH, FRAMES * MELS, 3, padding=1),
        )
        self.phones = nn.Sequential(
            nn.Conv1d(DIGITS, 256, 1), nn.GELU(), nn.Conv1d(256, PHONES_PER_TOKEN * len(PHONES), 1)
        )
        self.style = nn.Sequential(nn.Conv1d(DIGITS, 64, 1), nn.GELU(), nn.Conv1d(64, 64, 1), nn.GELU())
        self.style_head = nn.Linear(64, len(SPEAKERS) * 3)

    def digits(self, mel: Tensor) -> Tensor:
        """Log-mel [B, 4 T, MELS] to digits [B, 8, T]; gradients pass the rounding unchanged."""
        pairs = mel.reshape(mel.shape[0], -1, 2 * MELS).transpose(1, 2)  # [B, 2 MELS, 2 T]
        soft = torch.tanh(self.encoder(pairs).float()) * _REACH
        return soft + (soft.round().clamp(-1, 1) - soft).detach()

    def rebuild(self, digits: Tensor) -> Tensor:
        """Digits [B, 8, T] to log-mel [B, 4 T, MELS]."""
        return self.decoder(digits).float().transpose(1, 2).reshape(digits.shape[0], -1, MELS)  # type: ignore[no-any-return]

    def losses(self, mel: Tensor, phones: Tensor, style: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch; phones [B, 2 T], style [B]."""
        digits = self.digits(mel)
        rebuilt = nn.functional.l1_loss(self.rebuild(digits), mel)
        batch, _, tokens = digits.shape
        logits = self.phones(digits).float().reshape(batch, PHONES_PER_TOKEN, len(PHONES), tokens)
        logits = logits.permute(0, 2, 3, 1).reshape(batch, len(PHONES), -1)  # [B, phones, 2 T]
        phonetic = nn.functional.cross_entropy(logits, phones)
        mean = self.style(digits).float().mean(-1)  # [B, 64]
        styled = nn.functional.cross_entropy(self.style_head(mean), style)
        right = (logits.argmax(1) == phones).float().mean()
        told = (self.style_head(mean).argmax(1) == style).float().mean()
        figures = {"mel": rebuilt, "phones": right, "style": told}
        return rebuilt + _PHONE_WEIGHT * phonetic + _STYLE_WEIGHT * styled, figures


def ids_of(digits: Tensor) -> Tensor:
    """Digits [B, 8, T] of -1, 0, 1 to ids [B, T]; the first digit counts most."""
    powers = LEVELS ** torch.arange(DIGITS - 1, -1, -1, device=digits.device)
    return ((digits.round().long() + 1) * powers[:, None]).sum(1)


def digits_table() -> Tensor:
    """Every code as one-hot digits, [CODES, DIGITS * LEVELS]; what factorised tables are made from."""
    powers = LEVELS ** torch.arange(DIGITS - 1, -1, -1)
    values = (torch.arange(CODES)[:, None] // powers) % LEVELS  # [CODES, DIGITS]
    return nn.functional.one_hot(values, LEVELS).reshape(CODES, -1).float()

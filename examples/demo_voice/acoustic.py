"""The diffusion transformer: speech tokens to latents.

In: tokens [B, T] and scaled latents [B, 32, 2 T]. Out: the loss of EDM (Karras et al. 2022). The network is the one
that is exported. The table of token embeddings is a sum of digit vectors and a free row while it is learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.demo_voice.speech_tokenizer import CODES, DIGITS, LEVELS, digits_table
from examples.demo_voice.vocoder import LATENTS, LATENTS_PER_TOKEN
from voxedge.export.checkpoint.dit import DitConfig
from voxedge.export.modules.attention import RotaryTables, rotary_tables
from voxedge.export.modules.basic import IslandLinear, LayerNorm, Linear
from voxedge.export.modules.dit import Block, DiffusionTransformer, FourierFeatures

TABLE_WIDTH = 64
SIGMA_DATA = 1.0
"""Latents are scaled to it, each channel by itself."""
CONFIG = DitConfig(
    io_channels=LATENTS,
    embed_dim=256,
    depth=4,
    num_heads=4,
    rotary_dim=32,
    input_concat_dim=TABLE_WIDTH,
    global_cond_type="adaLN",
    ff_mult=3,
)
_ROTARY_THETA = 10_000.0
_FROM_ZERO = ("to_out.weight", "ff.ff.2.weight", "project_out.weight", "process_conv.weight")
_CROP_TOKENS = 48
_LOG_SIGMA_MEAN, _LOG_SIGMA_STD = 0.3, 1.6  # much noise is what few solver steps see most


class Acoustic(nn.Module):
    """Table and network."""

    def __init__(self) -> None:
        super().__init__()
        self.dit = DiffusionTransformer(CONFIG, _CROP_TOKENS * LATENTS_PER_TOKEN, torch.float32)
        self.digits = nn.Parameter(torch.randn(DIGITS * LEVELS, TABLE_WIDTH) / math.sqrt(DIGITS))
        self.free = nn.Parameter(torch.randn(CODES, TABLE_WIDTH) * 0.05)
        self.register_buffer("table", digits_table(), persistent=False)
        _initialise(self.dit)

    def token_rows(self) -> Tensor:
        """[CODES, TABLE_WIDTH]."""
        return self.table @ self.digits + self.free  # type: ignore[operator]

    def losses(
        self, tokens: Tensor, latents: Tensor, log_sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch: tokens [B, T], latents and noise [B, 32, 2 T], log_sigma [B]."""
        sigma = log_sigma.exp()[:, None, None]
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        condition = self.token_rows()[tokens].repeat_interleave(LATENTS_PER_TOKEN, 1).transpose(1, 2)  # [B, C, 2 T]
        noisy = latents + sigma * noise
        with noisy.device:  # where the network makes its positions
            raw = self.dit(noisy / total, log_sigma / 4.0, [condition])
        clean = noisy * (SIGMA_DATA / total) ** 2 + raw * (sigma * SIGMA_DATA / total)
        squares = ((clean - latents) ** 2).mean((1, 2))  # [B]
        loss = (squares * (total / (sigma * SIGMA_DATA))[:, 0, 0] ** 2).mean()
        noisy_rows = log_sigma > 1.5
        return loss, {"loss": loss, "noisiest": (squares * noisy_rows).sum() / noisy_rows.sum().clamp(min=1)}


class Crops:
    """Tokens and latents of the corpus, to draw from."""

    def __init__(self, codes: Tensor, latents: Tensor, first: int) -> None:
        """Put them on a device.

        Args:
            codes: [tokens].
            latents: [2 tokens, 32].
            first: Token that training begins at.
        """
        self.scale = scale_of(latents)
        self._codes, self._latents, self._first = codes, latents, first

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random crops, see `Acoustic.losses`; like windows of a stream they begin and end anywhere."""
        device = self._codes.device
        spare = len(self._codes) - self._first - _CROP_TOKENS
        start = self._first + torch.randint(spare, (size, 1), device=device)
        tokens = self._codes[start + torch.arange(_CROP_TOKENS, device=device)].long()
        span = _CROP_TOKENS * LATENTS_PER_TOKEN
        cut = self._latents[start * LATENTS_PER_TOKEN + torch.arange(span, device=device)].float() / self.scale
        log_sigma = _LOG_SIGMA_MEAN + _LOG_SIGMA_STD * torch.randn(size, device=device)
        return tokens, cut.transpose(1, 2), log_sigma, torch.randn(size, LATENTS, span, device=device)


def scale_of(latents: Tensor) -> Tensor:
    """Root mean square of each channel, [32]; the decoder takes it back in its first convolution."""
    return (latents.float() ** 2).mean(0).sqrt()


def _initialise(dit: DiffusionTransformer) -> None:
    """The package's modules come without values; what adds to the residual stream and the output begin at 0."""
    dit.requires_grad_(True)
    for module in dit.modules():
        if isinstance(module, (Linear, IslandLinear)):
            nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.weight.shape[isinstance(module, IslandLinear)]))
            _fill(module.bias, 0.0)
        elif isinstance(module, LayerNorm):
            _fill(module.weight, 1.0)
            _fill(module.bias, 0.0)
        elif isinstance(module, FourierFeatures):
            nn.init.normal_(module.weight)
        elif isinstance(module, RotaryTables):
            _fill_rotary(module.requires_grad_(False))
        elif isinstance(module, Block):
            _fill(module.to_scale_shift_gate, 0.0)
    for name, weight in dit.named_parameters():
        if name.endswith(_FROM_ZERO):
            _fill(weight, 0.0)


def _fill(weight: nn.Parameter | None, value: float) -> None:
    if weight is not None:
        nn.init.constant_(weight, value)


def _fill_rotary(tables: RotaryTables) -> None:
    values = rotary_tables(CONFIG.rotary_dim, tables.cos.shape[0], _ROTARY_THETA)
    for table, value in zip((tables.cos, tables.sin), values, strict=True):
        table.data.copy_(torch.from_numpy(value))

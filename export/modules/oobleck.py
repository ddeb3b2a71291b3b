"""Oobleck, the convolutional autoencoder of Stable Audio (Evans et al. 2024): latents to waveform and back.

In: latents [B, latent, T] or audio [B, channels, samples]. Out: the other. Module and parameter names are the ones of
stable-audio-tools checkpoints after folding weight norm. Convolutions run in the weights' dtype but for the last one,
whose output is the waveform or the latents; snakes are FP32. Knows nothing of chunks: see `runtime.latents`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from voxedge.export.checkpoint.oobleck import CoderConfig
from voxedge.export.modules.basic import Conv1d, ConvTranspose1d, Snake

DILATIONS = (1, 3, 9)


class Layers(nn.Module):
    """A sequence under the name `layers`, as the checkpoints have it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ResidualUnit(Layers):
    """Activation, dilated convolution, activation, convolution of width 1; added to its input."""

    def __init__(self, width: int, dilation: int, config: CoderConfig, dtype: torch.dtype) -> None:
        super().__init__(
            _activation(config, width),
            Conv1d(width, width, 7, dtype, padding=3 * dilation, dilation=dilation),
            _activation(config, width),
            Conv1d(width, width, 1, dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def decoder(config: CoderConfig, dtype: torch.dtype) -> nn.Module:
    """Latents [B, latent, T] to audio [B, channels, samples]; odd strides give a few samples less than T times hop."""
    widths = _widths(config)
    layers: list[nn.Module] = [Conv1d(config.latent_dim, widths[-1], 7, dtype, padding=3)]
    for level in range(len(config.strides), 0, -1):
        layers.append(_decoder_block(widths[level], widths[level - 1], config.strides[level - 1], config, dtype))
    last = Conv1d(widths[0], config.audio_channels, 7, torch.float32, padding=3, bias=False)
    layers += [_activation(config, widths[0]), last, nn.Tanh() if config.final_tanh else nn.Identity()]
    return Layers(*layers)


def encoder(config: CoderConfig, dtype: torch.dtype) -> nn.Module:
    """Audio [B, channels, samples] to [B, mean | scale, T]."""
    widths = _widths(config)
    layers: list[nn.Module] = [Conv1d(config.audio_channels, widths[0], 7, dtype, padding=3)]
    for level, stride in enumerate(config.strides):
        layers.append(_encoder_block(widths[level], widths[level + 1], stride, config, dtype))
    last = Conv1d(widths[-1], config.latent_dim, 3, torch.float32, padding=1)
    return Layers(*layers, _activation(config, widths[-1]), last)


def _decoder_block(inputs: int, outputs: int, stride: int, config: CoderConfig, dtype: torch.dtype) -> nn.Module:
    upsample = ConvTranspose1d(inputs, outputs, 2 * stride, dtype, stride=stride, padding=math.ceil(stride / 2))
    units = [ResidualUnit(outputs, dilation, config, dtype) for dilation in DILATIONS]
    return Layers(_activation(config, inputs), upsample, *units)


def _encoder_block(inputs: int, outputs: int, stride: int, config: CoderConfig, dtype: torch.dtype) -> nn.Module:
    units = [ResidualUnit(inputs, dilation, config, dtype) for dilation in DILATIONS]
    downsample = Conv1d(inputs, outputs, 2 * stride, dtype, stride=stride, padding=math.ceil(stride / 2))
    return Layers(*units, _activation(config, inputs), downsample)


def _activation(config: CoderConfig, width: int) -> nn.Module:
    return Snake(width) if config.use_snake else nn.ELU()


def _widths(config: CoderConfig) -> list[int]:
    """Channels of every level, the one next to the waveform first."""
    return [config.width(level) for level in range(len(config.multiples))]

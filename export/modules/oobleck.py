"""Oobleck, the convolutional autoencoder of Stable Audio (Evans et al. 2024): latents to waveform and back.

In: latents [B, latent, T] or audio [B, channels, samples]. Out: the other. Module and parameter names are the ones of
stable-audio-tools checkpoints after folding weight norm. Convolutions run in the weights' dtype but for the last one,
whose output is the waveform or the latents; snakes are FP32. Knows nothing of chunks: see `runtime.latents`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxedge.export.modules.basic import Conv1d, ConvTranspose1d, Snake

DILATIONS = (1, 3, 9)


@dataclass(frozen=True, slots=True)
class CoderShape:
    """Sizes of one half of the autoencoder."""

    audio_channels: int
    channels: int
    multiples: tuple[int, ...]
    """Width of each level in units of `channels`, beginning with the one next to the waveform."""
    strides: tuple[int, ...]
    """In the order of the encoder."""
    latent_channels: int
    """Encoder: what it gives (mean and scale); decoder: what it takes."""
    use_snake: bool
    final_tanh: bool
    dtype: torch.dtype

    @property
    def widths(self) -> list[int]:
        """Channels of every level, waveform first; one more than there are strides."""
        return [multiple * self.channels for multiple in (1, *self.multiples)]


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

    def __init__(self, width: int, dilation: int, shape: CoderShape) -> None:
        super().__init__(
            _activation(shape, width),
            Conv1d(width, width, 7, shape.dtype, padding=3 * dilation, dilation=dilation),
            _activation(shape, width),
            Conv1d(width, width, 1, shape.dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def decoder(shape: CoderShape) -> nn.Module:
    """Latents [B, latent, T] to audio [B, channels, samples]; odd strides give a few samples less than T times hop."""
    widths = shape.widths
    layers: list[nn.Module] = [Conv1d(shape.latent_channels, widths[-1], 7, shape.dtype, padding=3)]
    for level in range(len(shape.strides), 0, -1):
        layers.append(_decoder_block(widths[level], widths[level - 1], shape.strides[level - 1], shape))
    last = Conv1d(widths[0], shape.audio_channels, 7, torch.float32, padding=3, bias=False)
    layers += [_activation(shape, widths[0]), last, nn.Tanh() if shape.final_tanh else nn.Identity()]
    return Layers(*layers)


def encoder(shape: CoderShape) -> nn.Module:
    """Audio [B, channels, samples] to [B, mean | scale, T]."""
    widths = shape.widths
    layers: list[nn.Module] = [Conv1d(shape.audio_channels, widths[0], 7, shape.dtype, padding=3)]
    for level, stride in enumerate(shape.strides):
        layers.append(_encoder_block(widths[level], widths[level + 1], stride, shape))
    last = Conv1d(widths[-1], shape.latent_channels, 3, torch.float32, padding=1)
    return Layers(*layers, _activation(shape, widths[-1]), last)


def _decoder_block(inputs: int, outputs: int, stride: int, shape: CoderShape) -> nn.Module:
    upsample = ConvTranspose1d(inputs, outputs, 2 * stride, shape.dtype, stride=stride, padding=math.ceil(stride / 2))
    units = [ResidualUnit(outputs, dilation, shape) for dilation in DILATIONS]
    return Layers(_activation(shape, inputs), upsample, *units)


def _encoder_block(inputs: int, outputs: int, stride: int, shape: CoderShape) -> nn.Module:
    units = [ResidualUnit(inputs, dilation, shape) for dilation in DILATIONS]
    downsample = Conv1d(inputs, outputs, 2 * stride, shape.dtype, stride=stride, padding=math.ceil(stride / 2))
    return Layers(*units, _activation(shape, inputs), downsample)


def _activation(shape: CoderShape, width: int) -> nn.Module:
    return Snake(width) if shape.use_snake else nn.ELU()

"""The Oobleck vocoder of Stable Audio, as data: configuration of encoder and decoder, and their tensors' shapes.

In: nothing. Out: frozen records that every layout of files is read into, and the canonical names, which are
stable-audio-tools' with weight normalisation folded. Does not know: files, graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.export.checkpoint.keys import Shape
from voxedge.export.checkpoint.tensors import LazyTensor

RESIDUAL_UNITS = 3


@dataclass(frozen=True, slots=True)
class CoderConfig:
    """One half of the autoencoder."""

    audio_channels: int
    """Channels of the waveform."""
    channels: int
    """Width at the audio end; `multiples` scale it."""
    multiples: tuple[int, ...]
    """Width of each level in units of `channels`, from the audio end: 1, then one per stride."""
    strides: tuple[int, ...]
    """Down-sampling of each level, from the audio end (the decoder uses them in reverse)."""
    latent_dim: int
    """Channels at the latent end; the encoder's are mean and scale together."""
    use_snake: bool
    """Snake activations with learned alpha and beta; otherwise ELU."""
    final_tanh: bool
    """Whether the decoder ends in tanh; always False for an encoder."""

    @property
    def hop(self) -> int:
        """Audio samples per latent."""
        return math.prod(self.strides)

    def width(self, level: int) -> int:
        """Channels at a level; level 0 is the audio end."""
        return self.multiples[level] * self.channels


@dataclass(frozen=True, slots=True)
class VaeCheckpoint:
    """A vocoder: latents to audio, and where the files have it, audio to latents."""

    encoder: CoderConfig | None
    """Audio to latents; None where the files have only a decoder."""
    decoder: CoderConfig
    """Latents to audio."""
    tensors: Mapping[str, LazyTensor]
    """Weights by canonical name: `decoder.layers...`, `encoder.layers...`; alpha and beta are logarithms, [C]."""
    latent_dim: int
    """Channels of a latent."""
    sample_rate: int
    """Audio samples per second."""
    audio_channels: int
    """1 for mono, 2 for stereo."""
    scale: float
    """Latents are multiplied by this before the decoder and divided by it after the encoder."""
    files: tuple[Path, ...]
    """Files that were read."""

    @property
    def latent_rate(self) -> float:
        """Latents per second."""
        return self.sample_rate / self.decoder.hop


def decoder_shapes(config: CoderConfig) -> dict[str, Shape]:
    """Shape of every decoder tensor, by canonical name; the last convolution has no bias."""
    levels = len(config.strides)
    shapes = _conv("decoder.layers.0", config.width(levels), config.latent_dim, 7)
    for block in range(1, levels + 1):
        wide, narrow = config.width(levels - block + 1), config.width(levels - block)
        name = f"decoder.layers.{block}.layers"
        shapes.update(_snake(f"{name}.0", wide, config))
        kernel = 2 * config.strides[levels - block]
        shapes[f"{name}.1.weight"] = (wide, narrow, kernel)  # transposed: input channels first
        shapes[f"{name}.1.bias"] = (narrow,)
        for unit in range(RESIDUAL_UNITS):
            shapes.update(_residual_unit(f"{name}.{unit + 2}", narrow, config))
    shapes.update(_snake(f"decoder.layers.{levels + 1}", config.width(0), config))
    shapes[f"decoder.layers.{levels + 2}.weight"] = (config.audio_channels, config.width(0), 7)
    return shapes


def encoder_shapes(config: CoderConfig) -> dict[str, Shape]:
    """Shape of every encoder tensor, by canonical name."""
    levels = len(config.strides)
    shapes = _conv("encoder.layers.0", config.width(0), config.audio_channels, 7)
    for block in range(1, levels + 1):
        narrow, wide = config.width(block - 1), config.width(block)
        name = f"encoder.layers.{block}.layers"
        for unit in range(RESIDUAL_UNITS):
            shapes.update(_residual_unit(f"{name}.{unit}", narrow, config))
        shapes.update(_snake(f"{name}.3", narrow, config))
        shapes.update(_conv(f"{name}.4", wide, narrow, 2 * config.strides[block - 1]))
    shapes.update(_snake(f"encoder.layers.{levels + 1}", config.width(levels), config))
    shapes.update(_conv(f"encoder.layers.{levels + 2}", config.latent_dim, config.width(levels), 3))
    return shapes


def _residual_unit(name: str, width: int, config: CoderConfig) -> dict[str, Shape]:
    return {
        **_snake(f"{name}.layers.0", width, config),
        **_conv(f"{name}.layers.1", width, width, 7),
        **_snake(f"{name}.layers.2", width, config),
        **_conv(f"{name}.layers.3", width, width, 1),
    }


def _snake(name: str, width: int, config: CoderConfig) -> dict[str, Shape]:
    return {f"{name}.alpha": (width,), f"{name}.beta": (width,)} if config.use_snake else {}


def _conv(name: str, outputs: int, inputs: int, kernel: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs, kernel), f"{name}.bias": (outputs,)}

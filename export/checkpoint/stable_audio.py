"""Open the acoustic decoder and the vocoder of Stable Audio, in either of their public layouts.

In: a folder with stable-audio-tools' `model_config.json`, or with diffusers' `config.json`, and weights
(safetensors or torch files, raw training checkpoints included). Out: `DitCheckpoint`, `VaeCheckpoint`. Does not know:
language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint import diffusers, stable_audio_dit, stable_audio_vae
from voxedge.export.checkpoint.config_file import Section, load_config
from voxedge.export.checkpoint.dit import DiffusionSettings, DitCheckpoint, DitConfig
from voxedge.export.checkpoint.keys import Tensors, with_prefix
from voxedge.export.checkpoint.oobleck import CoderConfig, VaeCheckpoint
from voxedge.export.checkpoint.safetensors_reader import read_safetensors
from voxedge.export.checkpoint.tensors import LazyTensor
from voxedge.export.checkpoint.weight_files import Weights, open_weights

__all__ = [
    "CoderConfig", "DiffusionSettings", "DitCheckpoint", "DitConfig", "VaeCheckpoint", "load_dit", "load_vae",
]  # fmt: skip

CONFIG_NAMES = ("model_config.json", "config.json")


def load_dit(folder: Path, diffusion: Mapping[str, object] | None = None) -> DitCheckpoint:
    """Open a diffusion transformer.

    Args:
        folder: with configuration and weights; diffusers' layout needs `conditioner.safetensors` with the key
            `token_embedder.weight` besides.
        diffusion: replaces `objective`, `sigma_data`, `sigma_min`, `sigma_max` or `rho` of the checkpoint.

    Raises:
        CheckpointError: an option is not supported, or the weights do not fit.
        MissingResourceError: a file is missing.
    """
    section, weights, files = _open(folder)
    if diffusers.is_diffusers(section):
        conditioner = folder / "conditioner.safetensors"
        table = read_safetensors(conditioner)
        return diffusers.read_dit(section, weights.tensors, table, diffusion, (*files, conditioner))
    return stable_audio_dit.read_dit(section, unwrap_training(weights.tensors, folder), diffusion, files)


def load_vae(folder: Path) -> VaeCheckpoint:
    """Open an Oobleck autoencoder, alone or inside a diffusion checkpoint.

    Args:
        folder: with configuration and weights.

    Raises:
        CheckpointError: an option is not supported, or the weights do not fit.
        MissingResourceError: a file is missing.
    """
    section, weights, files = _open(folder)
    if diffusers.is_diffusers(section):
        return diffusers.read_vae(section, weights.tensors, files)
    return stable_audio_vae.read_vae(section, unwrap_training(weights.tensors, folder), files)


def _open(folder: Path) -> tuple[Section, Weights, tuple[Path, ...]]:
    config = next((folder / name for name in CONFIG_NAMES if (folder / name).exists()), None)
    if config is None:
        raise MissingResourceError(f"{folder}: expected {' or '.join(CONFIG_NAMES)}, found neither; check the path")
    weights = open_weights(folder)
    return Section(load_config(config), str(config)), weights, (config, *weights.files)


def unwrap_training(tensors: Tensors, where: Path) -> dict[str, LazyTensor]:
    """Take the model out of a raw training checkpoint, with averaged weights where it has them.

    Training wraps a diffusion model as `diffusion.` with its average as `diffusion_ema.ema_model.` (of the part
    `diffusion.model.`), and an autoencoder as `autoencoder.` with `autoencoder_ema.ema_model.`. Other tensors there
    (discriminators, losses) are dropped. Tensors of an exported model are returned unchanged.

    Raises:
        CheckpointError: the averaged weights cover only a part of the model.
    """
    for wrapper, part in (("diffusion", "model."), ("autoencoder", "")):
        plain = with_prefix(tensors, f"{wrapper}.")
        averaged = {_inside(key, part): each for key, each in with_prefix(tensors, f"{wrapper}_ema.ema_model.").items()}
        if not plain and not averaged:
            continue
        uncovered = sorted(key for key in plain if key.startswith(part) and key not in averaged)
        if averaged and any(key.startswith(part) for key in plain) and uncovered:
            raise CheckpointError(
                f"{where}: expected averaged weights for the whole {wrapper}, missing {uncovered[:6]}; "
                "export the checkpoint with stable-audio-tools' unwrap_model.py"
            )
        return {**plain, **averaged}
    return dict(tensors)


def _inside(key: str, part: str) -> str:
    """Name of an averaged tensor inside the whole model: the average is of `part` alone."""
    whole = key.startswith((f"{part}{part}", "conditioner.", "pretransform.")) if part else True
    return key if whole else part + key

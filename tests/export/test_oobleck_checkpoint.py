"""Stable Audio's vocoder: both layouts and all spellings of weight norm give the same tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    Arrays,
    Golden,
    assert_identical,
    config_file,
    edit,
    rewrite,
    weights_file,
)
from safetensors.numpy import load_file, save_file

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.stable_audio import load_dit, load_vae
from voxedge.export.checkpoint.tensors import materialise
from voxedge.export.checkpoint.transforms import WeightNorm

VAE_CASES = ("oobleck", "oobleck_odd", "oobleck_diffusers")


@pytest.mark.parametrize("case", VAE_CASES)
def test_vocoders_load_with_folded_weights(golden: Golden, case: str) -> None:
    folder = golden(case) / "checkpoint"
    stored = load_file(weights_file(folder))
    vae = load_vae(folder)
    gains = [key for key in stored if key.endswith("weight_g")]
    assert len(vae.tensors) == len(stored) - len(gains)
    assert vae.latent_rate * vae.decoder.hop == vae.sample_rate
    assert vae.encoder is not None and vae.encoder.latent_dim == 2 * vae.latent_dim
    folded = [tensor for tensor in vae.tensors.values() if isinstance(tensor, WeightNorm)]
    assert len(folded) == len(gains)
    for tensor in folded[:: max(1, len(folded) // 12)]:
        gain, direction = materialise(tensor.gain), materialise(tensor.direction)
        norm = np.sqrt((materialise(tensor).astype(np.float64) ** 2).sum(axis=(1, 2), keepdims=True))
        # a folded weight has the norm |g|; its float32 rounding errs by at most half a unit (2^-24) per element
        np.testing.assert_allclose(norm, np.abs(gain), rtol=2**-22)
        assert tensor.shape == direction.shape
    assert all(len(each.shape) == 1 for key, each in vae.tensors.items() if key.endswith((".alpha", ".beta")))


def to_diffusers(key: str, levels: int) -> str:
    """The diffusers name of a stable-audio-tools vocoder key, written independently of the reader's rules."""
    half, _, first, *rest = key.split(".")
    level = int(first)
    if not 1 <= level <= levels:
        return ".".join([half, {0: "conv1", levels + 1: "snake1", levels + 2: "conv2"}[level], *rest])
    place, tail, shift = int(rest[1]), rest[2:], 2 if half == "decoder" else 0
    if shift <= place < shift + 3:
        unit = ("snake1", "conv1", "snake2", "conv2")[int(tail[1])]
        return ".".join([half, "block", str(level - 1), f"res_unit{place - shift + 1}", unit, *tail[2:]])
    names = {"decoder": {0: "snake1", 1: "conv_t1"}, "encoder": {3: "snake1", 4: "conv1"}}
    return ".".join([half, "block", str(level - 1), names[half][place], *tail])


def test_both_layouts_of_a_vocoder_are_identical(golden: Golden, tmp_path: Path) -> None:
    """The golden diffusers vocoder, rewritten as stable-audio-tools would store it."""
    source = golden("oobleck_diffusers") / "checkpoint"
    raw, stored = json.loads(config_file(source).read_text()), load_file(weights_file(source))
    levels = len(raw["downsampling_ratios"])
    reference = load_vae(source)
    leaves = ("weight_g", "weight_v", "weight", "bias", "alpha", "beta")
    names = {f"{key.rpartition('.')[0]}.{leaf}" for key in reference.tensors for leaf in leaves}
    back = {to_diffusers(name, levels): name for name in names}
    arrays = {back[key]: a.reshape(-1) if key.endswith(("alpha", "beta")) else a for key, a in stored.items()}
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, tmp_path / "model.safetensors")
    coder = {"c_mults": raw["channel_multiples"], "strides": raw["downsampling_ratios"], "use_snake": True}
    channels, latent_dim = raw["audio_channels"], raw["decoder_input_channels"]
    encoder = {**coder, "in_channels": channels, "channels": raw["encoder_hidden_size"], "latent_dim": 2 * latent_dim}
    decoder = {**coder, "out_channels": channels, "channels": raw["decoder_channels"], "latent_dim": latent_dim}
    model = {
        "encoder": {"type": "oobleck", "config": encoder},
        "decoder": {"type": "oobleck", "config": {**decoder, "final_tanh": False}},
        "bottleneck": {"type": "vae"},
        "latent_dim": latent_dim,
        "downsampling_ratio": reference.decoder.hop,
        "io_channels": channels,
    }
    config = {"model_type": "autoencoder", "sample_rate": raw["sampling_rate"], "model": model}
    (tmp_path / "model_config.json").write_text(json.dumps(config))
    rewritten = load_vae(tmp_path)
    assert (rewritten.encoder, rewritten.decoder) == (reference.encoder, reference.decoder)
    assert_identical(dict(rewritten.tensors), dict(reference.tensors))


@pytest.mark.parametrize("case", VAE_CASES)
def test_weight_norm_spellings_are_identical(copy: Callable[..., Path], case: str) -> None:
    folder = copy(case)
    before = {key: materialise(tensor) for key, tensor in load_vae(folder).tensors.items()}
    old = ("weight_g", "weight_v")
    new = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    rewrite(folder, lambda arrays: {k.replace(old[0], new[0]).replace(old[1], new[1]): a for k, a in arrays.items()})
    for key, tensor in load_vae(folder).tensors.items():
        np.testing.assert_array_equal(materialise(tensor), before[key])

    # plain weights, at the names that this layout of files has for them
    def plain(arrays: Arrays) -> Arrays:
        folded = {}
        for key, array in arrays.items():
            if key.endswith(new[1]):
                gain = arrays[key.replace(new[1], new[0])].astype(np.float64)
                wide = array.astype(np.float64).reshape(len(array), -1)
                norm = np.sqrt((wide * wide).sum(axis=1)).reshape(gain.shape)
                folded[key.replace(new[1], "weight")] = (array * (gain / norm)).astype(np.float32)
            elif not key.endswith(new[0]):
                folded[key] = array
        return folded

    rewrite(folder, plain)
    for key, tensor in load_vae(folder).tensors.items():
        np.testing.assert_array_equal(materialise(tensor), before[key])


def with_pretransform(copy: Callable[..., Path], scale: float) -> Path:
    """A diffusion checkpoint that includes its vocoder."""
    folder, vae = copy("stable_dit"), copy("oobleck_odd")
    config = json.loads(config_file(vae).read_text())
    edit(folder, "model.pretransform", {"type": "autoencoder", "scale": scale, "config": config["model"]})
    inner = {f"pretransform.model.{key}": array for key, array in load_file(weights_file(vae)).items()}
    rewrite(folder, lambda arrays: {**arrays, **inner})
    return folder


def test_a_full_checkpoint_has_transformer_and_vocoder(copy: Callable[..., Path], golden: Golden) -> None:
    folder = with_pretransform(copy, 0.5)
    vae, dit = load_vae(folder), load_dit(folder)
    assert (vae.scale, dit.latent_scale) == (0.5, 0.5)
    assert_identical(dict(vae.tensors), dict(load_vae(golden("oobleck_odd") / "checkpoint").tensors))
    assert_identical(dict(dit.tensors), dict(load_dit(golden("stable_dit") / "checkpoint").tensors))


def test_raw_training_checkpoints_of_a_vocoder(copy: Callable[..., Path]) -> None:
    folder = copy("oobleck_odd")
    original = {key: materialise(tensor) for key, tensor in load_vae(folder).tensors.items()}

    def train(arrays: Arrays) -> Arrays:
        plain = {f"autoencoder.{key}": np.zeros_like(array) for key, array in arrays.items()}
        averaged = {f"autoencoder_ema.ema_model.{key}": array for key, array in arrays.items()}
        return {**plain, **averaged, "discriminator.weight": np.ones(3, np.float32)}

    rewrite(folder, train)
    for key, tensor in load_vae(folder).tensors.items():
        np.testing.assert_array_equal(materialise(tensor), original[key])


def test_a_decoder_alone(copy: Callable[..., Path]) -> None:
    folder = copy("oobleck_odd")
    rewrite(folder, lambda arrays: {key: array for key, array in arrays.items() if key.startswith("decoder.")})
    vae = load_vae(folder)
    assert vae.encoder is None and vae.decoder.final_tanh
    assert all(key.startswith("decoder.") for key in vae.tensors)


CODER = "model.decoder.config"
REFUSED_VAE = {
    "antialias_activation": (f"{CODER}.antialias_activation", True),
    "use_nearest_upsample": (f"{CODER}.use_nearest_upsample", True),
    "soft_clip": ("model.decoder.soft_clip", True),
    "type": ("model.bottleneck.type", "rvq"),
    "latent_dim": ("model.latent_dim", 16),
    "downsampling_ratio": ("model.downsampling_ratio", 2048),
    "io_channels": ("model.io_channels", 3),
    "strides": (f"{CODER}.strides", [2, 4]),
    "integers from 1 to 4096": (f"{CODER}.strides", [2, 3, 4, 5, 0]),
    "pretransform": ("model.pretransform", {"type": "patched"}),
    "unheard_of": (f"{CODER}.unheard_of", 1),
    "alpha": (f"{CODER}.use_snake", False),
    "sample_rate": ("sample_rate", None),
}


@pytest.mark.parametrize(("path", "value"), REFUSED_VAE.values(), ids=REFUSED_VAE.keys())
def test_other_vocoders_are_refused_by_name(
    copy: Callable[..., Path], request: pytest.FixtureRequest, path: str, value: object
) -> None:
    folder = copy("oobleck_odd")
    edit(folder, path, value)
    with pytest.raises(CheckpointError, match=request.node.callspec.id):
        load_vae(folder)

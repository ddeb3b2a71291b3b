"""Stable Audio's transformer: both layouts give the same tensors, other variants are refused by name."""

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
from safetensors.numpy import load_file

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.stable_audio import load_dit, load_vae
from voxedge.export.checkpoint.tensors import materialise

DIT_CASES = {"stable_dit": "prepend", "stable_dit_adaln": "adaLN"}


@pytest.mark.parametrize("case", DIT_CASES)
def test_stable_audio_tools_transformers(golden: Golden, case: str) -> None:
    folder = golden(case) / "checkpoint"
    stored, model = load_file(weights_file(folder)), json.loads(config_file(folder).read_text())["model"]
    dit = load_dit(folder)
    raw = model["diffusion"]["config"]
    assert (dit.config.embed_dim, dit.config.depth, dit.config.num_heads) == tuple(
        raw[key] for key in ("embed_dim", "depth", "num_heads")
    )
    assert dit.config.global_cond_type == DIT_CASES[case]
    assert dit.config.num_memory_tokens == raw.get("num_memory_tokens", 0)
    assert dit.config.rotary_dim == 2 * stored["model.model.transformer.rotary_pos_emb.inv_freq"].size
    assert {name: getattr(dit.diffusion, name) for name in model["diffusion"]["edm"]} == model["diffusion"]["edm"]
    assert (dit.route, dit.diffusion.objective) == ("input_concat", "edm")
    assert dit.frame_rate == model["conditioning"]["configs"][0]["config"]["frame_rate"]
    table = stored.pop("conditioner.conditioners.speech_tokens.token_embedder.weight")
    np.testing.assert_array_equal(materialise(dit.token_table), table)
    kept = {key.removeprefix("model.model."): array for key, array in stored.items() if "inv_freq" not in key}
    assert set(dit.tensors) == set(kept)
    for key, array in kept.items():
        np.testing.assert_array_equal(materialise(dit.tensors[key], 999), array)


def test_both_layouts_of_a_transformer_are_identical(golden: Golden) -> None:
    diffusers, tools = (load_dit(golden("stable_dit_diffusers") / name) for name in ("checkpoint", "checkpoint_sat"))
    assert diffusers.config == tools.config
    assert diffusers.config.cross_attention and diffusers.config.cross_kv_heads >= 1
    assert (diffusers.route, diffusers.diffusion) == (tools.route, tools.diffusion)
    assert_identical(dict(diffusers.tensors), dict(tools.tensors))
    np.testing.assert_array_equal(materialise(diffusers.token_table), materialise(tools.token_table))


def test_diffusion_settings_can_be_given(golden: Golden) -> None:
    folder = golden("stable_dit_diffusers") / "checkpoint"
    assert load_dit(folder).diffusion.sigma_max == 80.0
    assert load_dit(folder, {"sigma_max": 100}).diffusion.sigma_max == 100.0
    velocity = load_dit(folder, {"objective": "v"}).diffusion
    assert (velocity.objective, velocity.sigma_data) == ("v", 1.0)
    with pytest.raises(CheckpointError, match="unknown options sigma"):
        load_dit(folder, {"sigma": 1.0})


def test_stock_objectives(copy: Callable[..., Path]) -> None:
    folder = copy("stable_dit")
    edit(folder, "model.diffusion.edm", None)
    for objective in ("v", "rectified_flow"):
        edit(folder, "model.diffusion.diffusion_objective", objective)
        assert load_dit(folder).diffusion.objective == objective
    edit(folder, "model.diffusion.diffusion_objective", None)
    assert load_dit(folder).diffusion.objective == "v"  # what stable-audio-tools assumes


def test_raw_training_checkpoints_prefer_averaged_weights(copy: Callable[..., Path]) -> None:
    folder = copy("stable_dit")
    original = {key: materialise(tensor) for key, tensor in load_dit(folder).tensors.items()}

    def train(arrays: Arrays) -> Arrays:
        plain = {f"diffusion.{key}": array for key, array in arrays.items()}
        averaged = {
            f"diffusion_ema.ema_model.{key.removeprefix('model.')}": array + 1
            for key, array in arrays.items()
            if key.startswith("model.")
        }
        return {**plain, **averaged, "diffusion_ema.step": np.ones(1, np.int64), "losses.weight": np.ones(3, "f4")}

    rewrite(folder, train)
    dit = load_dit(folder)
    for key, array in original.items():
        np.testing.assert_array_equal(materialise(dit.tensors[key]), array + 1)
    drop = "diffusion_ema.ema_model.model.preprocess_conv.weight"
    rewrite(folder, lambda arrays: {key: array for key, array in arrays.items() if key != drop})
    with pytest.raises(CheckpointError, match=r"preprocess_conv.*unwrap_model"):
        load_dit(folder)


OPTIONS = "model.diffusion.config"
REFUSED_DIT = {
    "conformer": (f"{OPTIONS}.conformer", True),
    "differential": (f"{OPTIONS}.attn_kwargs.differential", True),
    "dyt": (f"{OPTIONS}.attn_kwargs.qk_norm", "dyt"),
    "feat_scale": (f"{OPTIONS}.attn_kwargs.feat_scale", True),
    "flash": (f"{OPTIONS}.attn_kwargs.flash", True),
    "use_conv": (f"{OPTIONS}.ff_kwargs.use_conv", True),
    "glu": (f"{OPTIONS}.ff_kwargs.glu", False),
    "no_bias": (f"{OPTIONS}.ff_kwargs.no_bias", True),
    "sliding_window": (f"{OPTIONS}.sliding_window", [64, 64]),
    "layer_scale": (f"{OPTIONS}.layer_scale", True),
    "remove_norms": (f"{OPTIONS}.remove_norms", True),
    "use_sinusoidal_emb": (f"{OPTIONS}.use_sinusoidal_emb", True),
    "use_abs_pos_emb": (f"{OPTIONS}.use_abs_pos_emb", True),
    "rotary_pos_emb": (f"{OPTIONS}.rotary_pos_emb", False),
    "add_rope": (f"{OPTIONS}.add_rope", True),
    "timestep_cond_type": (f"{OPTIONS}.timestep_cond_type", "input_concat"),
    "timestep_embed_dim": (f"{OPTIONS}.timestep_embed_dim", 7),
    "transformer_type": (f"{OPTIONS}.transformer_type", "x-transformers"),
    "eps": (f"{OPTIONS}.norm_kwargs.eps", 1e-6),
    "unheard_of": (f"{OPTIONS}.unheard_of", 1),
    "num_heads must": (f"{OPTIONS}.embed_dim", 1),
    "num_heads": (f"{OPTIONS}.num_heads", 3),
    "diffusion_objective": ("model.diffusion.diffusion_objective", "rf_denoiser"),
    "`edm` is given": ("model.diffusion.diffusion_objective", "v"),
    "distribution_shift_options": ("model.diffusion.distribution_shift_options", {"type": "full"}),
    "rho": ("model.diffusion.edm.rho", 0),
    "sigma": ("model.diffusion.edm.sigma", 1),
    "input_concat_ids": ("model.diffusion.input_concat_ids", ["other"]),
    "input_concat_dim is 24, but input_concat_ids is": ("model.diffusion.input_concat_ids", []),
    "prepend_cond_dim is 0, but prepend_cond_ids is": ("model.diffusion.prepend_cond_ids", ["speech_tokens"]),
    "cond_token_dim is 24, but cross_attention_cond_ids is": (f"{OPTIONS}.cond_token_dim", 24),
    "global_cond_ids": ("model.diffusion.global_cond_ids", ["seconds_total"]),
    "type": ("model.conditioning.configs.0.type", "t5"),
    "configs": ("model.conditioning.configs", []),
    "io_channels": ("model.io_channels", 64),
    "model_type": ("model_type", "lm"),
    "unknown options unheard_of": ("model.diffusion.unheard_of", 1),
}


@pytest.mark.parametrize(("path", "value"), REFUSED_DIT.values(), ids=REFUSED_DIT.keys())
def test_other_transformers_are_refused_by_name(
    copy: Callable[..., Path], request: pytest.FixtureRequest, path: str, value: object
) -> None:
    folder = copy("stable_dit")
    edit(folder, path, value)
    with pytest.raises(CheckpointError, match=request.node.callspec.id):
        load_dit(folder)


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        ("stable_dit_diffusers", "num_key_value_attention_heads", 2),
        ("stable_dit_diffusers", "out_channels", 16),
        ("stable_dit_diffusers", "cross_attention_dim", 32),
        ("stable_dit_diffusers", "_class_name", "FluxTransformer2DModel"),
        ("stable_dit_diffusers", "unheard_of", 1),
        ("oobleck_diffusers", "channel_multiples", [1, 1]),
        ("oobleck_diffusers", "encoder_hidden_size", 128),
        ("oobleck_diffusers", "unheard_of", 1),
    ],
)
def test_other_diffusers_configurations_are_refused(
    copy: Callable[..., Path], case: str, field: str, value: object
) -> None:
    folder = copy(case)
    edit(folder, field, value)
    with pytest.raises(CheckpointError, match=field):
        load_dit(folder) if case == "stable_dit_diffusers" else load_vae(folder)


def test_missing_and_foreign_tensors_are_named(copy: Callable[..., Path]) -> None:
    folder = copy("stable_dit")
    rewrite(folder, lambda arrays: {**arrays, "surprise.weight": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError, match=r"surprise\.weight"):
        load_dit(folder)
    diffusers = copy("stable_dit_diffusers")
    gone = "transformer_blocks.0.attn1.to_v.weight"
    rewrite(diffusers, lambda arrays: {key: array for key, array in arrays.items() if key != gone})
    with pytest.raises(CheckpointError, match=r"missing: transformer\.layers\.0\.self_attn\.to_qkv\.weight"):
        load_dit(diffusers)
    (diffusers / "conditioner.safetensors").unlink()
    with pytest.raises(MissingResourceError, match=r"conditioner\.safetensors"):
        load_dit(diffusers)
    with pytest.raises(MissingResourceError, match=r"model_config\.json"):
        load_vae(folder.parent)

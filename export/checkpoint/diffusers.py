"""Read diffusers' layouts of the diffusion transformer and of the Oobleck autoencoder.

In: the parsed `config.json` and the tensors beside it. Out: the same records as for stable-audio-tools, under the same
canonical names, with separate query, key and value matrices stacked. Does not know: stable-audio-tools' configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxedge.export.checkpoint.config_file import Section
from voxedge.export.checkpoint.dit import (
    DEFAULT_SETTINGS,
    IGNORED_KEYS,
    DitCheckpoint,
    DitConfig,
    expected_shapes,
    override_settings,
)
from voxedge.export.checkpoint.keys import Rule, Tensors, rename, select
from voxedge.export.checkpoint.oobleck import CoderConfig, VaeCheckpoint
from voxedge.export.checkpoint.rearrange import Reshaped, Stacked
from voxedge.export.checkpoint.stable_audio_vae import build_vae
from voxedge.export.checkpoint.tensors import LazyTensor

DIT_CLASS = "StableAudioDiTModel"
VAE_CLASS = "AutoencoderOobleck"
LAYER = r"^transformer_blocks\.(\d+)\."
DIT_RULES = (
    Rule(r"^time_proj\.weight$", "timestep_features.weight"),
    Rule(r"^timestep_proj\.", "to_timestep_embed."),
    Rule(r"^cross_attention_proj\.", "to_cond_embed."),
    Rule(r"^global_proj\.", "to_global_embed."),
    Rule(r"^proj_(in|out)\.", r"transformer.project_\1."),
    Rule(LAYER + r"norm(\d)\.weight$", r"transformer_blocks.\1.norm\2.gamma"),
    Rule(LAYER + r"norm(\d)\.bias$", r"transformer_blocks.\1.norm\2.beta"),
    Rule(LAYER + r"norm1\.", r"transformer.layers.\1.pre_norm."),
    Rule(LAYER + r"norm2\.", r"transformer.layers.\1.cross_attend_norm."),
    Rule(LAYER + r"norm3\.", r"transformer.layers.\1.ff_norm."),
    Rule(LAYER + r"attn1\.", r"transformer.layers.\1.self_attn."),
    Rule(LAYER + r"attn2\.", r"transformer.layers.\1.cross_attn."),
    Rule(LAYER + r"ff\.net\.", r"transformer.layers.\1.ff.ff."),
    Rule(r"\.to_out\.0\.weight$", ".to_out.weight"),
)
RESIDUAL_RULES = tuple(
    Rule(rf"\.res_unit(\d)\.{name}\.", rf".res_unit\1.layers.{number}.")
    for number, name in enumerate(("snake1", "conv1", "snake2", "conv2"))
)


def is_diffusers(section: Section) -> bool:
    """Whether a `config.json` names a diffusers class."""
    return "_class_name" in section


def read_dit(
    section: Section,
    tensors: Tensors,
    conditioner: Tensors,
    overrides: Mapping[str, object] | None,
    files: tuple[Path, ...],
) -> DitCheckpoint:
    """Build the record of a diffusers diffusion transformer; its configuration names no objective, so EDM is assumed.

    Args:
        section: the whole `config.json`.
        tensors: the transformer's.
        conditioner: `token_embedder.weight`, [tokens, cross_attention_input_dim].
        overrides: replaces fields of the diffusion settings.
        files: where the above come from.

    Raises:
        CheckpointError: unsupported or unknown options, or weights that do not fit them.
    """
    config = _dit_config(section)
    settings = override_settings(
        DEFAULT_SETTINGS["edm"], Section(dict(overrides or {}), f"{section.where}: diffusion overrides")
    )
    renamed = _stack(_stack(rename(tensors, DIT_RULES), "to_qkv", "qkv"), "to_kv", "kv")
    features = renamed.get("timestep_features.weight")
    if features is not None and len(features.shape) == 1:
        renamed["timestep_features.weight"] = Reshaped(features, (features.shape[0], 1))
    table = conditioner.get("token_embedder.weight")
    rows = table.shape[0] if table is not None and table.shape else 0
    expected = {"token_embedder.weight": (rows, config.cond_token_dim)}
    return DitCheckpoint(
        config=config,
        diffusion=settings,
        route="cross_attention",
        tensors=select(renamed, expected_shapes(config), section.where, IGNORED_KEYS),
        token_table=select(conditioner, expected, f"{section.where}: conditioner")["token_embedder.weight"],
        frame_rate=None,
        latent_scale=None,
        files=files,
    )


def _dit_config(section: Section) -> DitConfig:
    section.text("_class_name", choices=(DIT_CLASS,))
    section.ignore(("_diffusers_version", "_name_or_path", "sample_size"))
    heads, head_dim = section.integer("num_attention_heads"), section.integer("attention_head_dim")
    inputs, width, embed_dim = (
        section.integer("cross_attention_input_dim"),
        section.integer("cross_attention_dim"),
        heads * head_dim,
    )
    if width not in (inputs, embed_dim):
        raise section.fail("cross_attention_dim", f"cross_attention_input_dim {inputs} or the width {embed_dim}")
    channels = section.integer("in_channels")
    if section.integer("out_channels") != channels:
        raise section.fail("out_channels", f"in_channels = {channels}")
    config = DitConfig(
        io_channels=channels,
        embed_dim=embed_dim,
        depth=section.integer("num_layers", maximum=1000),
        num_heads=heads,
        rotary_dim=head_dim // 2,
        cond_token_dim=inputs,
        project_cond_tokens=width != inputs,
        global_cond_dim=section.integer("global_states_input_dim"),
        timestep_features_dim=section.integer("time_proj_dim"),
    ).validate(section.where)
    if section.integer("num_key_value_attention_heads") != config.cross_kv_heads:
        raise section.fail(
            "num_key_value_attention_heads", f"cross_attention_dim / head width, {config.cross_kv_heads}"
        )
    section.finish()
    return config


def _stack(tensors: dict[str, LazyTensor], stacked: str, parts: str) -> dict[str, LazyTensor]:
    """Join separate projections into the one matrix of stable-audio-tools, rows in the order of `parts`."""
    module = "self_attn" if len(parts) == 3 else "cross_attn"
    stems = {key[: key.rindex("to_")] for key in tensors if key.endswith(f".{module}.to_k.weight")}
    for stem in stems:
        keys = [f"{stem}to_{part}.weight" for part in parts]
        if all(key in tensors for key in keys):  # otherwise `select` names what is missing
            tensors[f"{stem}{stacked}.weight"] = Stacked(tuple(tensors.pop(key) for key in keys))
    return tensors


def read_vae(section: Section, tensors: Tensors, files: tuple[Path, ...]) -> VaeCheckpoint:
    """Build the record of a diffusers Oobleck autoencoder.

    Args:
        section: the whole `config.json`.
        tensors: the autoencoder's.
        files: where the above come from.

    Raises:
        CheckpointError: unsupported or unknown options, or weights that do not fit them.
    """
    section.text("_class_name", choices=(VAE_CLASS,))
    section.ignore(("_diffusers_version", "_name_or_path"))
    strides = section.integers("downsampling_ratios", maximum=4096)
    multiples = (1, *section.integers("channel_multiples"))
    audio_channels, hidden = section.integer("audio_channels"), section.integer("encoder_hidden_size")
    if len(multiples) != len(strides) + 1:
        raise section.fail("channel_multiples", f"as many as downsampling_ratios, {len(strides)}")
    decoder = CoderConfig(
        audio_channels=audio_channels,
        channels=section.integer("decoder_channels"),
        multiples=multiples,
        strides=strides,
        latent_dim=section.integer("decoder_input_channels"),
        use_snake=True,
        final_tanh=False,
    )
    encoder = CoderConfig(audio_channels, hidden, multiples, strides, hidden, use_snake=True, final_tanh=False)
    sample_rate = section.integer("sampling_rate")
    section.finish()
    if encoder.latent_dim != 2 * decoder.latent_dim:
        raise section.fail("encoder_hidden_size", f"2 * decoder_input_channels = {2 * decoder.latent_dim}")
    renamed = rename(tensors, (*RESIDUAL_RULES, *_vae_rules(len(strides))))
    return build_vae(encoder, decoder, _flat_snakes(renamed), sample_rate, 1.0, section.where, files)


def _vae_rules(levels: int) -> tuple[Rule, ...]:
    """Rules from diffusers' module names to positions in stable-audio-tools' sequences."""
    rules = []
    for level in range(levels):
        decoder, encoder = rf"^decoder\.block\.{level}\.", rf"^encoder\.block\.{level}\."
        to_decoder, to_encoder = f"decoder.layers.{level + 1}.layers.", f"encoder.layers.{level + 1}.layers."
        rules += [Rule(decoder + r"snake1\.", to_decoder + "0."), Rule(decoder + r"conv_t1\.", to_decoder + "1.")]
        rules += [Rule(encoder + r"snake1\.", to_encoder + "3."), Rule(encoder + r"conv1\.", to_encoder + "4.")]
        rules += [Rule(decoder + rf"res_unit{unit}\.", f"{to_decoder}{unit + 1}.") for unit in (1, 2, 3)]
        rules += [Rule(encoder + rf"res_unit{unit}\.", f"{to_encoder}{unit - 1}.") for unit in (1, 2, 3)]
    for half in ("decoder", "encoder"):
        places = {"conv1": 0, "snake1": levels + 1, "conv2": levels + 2}
        rules += [Rule(rf"^{half}\.{name}\.", f"{half}.layers.{place}.") for name, place in places.items()]
    return tuple(rules)


def _flat_snakes(tensors: Tensors) -> dict[str, LazyTensor]:
    """Snake parameters are [1, C, 1] in diffusers and [C] in stable-audio-tools."""
    flat = dict(tensors)
    for key, tensor in tensors.items():
        if key.endswith((".alpha", ".beta")) and len(tensor.shape) == 3:
            flat[key] = Reshaped(tensor, (tensor.shape[1],))
    return flat

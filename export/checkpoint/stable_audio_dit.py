"""Read stable-audio-tools' configuration and key layout of a conditioned diffusion transformer.

In: the parsed `model_config.json` and the tensors beside it. Out: a `DitCheckpoint`. Options that change what is
computed and are not implemented are refused by name, unknown ones too. Does not know: diffusers, the vocoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section
from voxedge.export.checkpoint.dit import (
    DEFAULT_SETTINGS,
    IGNORED_KEYS,
    OBJECTIVES,
    DiffusionSettings,
    DitCheckpoint,
    DitConfig,
    expected_shapes,
    override_settings,
)
from voxedge.export.checkpoint.keys import Tensors, select, with_prefix
from voxedge.export.checkpoint.tensors import LazyTensor

ROUTES = {
    "input_concat_ids": ("input_concat", "input_concat_dim"),
    "cross_attention_cond_ids": ("cross_attention", "cond_token_dim"),
    "prepend_cond_ids": ("prepend", "prepend_cond_dim"),
}
FIXED_OPTIONS: dict[str, tuple[object, ...]] = {
    "transformer_type": ("continuous_transformer",),
    "timestep_cond_type": ("global",),
    "rotary_pos_emb": (True,),
    "conformer": (False,),
    "use_sinusoidal_emb": (False,),
    "use_abs_pos_emb": (False,),
    "sliding_window": (),
    "remove_norms": (False,),
    "layer_scale": (False,),
    "add_rope": (False,),
    "causal": (False,),
}
FIXED_ATTENTION: dict[str, tuple[object, ...]] = {"differential": (False,), "feat_scale": (False,)}
FIXED_FEED_FORWARD: dict[str, tuple[object, ...]] = {"glu": (True,), "no_bias": (False,), "use_conv": (False,)}
FIXED_NORM: dict[str, tuple[object, ...]] = {"bias": (True, False), "eps": (1e-5,), "fix_scale": (False,)}
NOT_IMPLEMENTED = "this variant is not implemented"


@dataclass(frozen=True, slots=True)
class SpeechConditioner:
    """The embedding of speech tokens that the configuration declares."""

    id: str
    """Name under which the diffusion section refers to it."""
    num_tokens: int
    """Rows of the table."""
    channels: int
    """Channels of an embedded token."""
    frame_rate: float | None
    """Tokens per second."""


def read_dit(
    section: Section, tensors: Tensors, overrides: Mapping[str, object] | None, files: tuple[Path, ...]
) -> DitCheckpoint:
    """Build the record of a stable-audio-tools diffusion checkpoint.

    Args:
        section: the whole `model_config.json`.
        tensors: `model.model.*`, `conditioner.conditioners.*`, and possibly `pretransform.*`.
        overrides: replaces fields of the diffusion settings.
        files: where the above come from.

    Raises:
        CheckpointError: unsupported or unknown options, or weights that do not fit them.
    """
    section.text("model_type", choices=("diffusion_cond",))
    section.ignore(("sample_rate", "sample_size", "audio_channels", "training"))
    model = section.section("model")
    section.finish()
    conditioner = _conditioner(model.section("conditioning"))
    diffusion = model.section("diffusion")
    diffusion.text("type", choices=("dit",))
    config = _config(diffusion.section("config"))
    route = _route(diffusion, config, conditioner)
    settings = _settings(diffusion)
    diffusion.finish()
    scale = model.section("pretransform").number("scale", 1.0) if "pretransform" in model else None
    if model.integer("io_channels", config.io_channels) != config.io_channels:
        raise model.fail("io_channels", f"{config.io_channels} as in diffusion.config")
    model.finish()
    if overrides is not None:
        settings = override_settings(settings, Section(dict(overrides), f"{section.where}: diffusion overrides"))
    return DitCheckpoint(
        config=config,
        diffusion=settings,
        route=route,
        tensors=_dit_tensors(tensors, config, section.where),
        token_table=_token_table(tensors, conditioner, section.where),
        frame_rate=conditioner.frame_rate,
        latent_scale=scale,
        files=files,
    )


def _dit_tensors(tensors: Tensors, config: DitConfig, where: str) -> dict[str, LazyTensor]:
    known = ("model.model.", "conditioner.conditioners.", "pretransform.")
    strangers = sorted(key for key in tensors if not key.startswith(known))
    if strangers:
        raise CheckpointError(f"{where}: expected keys that begin with {', '.join(known)}, found {strangers[:12]}")
    return select(with_prefix(tensors, "model.model."), expected_shapes(config), where, IGNORED_KEYS)


def _token_table(tensors: Tensors, conditioner: SpeechConditioner, where: str) -> LazyTensor:
    prefix, leaf = "conditioner.conditioners.", f"{conditioner.id}.token_embedder.weight"
    expected = {leaf: (conditioner.num_tokens, conditioner.channels)}
    return select(with_prefix(tensors, prefix), expected, f"{where}: {prefix[:-1]}")[leaf]


def _conditioner(section: Section) -> SpeechConditioner:
    channels = section.integer("cond_dim")
    section.ignore(("default_keys", "pre_encoded_keys"))
    entries = section.raw("configs", [])
    section.finish()
    if not isinstance(entries, list) or len(entries) != 1:
        raise section.fail("configs", "one conditioner of type speech_token_lut")
    entry = Section(entries[0], f"{section.where}: configs[0]")
    entry.text("type", choices=("speech_token_lut",))
    options = entry.section("config")
    conditioner = SpeechConditioner(
        id=entry.text("id"),
        num_tokens=options.integer("num_tokens"),
        channels=channels,
        frame_rate=options.number("frame_rate", minimum=1.0) if "frame_rate" in options else None,
    )
    entry.finish()
    options.ignore(("frame_rate",))
    options.finish()
    return conditioner


def _route(diffusion: Section, config: DitConfig, conditioner: SpeechConditioner) -> str:
    """Which input the speech tokens feed; every other conditioned input must be absent."""
    used = []
    for key, (route, size) in ROUTES.items():
        ids, width = diffusion.texts(key), getattr(config, size)
        if ids not in ((), (conditioner.id,)):
            raise diffusion.fail(key, f"only the speech conditioner {conditioner.id!r}")
        if width != (conditioner.channels if ids else 0):
            raise CheckpointError(
                f"{diffusion.where}: {size} is {width}, but {key} is {list(ids)} and tokens have "
                f"{conditioner.channels} channels; inputs without a source are not supported"
            )
        used += [route] if ids else []
    if len(used) != 1:
        raise CheckpointError(f"{diffusion.where}: expected speech tokens in one of {', '.join(ROUTES)}, found {used}")
    if len(diffusion.texts("global_cond_ids")) != (1 if config.global_cond_dim else 0):
        raise diffusion.fail("global_cond_ids", "one id when global_cond_dim is set, otherwise none")
    return used[0]


def _settings(diffusion: Section) -> DiffusionSettings:
    objective = diffusion.text("diffusion_objective", "v", OBJECTIVES)
    diffusion.refuse_unless("distribution_shift_options", (), "shifted schedules are not implemented")
    settings = DEFAULT_SETTINGS[objective]
    if "edm" not in diffusion:
        return settings
    if objective != "edm":
        raise CheckpointError(f'{diffusion.where}: `edm` is given, but diffusion_objective is "{objective}"')
    edm = diffusion.section("edm")
    if "objective" in edm:
        raise edm.fail("objective", "no objective here; it is diffusion_objective")
    return override_settings(settings, edm)


def _config(section: Section) -> DitConfig:
    for key, allowed in FIXED_OPTIONS.items():
        section.refuse_unless(key, allowed, NOT_IMPLEMENTED)
    section.ignore(("zero_init_branch_outputs",))  # matters for training only
    embed_dim, heads = section.integer("embed_dim"), section.integer("num_heads")
    section.refuse_unless("timestep_embed_dim", (embed_dim,), "the time embedding must have embed_dim channels")
    _nested(section, "norm_kwargs", FIXED_NORM).finish()
    attention = _nested(section, "attn_kwargs", FIXED_ATTENTION)
    feed_forward = _nested(section, "ff_kwargs", FIXED_FEED_FORWARD)
    config = DitConfig(
        io_channels=section.integer("io_channels"),
        embed_dim=embed_dim,
        depth=section.integer("depth", maximum=1000),
        num_heads=heads,
        rotary_dim=max(embed_dim // heads // 2, 32),
        patch_size=section.integer("patch_size", 1),
        cond_token_dim=section.integer("cond_token_dim", 0, minimum=0),
        project_cond_tokens=section.boolean("project_cond_tokens", True),
        global_cond_dim=section.integer("global_cond_dim", 0, minimum=0),
        project_global_cond=section.boolean("project_global_cond", True),
        input_concat_dim=section.integer("input_concat_dim", 0, minimum=0),
        prepend_cond_dim=section.integer("prepend_cond_dim", 0, minimum=0),
        global_cond_type=section.text("global_cond_type", "prepend", ("prepend", "adaLN")),
        num_memory_tokens=section.integer("num_memory_tokens", 0, minimum=0),
        qk_norm=attention.text("qk_norm", "none", ("none", "l2", "ln")),
        ff_mult=feed_forward.integer("mult", 4),
    )
    for each in (section, attention, feed_forward):
        each.finish()
    return config.validate(section.where)


def _nested(section: Section, key: str, fixed: Mapping[str, tuple[object, ...]]) -> Section:
    nested = section.section(key, {})
    for option, allowed in fixed.items():
        nested.refuse_unless(option, allowed, NOT_IMPLEMENTED)
    return nested

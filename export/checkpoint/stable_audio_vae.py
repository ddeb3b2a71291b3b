"""Read stable-audio-tools' configuration and key layout of an Oobleck autoencoder.

In: the parsed `model_config.json` of an autoencoder, or of a diffusion model that includes one as its pretransform,
and the tensors beside it. Out: a `VaeCheckpoint` with weight normalisation folded. Does not know: diffusers.
"""

from __future__ import annotations

from pathlib import Path

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section
from voxedge.export.checkpoint.keys import Tensors, fold_weight_norm, select, with_prefix
from voxedge.export.checkpoint.oobleck import CoderConfig, VaeCheckpoint, decoder_shapes, encoder_shapes

PRETRANSFORM_PREFIX = "pretransform.model."


def read_vae(section: Section, tensors: Tensors, files: tuple[Path, ...]) -> VaeCheckpoint:
    """Build the record of a stable-audio-tools autoencoder.

    Args:
        section: the whole `model_config.json`, of model_type "autoencoder" or "diffusion_cond".
        tensors: `encoder.*` and `decoder.*`, or `pretransform.model.*` among others.
        files: where the above come from.

    Raises:
        CheckpointError: unsupported or unknown options, or weights that do not fit them.
    """
    kind = section.text("model_type", choices=("autoencoder", "diffusion_cond"))
    sample_rate, model, scale = section.integer("sample_rate"), section.section("model"), 1.0
    section.ignore(("sample_size", "audio_channels", "training"))
    section.finish()
    if kind == "diffusion_cond":
        pretransform = model.section("pretransform")
        pretransform.text("type", choices=("autoencoder",))
        pretransform.ignore(("iterate_batch", "model_half", "chunked", "enable_grad"))
        scale, model = pretransform.number("scale", 1.0), pretransform.section("config")
        pretransform.finish()
        tensors = with_prefix(tensors, PRETRANSFORM_PREFIX)
    return build_vae(*_coders(model), tensors, sample_rate, scale, section.where, files)


def build_vae(
    encoder: CoderConfig | None,
    decoder: CoderConfig,
    tensors: Tensors,
    sample_rate: int,
    scale: float,
    where: str,
    files: tuple[Path, ...],
) -> VaeCheckpoint:
    """Check tensors under stable-audio-tools names against a configuration.

    A file without any encoder tensor is a decoder-only release: its encoder is None.

    Raises:
        CheckpointError: a tensor is missing, unknown or misshaped, or the latent scale is 0.
    """
    if not scale:
        raise CheckpointError(f"{where}: expected a latent scale above 0, found {scale}")
    if not any(key.startswith("encoder.") for key in tensors):
        encoder = None
    shapes = decoder_shapes(decoder)
    if encoder is not None:
        shapes.update(encoder_shapes(encoder))
    return VaeCheckpoint(
        encoder=encoder,
        decoder=decoder,
        tensors=select(fold_weight_norm(tensors), shapes, where),
        latent_dim=decoder.latent_dim,
        sample_rate=sample_rate,
        audio_channels=decoder.audio_channels,
        scale=scale,
        files=files,
    )


def _coders(model: Section) -> tuple[CoderConfig | None, CoderConfig]:
    latent_dim = model.integer("latent_dim")
    bottleneck = model.section("bottleneck")
    bottleneck.text("type", choices=("vae",))
    bottleneck.ignore(("config",))  # the mean is used, whatever sampling was configured
    bottleneck.finish()
    decoder = _coder(model.section("decoder"), "out_channels", decodes=True)
    encoder = _coder(model.section("encoder"), "in_channels", decodes=False) if "encoder" in model else None
    if decoder.latent_dim != latent_dim or (encoder is not None and encoder.latent_dim != 2 * latent_dim):
        raise model.fail("latent_dim", "the decoder's latent_dim and half of the encoder's (mean and scale)")
    ratio, channels = model.integer("downsampling_ratio"), model.integer("io_channels")
    if any(each is not None and each.hop != ratio for each in (encoder, decoder)):
        raise model.fail("downsampling_ratio", f"the product of the strides, {decoder.hop}")
    if any(each is not None and each.audio_channels != channels for each in (encoder, decoder)):
        raise model.fail("io_channels", f"the coders' audio channels, {decoder.audio_channels}")
    model.refuse_unless("soft_clip", (False,), "clipping after the decoder is not implemented")
    model.refuse_unless("pretransform", (), "an autoencoder on top of another transform is not implemented")
    model.ignore(("encoder", "sample_rate"))
    model.finish()
    return encoder, decoder


def _coder(section: Section, channels_key: str, decodes: bool) -> CoderConfig:
    section.text("type", choices=("oobleck",))
    section.refuse_unless("soft_clip", (False,), "clipping after the decoder is not implemented")
    section.ignore(("requires_grad",))
    options = section.section("config")
    section.finish()
    options.refuse_unless("antialias_activation", (False,), "anti-aliased activations are not implemented")
    if decodes:
        options.refuse_unless("use_nearest_upsample", (False,), "only transposed convolutions are implemented")
    config = CoderConfig(
        audio_channels=options.integer(channels_key, 2),
        channels=options.integer("channels", 128),
        multiples=(1, *options.integers("c_mults")),
        strides=options.integers("strides", maximum=4096),
        latent_dim=options.integer("latent_dim"),
        use_snake=options.boolean("use_snake", False),
        final_tanh=decodes and options.boolean("final_tanh", True),
    )
    options.finish()
    if len(config.strides) + 1 != len(config.multiples):
        raise options.fail("strides", f"as many as c_mults, {len(config.multiples) - 1}")
    return config

"""Export MoE-TTS: two experts over one cache, the diffusion decoder and the vocoder.

In: a MoE-TTS checkpoint of any supported layout. Out: a `SystemPlan`. Routing by modality is static and attention is
causal, so each expert is an ordinary decoder graph: no graph routes anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxedge.engines.errors import CheckpointError, ConfigError
from voxedge.engines.records import from_dict, to_dict
from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.moe_tts import MoeTtsCheckpoint, load_moe_tts
from voxedge.export.checkpoint.rearrange import Rows, Stacked
from voxedge.export.checkpoint.tensors import LazyTensor
from voxedge.export.config import ExportConfig
from voxedge.export.decoder_graphs import DecoderOptions, decoder_plan
from voxedge.export.diffusion_graphs import conditioner_plan, dit_plan, vae_plans
from voxedge.export.exporter import SystemPlan
from voxedge.runtime.systems.moe_tts_settings import (
    RECOMMENDED_SAMPLING,
    SYSTEM,
    DiffusionSettings,
    MoeTtsSettings,
    PromptSettings,
    SpeechSettings,
    VocoderSettings,
)


def plan(folder: Path, config: ExportConfig) -> SystemPlan:
    """Plan the bundle of a checkpoint folder.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete or of an unsupported kind.
        MissingResourceError: A file is missing.
    """
    checkpoint = load_moe_tts(folder)
    return SystemPlan(
        system=SYSTEM,
        settings=settings(checkpoint, config),
        graphs=(*expert_plans(checkpoint, config), *_acoustic_plans(checkpoint, config)),
        files={"tokenizer/tokenizer.json": checkpoint.tokenizer_file},
        sources={_source_name(path, folder): path for path in checkpoint.source_files},
        words=checkpoint.words,
        voices=checkpoint.voices,
    )


def expert_plans(checkpoint: MoeTtsCheckpoint, config: ExportConfig, **options: Any) -> tuple[GraphPlan, GraphPlan]:  # noqa: ANN401 - fields of DecoderOptions
    """The two experts; both have the small head, since the text expert predicts the first speech token.

    The text expert only ever reads prompts, so it has no profile for single tokens.

    Args:
        checkpoint: The whole model.
        config: The user's options.
        options: Further fields of `DecoderOptions`, the same for both.
    """
    head = speech_head(checkpoint)
    norms = {"text": checkpoint.text.tensors["norm.weight"], "speech": checkpoint.speech.tensors["norm.weight"]}
    shared = norms.get(checkpoint.final_norm)
    both = DecoderOptions(**{"head": head, "norm": shared, **options})
    return (
        decoder_plan("text_expert", checkpoint.text, replace(both, phases=("prefill",)), config),
        decoder_plan("speech_expert", checkpoint.speech, both, config),
    )


def speech_head(checkpoint: MoeTtsCheckpoint) -> LazyTensor:
    """Rows that can be sampled: all speech rows, then the end token's row where that is a text token."""
    vocabulary = checkpoint.speech_vocabulary
    rows = checkpoint.speech.tensors["lm_head.weight"]
    if vocabulary.eos_vocab == "speech":
        return rows
    end = Rows(checkpoint.text.tensors["lm_head.weight"], vocabulary.eos_id, vocabulary.eos_id + 1)
    return Stacked((rows, end))


def settings(checkpoint: MoeTtsCheckpoint, config: ExportConfig) -> MoeTtsSettings:
    """What the runtime needs beside the graphs."""
    vocabulary = checkpoint.speech_vocabulary
    in_text = vocabulary.eos_vocab == "text"
    longest = int(config.max_seconds * vocabulary.frame_rate)
    usual = MoeTtsSettings(
        speech=SpeechSettings(
            num_tokens=vocabulary.num_tokens,
            frame_rate=vocabulary.frame_rate,
            eos_column=vocabulary.num_rows if in_text else vocabulary.eos_id,
            eos_text_id=vocabulary.eos_id if in_text else None,
        ),
        prompt=PromptSettings(checkpoint.prompt.system, checkpoint.prompt.user_template),
        max_context=min(config.max_context, checkpoint.text.config.max_positions),
        diffusion=_diffusion(checkpoint),
        vocoder=_vocoder(checkpoint),
        sampling=replace(RECOMMENDED_SAMPLING, max_tokens=longest),
    )
    return _recommended(usual, checkpoint.speaking)


def _recommended(usual: MoeTtsSettings, speaking: Mapping[str, Any]) -> MoeTtsSettings:
    """The settings with what the checkpoint's authors recommend.

    Raises:
        CheckpointError: They recommend what no bundle can do.
    """
    fields = to_dict(usual)
    for name, values in speaking.items():
        fields[name] = {**(fields[name] or {}), **values}
    try:
        return from_dict(MoeTtsSettings, fields, "config.json: speaking")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _diffusion(checkpoint: MoeTtsCheckpoint) -> DiffusionSettings | None:
    if checkpoint.dit is None:
        return None
    trained = checkpoint.dit.diffusion
    schedule = "karras" if trained.objective == "edm" else "polyexponential"
    fields = {**to_dict(trained), "schedule": schedule, "route": checkpoint.dit.route}
    return from_dict(DiffusionSettings, fields, "dit")


def _vocoder(checkpoint: MoeTtsCheckpoint) -> VocoderSettings | None:
    vae = checkpoint.vae
    if vae is None:
        return None
    given = checkpoint.dit.latent_scale if checkpoint.dit is not None else None
    return VocoderSettings(
        sample_rate=vae.sample_rate,
        channels=vae.audio_channels,
        strides=vae.decoder.strides,
        latent_channels=vae.latent_dim,
        scale=vae.scale if given is None else given,
    )


def _acoustic_plans(checkpoint: MoeTtsCheckpoint, config: ExportConfig) -> list[GraphPlan]:
    plans: list[GraphPlan] = []
    if checkpoint.dit is not None and checkpoint.latent_rate is not None:
        plans.append(conditioner_plan("speech_conditioner", checkpoint.dit.token_table))
        plans.append(dit_plan("dit", checkpoint.dit, checkpoint.latent_rate, config))
    if checkpoint.vae is not None:
        plans += vae_plans(checkpoint.vae, config)
    return plans


def _source_name(path: Path, folder: Path) -> str:
    """Path from the checkpoint's folder; a neighbour's file goes by its last two parts."""
    relative = os.path.relpath(path, folder)
    return "/".join(path.parts[-2:]) if relative.startswith("..") else relative.replace(os.sep, "/")

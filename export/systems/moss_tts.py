"""Export MOSS-TTS: the delay model, and the local transformers v1 and v1.5.

In: a checkpoint folder as released. Out: a `SystemPlan`. The backbone is the one Qwen3 decoder over summed embeddings;
what the models differ in is what stands behind its state. The codec is a bundle of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.moss_tts import MossCheckpoint, load_moss_tts
from voxedge.export.checkpoint.rearrange import Rows, Stacked
from voxedge.export.checkpoint.tensors import LazyTensor
from voxedge.export.config import ExportConfig
from voxedge.export.decoder_graphs import DecoderOptions, decoder_plan
from voxedge.export.exporter import SystemPlan
from voxedge.export.moss_graphs import depth_text_plan, embeddings_plan, frame_plan, text_head_plan
from voxedge.runtime.systems.moss_settings import FRAME_RATE, SYSTEM, MossSettings, recommended


def plan(folder: Path, config: ExportConfig) -> SystemPlan:
    """Plan the bundle of a checkpoint folder.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete or of an unsupported kind.
        MissingResourceError: A file is missing.
    """
    checkpoint = load_moss_tts(folder)
    return SystemPlan(
        system=SYSTEM,
        settings=settings(checkpoint, config),
        graphs=graph_plans(checkpoint, config),
        files={"tokenizer/tokenizer.json": checkpoint.tokenizer_file},
        sources={path.name: path for path in checkpoint.source_files},
    )


def graph_plans(checkpoint: MossCheckpoint, config: ExportConfig) -> tuple[GraphPlan, ...]:
    """All graphs of a model, in the order in which a row runs through them."""
    common = (embeddings_plan("embeddings", checkpoint, config), backbone_plan(checkpoint, config))
    if checkpoint.config.kind == "delay":
        return (*common, text_head_plan("text_head", checkpoint, config))
    frame = frame_plan("local_frame", checkpoint, config)
    if checkpoint.config.kind == "local":
        return (*common, depth_text_plan("local_text", checkpoint, config), frame)
    return (*common, frame)


def backbone_plan(checkpoint: MossCheckpoint, config: ExportConfig, **options: Any) -> GraphPlan:  # noqa: ANN401 - fields of DecoderOptions
    """The decoder over summed embeddings.

    The delay model's logits are one product: the two text tokens that can follow inside audio, then all channels.
    """
    head = delay_head(checkpoint) if checkpoint.config.kind == "delay" else None
    given = DecoderOptions(**{"head": head, "embeds": True, "state": True, **options})
    return decoder_plan("backbone", checkpoint.backbone, given, config)


def delay_head(checkpoint: MossCheckpoint) -> LazyTensor:
    """Rows [2 + n_vq * A, H] of what can be drawn inside audio."""
    ids = checkpoint.config.ids
    pair = [row for row in (ids.gen_slot, ids.delay_slot) if row is not None]
    return Stacked((*(Rows(checkpoint.text_head, row, row + 1) for row in pair), *checkpoint.audio_heads))


def settings(checkpoint: MossCheckpoint, config: ExportConfig) -> MossSettings:
    """What the runtime needs beside the graphs."""
    known = checkpoint.config
    text, audio = recommended(known.kind, int(config.max_seconds * FRAME_RATE))
    return MossSettings(
        kind=known.kind,
        ids=known.ids,
        codebooks=known.codebooks,
        pad_code=known.pad_code,
        vocabulary=known.language.vocab_size,
        sample_rate=known.sample_rate,
        codec_name=checkpoint.codec,
        max_context=min(config.max_context, known.language.max_positions),
        text=text,
        audio=audio,
    )

"""One short module for each system that can be exported, over the shared parts of `voxedge.export`."""

from __future__ import annotations

from pathlib import Path

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import load_json
from voxedge.export.checkpoint.moss_codec import MODEL_TYPES as CODEC_TYPES
from voxedge.export.checkpoint.moss_config import MODEL_TYPES as MOSS_TTS
from voxedge.export.config import ExportConfig
from voxedge.export.exporter import ProgressCallback, export_plan
from voxedge.export.systems import moe_tts, moss_codec, moss_tts

PLANNERS = {
    "moe_tts": moe_tts.plan,
    **dict.fromkeys(MOSS_TTS, moss_tts.plan),
    **dict.fromkeys(CODEC_TYPES, moss_codec.plan),
}


def export_checkpoint(
    checkpoint: Path, output: Path, config: ExportConfig | None = None, on_progress: ProgressCallback | None = None
) -> Bundle:
    """Turn a checkpoint folder into a bundle.

    Args:
        checkpoint: Folder with a `config.json` that names its model type.
        output: The bundle's folder.
        config: Options; the defaults where None.
        on_progress: Told about every block of weights written.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete or of an unsupported kind.
        ExportError: A graph cannot be made, the bundle exists, or the disk is full.
    """
    config = config or ExportConfig()
    found = load_json(checkpoint / "config.json").get("model_type")
    if found not in PLANNERS:
        raise CheckpointError(
            f"{checkpoint / 'config.json'}: expected model_type {' or '.join(PLANNERS)}, found {found!r}; "
            "docs/exporting.md lists the layouts that can be exported"
        )
    return export_plan(PLANNERS[found](checkpoint, config), output, config, on_progress)

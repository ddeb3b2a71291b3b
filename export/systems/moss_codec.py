"""Export MOSS-Audio-Tokenizer as a bundle of its own.

In: the codec's checkpoint folder. Out: a `SystemPlan`. MOSS-TTS looks for the bundle beside its own; see
`runtime.systems.moss_codec_bundle`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from voxedge.export.checkpoint.moss_codec import load_moss_codec
from voxedge.export.codec_graphs import codec_plans, codec_settings
from voxedge.export.config import ExportConfig
from voxedge.export.exporter import SystemPlan
from voxedge.runtime.codec_settings import SYSTEM, CodecBundleSettings

logger = logging.getLogger(__name__)


def plan(folder: Path, config: ExportConfig) -> SystemPlan:
    """Plan the bundle of a codec.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete or of an unsupported kind.
        MissingResourceError: A file is missing.
    """
    checkpoint = load_moss_codec(folder)
    if config.precision != config.codec_precision == "fp32":
        logger.warning("the codec keeps FP32, as its authors advise; --codec-precision fp16 makes it FP16")
    return SystemPlan(
        system=SYSTEM,
        settings=CodecBundleSettings(codec_settings(checkpoint)),
        graphs=tuple(codec_plans(checkpoint, config.codec_precision)),
        files={},
        sources={path.name: path for path in checkpoint.files},
    )

"""Export and quantise in one go, where quantising needs to know activations.

In: a checkpoint, options, a calibration set. Out: the quantised bundle. An FP32 bundle is exported beside the target,
speaks the set, is quantised, and is removed, whatever happens. Where activations are to be FP16, an FP16 bundle is
exported as well and quantised with what the FP32 one said. Weight-only rounding without AWQ needs none of this: it is
done while the checkpoint is streamed (`ExportConfig.quantise`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from voxedge.calibration.collect import CollectConfig, collect_statistics
from voxedge.calibration.mixed import quantise_as_asked
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.sets import CalibrationSet
from voxedge.calibration.transfer import statistics_for
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import ConfigError
from voxedge.export.config import ExportConfig
from voxedge.export.exporter import ProgressCallback
from voxedge.export.systems import export_checkpoint


def export_calibrated(
    checkpoint: Path,
    output: Path,
    config: ExportConfig,
    quantise: QuantiseConfig,
    calibration_set: CalibrationSet,
    on_progress: ProgressCallback | None = None,
    codec: Path | None = None,
) -> Bundle:
    """Export at FP32 beside the target, collect statistics, quantise.

    Args:
        checkpoint: Folder with a `config.json` that names its model type.
        output: The quantised bundle's folder.
        config: Options of the export.
        quantise: Options of the quantisation.
        calibration_set: What the FP32 bundle says.
        on_progress: Told about all three steps.
        codec: Bundle of the codec, where mixed precision is looked for and the system has none of its own.

    Raises:
        ConfigError: Activations are to be FP16, and more than the rounding of weights depends on them.
        CheckpointError: The checkpoint is damaged, incomplete or of an unsupported kind.
        ExportError: A graph cannot be made, the output exists, or the disk is full.
    """
    if config.precision != "fp32" and not _rounds_weights_alone(quantise):
        raise ConfigError(
            f"expected --activations fp32 for {quantise.precision}, found {config.precision}: only 4-bit weights are "
            "calibrated beside FP16 (with --precision int4-weight)"
        )
    report = on_progress or (lambda step, done, total: None)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.fp32-", dir=output.parent) as folder:
        plain = dataclasses.replace(config, precision="fp32", quantise=None, overwrite=False)
        bundle = export_checkpoint(checkpoint, Path(folder) / "bundle", plain, report)
        statistics = collect_statistics(
            bundle, calibration_set, Path(folder) / "statistics.safetensors", CollectConfig(), report
        )
        if config.precision != "fp32":
            half = dataclasses.replace(plain, precision=config.precision)
            spoken, bundle = bundle, export_checkpoint(checkpoint, Path(folder) / "half", half, report)
            statistics = statistics_for(bundle, statistics, spoken)
        return quantise_as_asked(
            bundle.root, output, dataclasses.replace(quantise, overwrite=config.overwrite), statistics, report, codec
        )


def _rounds_weights_alone(quantise: QuantiseConfig) -> bool:
    """Whether activations and caches keep their type and nothing is searched for."""
    precisions = {quantise.default_layer, *(rule.precision for rule in quantise.rules)}
    return "int8" not in precisions and quantise.kv_cache == "float" and quantise.min_snr_db is None

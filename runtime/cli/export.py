"""`voxedge export`: a checkpoint as its authors released it becomes a bundle.

In: a checkpoint's folder or file. Out: a bundle's folder, written in one step. Prints how much disk it will need before
it starts. Needs the `export` extra (PyTorch and the ONNX libraries), which nothing else of the command line needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.engines.files import format_bytes, free_bytes
from voxedge.runtime.cli.common import Verbs, needs_extra, number, whole
from voxedge.runtime.cli.console import Console
from voxedge.runtime.cli.quantise import PRECISIONS, add_options, config_of, judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from voxedge.calibration.quantise.config import QuantiseConfig
    from voxedge.engines.bundle import Bundle
    from voxedge.export.config import ExportConfig

    Progress = Callable[[str, int, int], None]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("export", help="make a bundle from a checkpoint")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its folder or file, as released")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the bundle's new folder")
    parser.add_argument("--precision", choices=("fp32", "fp16", *PRECISIONS), default="fp32", help="of the weights")
    parser.add_argument("--activations", choices=("fp32", "fp16"), default="fp32", help="beside rounded weights")
    parser.add_argument(
        "--calibrate",
        metavar="SET",
        help="what the voice says to be calibrated: a name or a file; int8 takes `default`",
    )
    parser.add_argument("--codec-precision", choices=("fp32", "fp16"), default="fp32", help="of an audio codec")
    parser.add_argument("--max-context", type=whole(16), default=4096, metavar="TOKENS", help="prompt and speech")
    parser.add_argument("--max-seconds", type=number(0.1, 3600.0), default=30.0, metavar="S", help="of one stretch")
    parser.add_argument("--components", type=_names, default=(), metavar="LIST", help="only these graphs, by name")
    parser.add_argument("--note", default="", metavar="TEXT", help="one sentence that people see when it speaks")
    add_options(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Export and say where the bundle is."""
    checkpoint: Path = arguments.checkpoint
    if not checkpoint.exists():
        raise MissingResourceError(f"expected a checkpoint at {checkpoint}, found nothing; give its folder or file")
    with needs_extra("export"):
        from voxedge.export.config import ExportConfig
    rounded = arguments.precision in PRECISIONS
    quantise = config_of(arguments, arguments.precision) if rounded else None
    spoken = quantise is not None and _needs_speech(arguments, quantise)
    need = predicted_bytes(checkpoint, arguments.precision, (arguments.activations,) if spoken else ())
    free = free_bytes(_existing_parent(arguments.output))
    console.note(
        f"needs up to about {format_bytes(need)} of disk for {arguments.output}; {format_bytes(free)} are free"
    )
    config = ExportConfig(
        precision=arguments.activations if rounded else arguments.precision,
        codec_precision=arguments.codec_precision,
        max_context=arguments.max_context,
        max_seconds=arguments.max_seconds,
        overwrite=arguments.force,
        components=arguments.components,
        note=arguments.note,
        quantise=quantise,
    )
    with console.progress() as progress, needs_extra("export"):
        bundle = _export(arguments, config, progress, console)
    manifest = bundle.manifest
    written = sum(record.size for record in manifest.files.values())
    data = {
        "bundle": str(bundle.root),
        "system": manifest.system,
        "graphs": [f"{graph.name} ({graph.flavour})" for graph in manifest.graphs],
        "bytes": written,
        "note": manifest.note,
    }
    console.result(data, f"{bundle.root}: {manifest.system}, {len(manifest.graphs)} graphs, {format_bytes(written)}")
    return judged(bundle, console)


def _export(arguments: argparse.Namespace, config: ExportConfig, progress: Progress, console: Console) -> Bundle:
    """Straight from the checkpoint, or by way of an FP32 bundle that is calibrated."""
    if config.quantise is None or not _needs_speech(arguments, config.quantise):
        from voxedge.export.systems import export_checkpoint

        return export_checkpoint(arguments.checkpoint, arguments.output, config, progress)
    from voxedge.calibration.sets import load_set
    from voxedge.export.quantised import export_calibrated

    calibration_set = load_set(arguments.calibrate or "default")
    if calibration_set.warning is not None:
        console.warn(calibration_set.warning)
    return export_calibrated(
        arguments.checkpoint,
        arguments.output,
        config,
        config.quantise,
        calibration_set,
        progress,
        arguments.codec,
    )


def _needs_speech(arguments: argparse.Namespace, quantise: QuantiseConfig) -> bool:
    """Whether the weights cannot be rounded before the voice has spoken.

    Raises:
        InputError: Statistics were given, which are of a bundle, not of a checkpoint.
    """
    if arguments.statistics is not None:
        raise InputError(
            "expected no --statistics for a checkpoint, as they are of one FP32 bundle; quantise that bundle with "
            "`voxedge quantise`, or leave it to --calibrate SET"
        )
    calibrated = quantise.precision == "int8" or quantise.kv_cache != "float" or quantise.min_snr_db is not None
    return arguments.calibrate is not None or calibrated


def predicted_bytes(checkpoint: Path, precision: str, spoken: tuple[str, ...] = ()) -> int:
    """About the most that a bundle takes, from the size of the checkpoint, which holds weights in two bytes or more.

    Args:
        checkpoint: Folder or file.
        precision: Of the bundle.
        spoken: Types of activations, where the voice is calibrated: an FP32 bundle is there besides for a while, and
            one with FP16 activations where they are asked for.

    Raises:
        InputError: The checkpoint has no weights.
    """
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHT_SUFFIXES]
    if not weights:
        raise InputError(
            f"{checkpoint}: expected weights ({', '.join(WEIGHT_SUFFIXES)}), found none; give the checkpoint's folder"
        )
    shares = {"fp32": 2.0, "fp16": 1.0, "int8": 0.6, "int8-weight": 0.6, "mixed": 1.0, "int4-weight": 0.4}
    besides = sum(shares[each] for each in {"fp32", *spoken}) if spoken else 0.0
    return int((shares[precision] + besides) * sum(path.stat().st_size for path in weights))


def _existing_parent(path: Path) -> Path:
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    return parent


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, found {text!r}")
    return names

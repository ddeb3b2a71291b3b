"""`voxedge export`: a checkpoint as its authors released it becomes a bundle.

In: a checkpoint's folder or file. Out: a bundle's folder, written in one step. Prints how much disk it will need before
it starts. Needs the `export` extra (PyTorch and the ONNX libraries), which nothing else of the command line needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.engines.files import format_bytes, free_bytes
from voxedge.runtime.cli.common import Verbs, needs_extra, number, whole
from voxedge.runtime.cli.console import Console

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("export", help="make a bundle from a checkpoint")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its folder or file, as released")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the bundle's new folder")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of the matrix products")
    parser.add_argument("--max-context", type=whole(16), default=4096, metavar="TOKENS", help="prompt and speech")
    parser.add_argument("--max-seconds", type=number(0.1, 3600.0), default=30.0, metavar="S", help="of one stretch")
    parser.add_argument("--components", type=_names, default=(), metavar="LIST", help="only these graphs, by name")
    parser.add_argument("--note", default="", metavar="TEXT", help="one sentence that people see when it speaks")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Export and say where the bundle is."""
    checkpoint: Path = arguments.checkpoint
    if not checkpoint.exists():
        raise MissingResourceError(f"expected a checkpoint at {checkpoint}, found nothing; give its folder or file")
    need = predicted_bytes(checkpoint, arguments.precision)
    with needs_extra("export"):
        from voxedge.export.config import ExportConfig
        from voxedge.export.systems import export_checkpoint
    free = free_bytes(_existing_parent(arguments.output))
    console.note(
        f"needs up to about {format_bytes(need)} of disk for {arguments.output}; {format_bytes(free)} are free"
    )
    config = ExportConfig(
        precision=arguments.precision,
        max_context=arguments.max_context,
        max_seconds=arguments.max_seconds,
        overwrite=arguments.force,
        components=arguments.components,
        note=arguments.note,
    )
    with console.progress() as progress:
        bundle = export_checkpoint(checkpoint, arguments.output, config, progress)
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
    return 0


def predicted_bytes(checkpoint: Path, precision: str) -> int:
    """About the most that a bundle takes, from the size of the checkpoint, which holds weights in two bytes or more.

    Raises:
        InputError: The checkpoint has no weights.
    """
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHT_SUFFIXES]
    if not weights:
        raise InputError(
            f"{checkpoint}: expected weights ({', '.join(WEIGHT_SUFFIXES)}), found none; give the checkpoint's folder"
        )
    return (2 if precision == "fp32" else 1) * sum(path.stat().st_size for path in weights)


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

"""`voxedge build`: compile a bundle's graphs into TensorRT engines.

In: a bundle and the devices to build for. Out: engine files and stamps in the bundle's `engines/` folder, one line for
each on stdout. Engines that are up to date are left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.files import format_bytes
from voxedge.engines.records import to_dict
from voxedge.runtime.cli.common import Verbs, whole
from voxedge.runtime.cli.console import Console, table

if TYPE_CHECKING:
    from voxedge.engines.trt.builder import EngineRecord
    from voxedge.engines.trt.monitor import BuildProgress

_EXAMPLE = "voxedge build BUNDLE --target rtx --sm 89,120"
_TICKS = 1000
"""Steps of a progress bar; the builder tells a fraction."""


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("build", help="compile a bundle for TensorRT", epilog=f"Example: {_EXAMPLE}")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--target",
        choices=("rtx", "trt"),
        default="rtx",
        help="rtx: TensorRT-RTX, desktop GPUs (needs no GPU to build for one); trt: the TensorRT of this device",
    )
    parser.add_argument(
        "--sm",
        type=compute_capabilities,
        default=(),
        metavar="LIST",
        help="compute capabilities such as 89,120; the GPU of this machine when left out",
    )
    parser.add_argument("--workspace", type=whole(1), metavar="MIB", help="scratch memory limit; from free memory")
    parser.add_argument("--opt-level", type=int, choices=range(6), default=3, help="0 builds fastest, 5 runs fastest")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="shared by builds; trt only")
    parser.add_argument(
        "--weights",
        choices=("embedded", "refittable", "stripped", "streamed"),
        default="embedded",
        help="stripped: taken from the bundle when an engine is opened; streamed: from the host's memory in every run",
    )
    parser.add_argument(
        "--compatibility",
        choices=("none", "same-capability", "ampere+"),
        default="none",
        help="other GPUs that an engine shall run on too, at a cost of speed; --target trt, not on Jetson",
    )
    parser.add_argument("--force", action="store_true", help="build engines that are up to date again")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Build what is missing or stale."""
    from voxedge.engines.bundle import Bundle
    from voxedge.engines.trt.builder import build_bundle
    from voxedge.engines.trt.config import BuildConfig

    bundle = Bundle.open(arguments.bundle)
    config = BuildConfig(
        target=arguments.target,
        compute_capabilities=arguments.sm,
        workspace_bytes=None if arguments.workspace is None else arguments.workspace << 20,
        optimization_level=arguments.opt_level,
        timing_cache=arguments.timing_cache,
        weights=arguments.weights,
        compatibility=arguments.compatibility,
    )
    with console.progress() as progress:

        def on_progress(now: BuildProgress) -> None:
            progress(now.graph, round(_TICKS * now.fraction), _TICKS)

        records = build_bundle(bundle, config, on_progress, force=arguments.force)
    console.result({"bundle": str(bundle.root), "engines": [_plain(record) for record in records]}, _text(records))
    return 0


def _plain(record: EngineRecord) -> dict[str, Any]:
    return {**to_dict(record), "path": str(record.path)}


def _text(records: list[EngineRecord]) -> str:
    rows = [
        (
            record.graph,
            f"built in {record.duration_s:.1f} s" if record.built else "up to date",
            format_bytes(record.size_bytes),
            "; ".join(record.reasons),
        )
        for record in records
    ]
    return table(rows, ("graph", "engine", "size", "why"))


def compute_capabilities(text: str) -> tuple[int, ...]:
    """Parse `89,120` (also `8.9,12.0`).

    Raises:
        argparse.ArgumentTypeError: An entry is no compute capability.

    Example:
        >>> compute_capabilities("8.9,120")
        (89, 120)
    """
    entries = [entry.strip().replace(".", "") for entry in text.split(",")]
    if not all(entry.isascii() and entry.isdigit() and len(entry) in (2, 3) for entry in entries):
        raise argparse.ArgumentTypeError(f"expected compute capabilities such as 89,120, found {text!r}")
    return tuple(dict.fromkeys(map(int, entries)))

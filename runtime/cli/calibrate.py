"""`voxedge calibrate`: speak a set of texts and keep what the quantisers must know of the activations.

In: an FP32 bundle, a set of voxedge's or a JSONL file. Out: one file of statistics. An interrupted run keeps the lines
that are done and says how to go on.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.bundle import Bundle
from voxedge.engines.files import format_bytes
from voxedge.engines.records import to_dict
from voxedge.runtime.cli.common import Verbs, needs_extra, whole
from voxedge.runtime.cli.console import Console

if TYPE_CHECKING:
    from voxedge.calibration.statistics import Statistics


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("calibrate", help="collect the statistics that quantisation needs")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="at FP32")
    parser.add_argument(
        "--set", default="default", metavar="NAME|FILE.jsonl", help="what to say (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--seed", type=whole(0), default=0, help="of tokens and latents (default: %(default)s)")
    parser.add_argument(
        "--max-tokens", type=whole(1), default=250, help="speech tokens of a line (default: %(default)s)"
    )
    parser.add_argument("--threads", type=whole(1), help="CPU threads (default: the physical cores)")
    parser.add_argument("--resume", action="store_true", help="go on from where an interrupted run was")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Calibrate."""
    from voxedge.calibration.collect import CollectConfig, collect_statistics, progress_path
    from voxedge.calibration.sets import load_set

    calibration_set = load_set(arguments.set)
    if calibration_set.warning is not None:
        console.warn(calibration_set.warning)
    bundle = Bundle.open(arguments.bundle)
    config = CollectConfig(arguments.seed, arguments.max_tokens, arguments.resume, arguments.threads)
    try:
        with needs_extra("export"), console.progress() as progress:
            statistics = collect_statistics(bundle, calibration_set, arguments.output, config, progress)
    except KeyboardInterrupt:
        if progress_path(arguments.output).exists():
            console.warn(f"what was said so far is kept; go on with: {_command(arguments)}")
        raise
    console.result(_data(arguments.output, statistics), _text(arguments.output, statistics))
    return 0


def _command(arguments: argparse.Namespace) -> str:
    words = ["voxedge", "calibrate", str(arguments.bundle), "--set", arguments.set, "-o", str(arguments.output)]
    words += ["--seed", str(arguments.seed), "--max-tokens", str(arguments.max_tokens), "--resume"]
    return shlex.join(words)


def _data(path: Path, statistics: Statistics) -> dict[str, Any]:
    graphs = Counter(graph for graph, _ in statistics.keys)
    return {"statistics": str(path), "provenance": to_dict(statistics.provenance), "values": dict(graphs)}


def _text(path: Path, statistics: Statistics) -> str:
    given = statistics.provenance
    graphs = Counter(graph for graph, _ in statistics.keys)
    listed = ", ".join(f"{graph} {count}" for graph, count in sorted(graphs.items()))
    return (
        f"{path}: {format_bytes(path.stat().st_size)}, {len(statistics.keys)} activations of {given.lines} lines "
        f"(set {given.set_name}, seed {given.seed}): {listed}"
    )

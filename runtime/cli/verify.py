"""`voxedge verify`: does a bundle compute what its FP32 reference computes?

In: a bundle, and a reference (the same checkpoint exported at FP32) where one is given. Out: one line per graph; exit
code 5 when the gate fails. Every file's hash is checked first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from voxedge.engines.errors import QualityError
from voxedge.engines.files import write_atomically
from voxedge.runtime.cli.common import Verbs, needs_extra
from voxedge.runtime.cli.console import Console, table

_HEADER = ("graph", "flavour", "SNR dB", "cosine", "max error", "finite")


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("verify", help="compare a bundle's graphs with their reference")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="FP32 bundle of the same checkpoint")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Verify; 5 when the gate fails."""
    from voxedge.engines.bundle import Bundle

    Bundle.open(arguments.bundle, verify_hashes=True)
    with needs_extra("export"):
        from voxedge.calibration.verify import verify_bundle
    with console.progress() as progress:
        report = verify_bundle(arguments.bundle, arguments.reference, progress)
    data = report.to_json()
    if arguments.report is not None:
        write_atomically(arguments.report, json.dumps(data, indent=2).encode())
    rows = [
        [
            graph.name,
            graph.flavour,
            f"{graph.snr_db:.1f}",
            f"{graph.cosine:.6f}",
            f"{graph.max_error:.2e}",
            str(graph.finite),
        ]
        for graph in report.graphs
    ]
    verdict = "passed" if report.passed else "FAILED: do not use this bundle; export it at fp32"
    console.result(data, f"{table(rows, _HEADER)}\n{verdict}")
    return 0 if report.passed else QualityError.exit_code

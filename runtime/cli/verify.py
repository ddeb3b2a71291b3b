"""`voxedge verify`: does a bundle compute what its FP32 reference computes?

In: a bundle, and a reference (the same checkpoint exported at FP32) where one is given. Out: one line per graph, one
about the speech, one per failure; exit code 5 when the gate fails. Every file's hash is checked first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from voxedge.engines.errors import QualityError
from voxedge.engines.files import write_atomically
from voxedge.runtime.cli.common import Verbs
from voxedge.runtime.cli.console import Console, table

if TYPE_CHECKING:
    from voxedge.calibration.report import GraphReport, SpeechDifference, SpeechReport, VerifyReport

_HEADER = ("graph", "flavour", "against", "SNR dB", "cosine", "max error", "finite")
_ADVICE = "FAILED: do not use this bundle; export it again, with --precision fp32 where only precision fails"


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("verify", help="compare a bundle's graphs with their reference")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="FP32 bundle of the same checkpoint")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Verify; 5 when the gate fails."""
    from voxedge.calibration.verify import verify_bundle

    with console.progress() as progress:
        report = verify_bundle(arguments.bundle, arguments.reference, progress)
    data = report.to_json()
    if arguments.report is not None:
        write_atomically(arguments.report, json.dumps(data, indent=2, allow_nan=False).encode())
    for note in report.notes:
        console.note(note)
    console.result(data, "\n".join(_lines(report)))
    return 0 if report.passed else QualityError.exit_code


def _lines(report: VerifyReport) -> list[str]:
    lines = [table([_row(graph) for graph in report.graphs], _HEADER)] if report.graphs else []
    if report.speech is not None:
        lines.append(_speech_line(report.speech))
    if report.difference is not None:
        lines += _difference_lines(report.difference)
    return [*lines, *(f"- {failure}" for failure in report.failures), "passed" if report.passed else _ADVICE]


def _row(graph: GraphReport) -> list[str]:
    finite = "yes" if not graph.broken else f"{graph.finite:.2%}"
    if graph.worst is None:
        return [graph.name, graph.flavour, "-", "-", "-", "-", finite]
    cosine = min(output.cosine for output in graph.outputs)
    error = max(output.max_error for output in graph.outputs)
    figures = [f"{graph.worst.snr_db:.1f}", f"{cosine:.6f}", f"{error:.2e}"]
    return [graph.name, graph.flavour, graph.against or "-", *figures, finite]


def _speech_line(speech: SpeechReport) -> str:
    return (
        f"speech: {speech.duration_s:.2f} s of {speech.tokens} tokens, {speech.loudness_db:.1f} dB RMS, peak "
        f"{speech.peak:.2f}, {speech.clipped_fraction:.2%} beyond full scale"
    )


def _difference_lines(difference: SpeechDifference) -> list[str]:
    tokens = "all drawn" if difference.tokens_equal else f"drawn up to token {difference.first_divergence}"
    return [
        f"beside the reference: the same tokens {tokens}; given its tokens, the most likely one agrees in "
        f"{difference.token_agreement:.1%} of the draws",
        f"sound of the same tokens: {difference.waveform_snr_db:.1f} dB SNR, log-spectral distance "
        f"{difference.log_spectral_distance_db:.2f} dB, {difference.loudness_difference_db:+.2f} dB loudness",
    ]

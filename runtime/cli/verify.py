"""`voxedge verify`: does a bundle compute what its FP32 reference computes, and does it sound like it?

In: a bundle, and a reference (the same checkpoint exported at FP32) where one is given. Out: one line per graph, a few
about the speech, one per failure; files where asked for; exit code 5 when the gate fails. Every file's hash is checked
first. The report stays in the bundle, so that `info` and `say` know whether it is ready.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from voxedge.engines.errors import QualityError
from voxedge.engines.files import write_atomically
from voxedge.runtime.cli.common import Verbs, whole
from voxedge.runtime.cli.console import Console, table
from voxedge.runtime.cli.synthesis import add_codec_flag

if TYPE_CHECKING:
    from voxedge.calibration.recogniser import Recogniser
    from voxedge.calibration.report import GraphReport, SpeechDifference, UtteranceReport, VerifyReport
    from voxedge.calibration.speaking import Probe
    from voxedge.calibration.verify import Verification

_HEADER = ("graph", "flavour", "against", "SNR dB", "cosine", "max error", "finite")
_ADVICE = "FAILED: do not use this bundle; export it again, with --precision fp32 where only precision fails"
BACKENDS = ("cpu", "cuda", "tensorrt", "tensorrt_rtx")
RECOGNISERS = ("auto", "pocketsphinx", "none")


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("verify", help="compare a bundle's graphs and speech with their reference")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="FP32 bundle of the same checkpoint")
    parser.add_argument("--set", metavar="NAME", help="say this calibration set or .jsonl file, not three sentences")
    parser.add_argument("--lines", type=whole(1), metavar="N", help="say the first N lines alone")
    parser.add_argument("--max-tokens", type=whole(1), metavar="N", help="speech tokens of one utterance at most")
    parser.add_argument("--recogniser", choices=RECOGNISERS, default="auto", help="who listens, for word error rates")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="cpu", help="run the graphs there, beside the CPU; leaves no report"
    )
    add_codec_flag(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page to look at and listen to")
    parser.add_argument("--no-record", action="store_true", help="leave no report in the bundle")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Verify; 5 when the gate fails."""
    from voxedge.calibration.verify import VerifyConfig, verify

    probes = _probes(arguments)
    recogniser, unheard = _recogniser(arguments.recogniser, probes)
    config = VerifyConfig(probes=probes, recogniser=recogniser, codec=arguments.codec, backend=arguments.backend)
    with console.progress() as progress:
        found = verify(arguments.bundle, arguments.reference, progress, config)
    report = found.report
    if unheard:
        report = dataclasses.replace(report, notes=(*report.notes, unheard))
        found = dataclasses.replace(found, report=report)
    data = report.to_json()
    if arguments.report is not None:
        write_atomically(arguments.report, json.dumps(data, indent=2, allow_nan=False).encode())
    if arguments.html is not None:
        from voxedge.calibration.page import render_page

        write_atomically(arguments.html, render_page(found).encode("utf-8", "replace"))
    if not arguments.no_record and arguments.backend == "cpu":  # readiness is a matter of the bundle, not of a device
        _record(found, console)
    for note in report.notes:
        console.note(note)
    console.result(data, "\n".join(_lines(report)))
    return 0 if report.passed else QualityError.exit_code


def _probes(arguments: argparse.Namespace) -> tuple[Probe, ...]:
    from voxedge.calibration.speaking import probes_for, probes_of
    from voxedge.engines.bundle import Bundle

    if arguments.set is None:
        probes = probes_for(Bundle.open(arguments.bundle).manifest.words)
    else:
        probes = probes_of(arguments.set)
    if arguments.lines is not None:
        probes = probes[: arguments.lines]
    if arguments.max_tokens is None:
        return probes
    limits = [(min(probe.min_tokens, arguments.max_tokens), arguments.max_tokens) for probe in probes]
    return tuple(
        dataclasses.replace(probe, min_tokens=least, max_tokens=most)
        for probe, (least, most) in zip(probes, limits, strict=True)
    )


def _recogniser(name: str, probes: tuple[Probe, ...]) -> tuple[Recogniser | None, str]:
    """Who listens, or why nobody does."""
    from voxedge.calibration.recogniser import PocketSphinx
    from voxedge.engines.errors import BackendUnavailableError, InputError

    if name == "none":
        return None, ""
    try:
        return PocketSphinx([probe.text for probe in probes]), ""
    except (BackendUnavailableError, InputError) as error:
        if name != "auto":
            raise
        return None, f"word error rate: not measured; {error}"


def _record(found: Verification, console: Console) -> None:
    """Leave the report in the bundle; a folder that may not be written to is no reason to fail."""
    from voxedge.calibration.verify import record

    try:
        record(found)
    except OSError as error:
        console.warn(f"the report could not be left in the bundle, so it does not count as verified: {error}")


def _lines(report: VerifyReport) -> list[str]:
    lines = [table([_row(graph) for graph in report.graphs], _HEADER)] if report.graphs else []
    lines += [_utterance_line(number, item) for number, item in enumerate(report.utterances, 1)]
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


def _utterance_line(number: int, item: UtteranceReport) -> str:
    speech, heard = item.speech, ""
    if speech.words is not None:
        heard = f", {speech.words.errors} of {speech.words.words} words wrong"
        if item.reference is not None and item.reference.words is not None:
            heard += f" ({item.reference.words.errors} by the reference)"
    return (
        f"utterance {number}: {speech.duration_s:.2f} s of {speech.tokens} tokens, {speech.loudness_lufs:.1f} LUFS, "
        f"peak {speech.peak:.2f}, {speech.clipped_fraction:.2%} beyond full scale, {speech.silent_fraction:.0%} silent"
        f"{heard}"
    )


def _difference_lines(difference: SpeechDifference) -> list[str]:
    tokens = "all drawn" if difference.tokens_equal else f"drawn up to token {difference.first_divergence}"
    pitch = "too little is voiced to compare the pitch"
    if difference.pitch_error_cents is not None:
        pitch = f"pitch {difference.pitch_error_cents:.1f} cents, same voicing {difference.voicing_agreement:.1%}"
    return [
        f"beside the reference: the same tokens {tokens}; given its tokens, the most likely one agrees in "
        f"{difference.token_agreement:.1%} of {difference.draws} draws",
        f"sound of the same tokens: {difference.waveform_snr_db:.1f} dB SNR, mel distance "
        f"{difference.mel_distance_db:.2f} dB, log-spectral distance {difference.log_spectral_distance_db:.2f} dB, "
        f"{difference.loudness_difference_lu:+.2f} LU loudness, {pitch}",
    ]

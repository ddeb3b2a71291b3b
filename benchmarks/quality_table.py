"""What each precision costs and saves: size, quality of every graph, speech, and speed, for one voice or several.

In: checkpoints (or FP32 bundles). Out: a table, a JSON file, the table of docs/benchmarks.md. Quality is that of
`voxedge verify`; speeds are taken in turns within one run, and stand beside FP32 of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from machine import LoadMeter, Machine, describe
from precisions import PRECISIONS, Settings, Voice, make
from report import machine_lines, markdown_table, replace_region, text_table

from voxedge.calibration.page import render_page
from voxedge.calibration.recogniser import PocketSphinx, Recogniser
from voxedge.calibration.report import VerifyReport, word_error_rate
from voxedge.calibration.sensitivity import kept_layers, read_sensitivity
from voxedge.calibration.speaking import PROBES, Probe, probes_of
from voxedge.calibration.verify import VerifyConfig, record, verify
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, VoxedgeError
from voxedge.runtime.synthesizer import Synthesizer

PACKAGES = ("voxedge", "onnxruntime", "onnx", "onnx-ir", "numpy", "pocketsphinx")
_CONTENDED_CORES = 0.15
_LM = "language model"


@dataclass(frozen=True, slots=True)
class Speed:
    """One precision, medians over the rounds."""

    tokens_per_s: float
    """Speech tokens per second of the language model alone."""
    rtf: float
    """Wall seconds per second of audio, of the whole pipeline."""
    beside_fp32: float
    """Wall time of a round over that of FP32 in the same round; below 1 is faster."""
    low: float
    """First quartile of that."""
    high: float
    """Third quartile."""
    foreign_cores: float
    """Load of everything else meanwhile."""


@dataclass(slots=True)
class Result:
    """One voice."""

    name: str
    note: str
    """Of its manifest."""
    reports: dict[str, VerifyReport] = field(default_factory=dict)
    """By precision; FP32 beside itself."""
    speeds: dict[str, Speed] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    """For mixed precision: layers that were kept higher, by graph."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a figure is missing."""
    heard_by: str = ""
    """Name of the recogniser; empty where none is installed."""


def measure(voice: Voice, settings: Settings, rounds: int, threads: int, pages: Path | None) -> Result:
    """Verify every precision beside FP32, then time all in turns."""
    probes, codec = settings.probes, settings.codec
    base = voice.bundles["fp32"]
    result = Result(voice.name, Bundle.open(base).manifest.note, failures=dict(voice.failures))
    recogniser = _recogniser(probes)
    result.heard_by = recogniser.name if recogniser else ""
    for precision, path in voice.bundles.items():
        _say(f"{voice.name}: verifying {precision}")
        try:
            found = verify(path, base, None, VerifyConfig(probes=probes, recogniser=recogniser, codec=codec))
        except VoxedgeError as error:
            result.failures[precision] = str(error)
            continue
        result.reports[precision] = found.report
        if path != base:
            record(found)
        if pages is not None:
            page = render_page(found).encode("utf-8", "replace")
            (pages / f"{voice.name}-{precision}.html".replace("/", "-")).write_bytes(page)
        for graph, unit in kept_layers(sensitivity) if (sensitivity := read_sensitivity(found.bundle)) else ():
            result.kept.setdefault(graph, []).append(f"{unit.path} ({unit.kept_as})")
    result.speeds = time_all({name: voice.bundles[name] for name in result.reports}, settings, rounds, threads)
    return result


def time_all(bundles: Mapping[str, Path], settings: Settings, rounds: int, threads: int) -> dict[str, Speed]:
    """Every bundle once per round, in an order that is turned round each time; the first round warms up."""
    walls: dict[str, list[float]] = {name: [] for name in bundles}
    rates: dict[str, list[float]] = {name: [] for name in bundles}
    rtfs: dict[str, list[float]] = {name: [] for name in bundles}
    loads: dict[str, list[float]] = {name: [] for name in bundles}
    with contextlib.ExitStack() as stack:
        voices = {
            name: stack.enter_context(
                Synthesizer.from_pretrained(path, backend="cpu", threads=threads, codec=settings.codec)
            )
            for name, path in bundles.items()
        }
        probe, tokens = settings.probes[0], 0
        for number in range(rounds + 1):
            _say(f"timing, round {number} of {rounds}")
            for name in list(voices) if number % 2 == 0 else list(reversed(voices)):
                voice, meter = voices[name], LoadMeter(())
                sampling = voice.default_config.sampling
                limits = {"min_tokens": tokens, "max_tokens": tokens} if tokens else {"max_tokens": probe.max_tokens}
                if not tokens and "codebooks" in voice.bundle.manifest.settings:
                    limits["min_tokens"] = probe.min_tokens  # random weights may end at once
                config = dataclasses.replace(voice.default_config, sampling=dataclasses.replace(sampling, **limits))
                audio = voice.synthesize(probe.text, description=probe.description, seed=probe.seed, config=config)
                codes = len(voice.bundle.manifest.settings.get("codebooks", "1"))  # that one step draws
                tokens = tokens or max(1, len(audio.speech_tokens) // codes)
                if number:
                    walls[name].append(audio.timing.wall_s)
                    rates[name].append(audio.timing.tokens / max(audio.timing.stages_s.get(_LM, 0.0), 1e-9))
                    rtfs[name].append(audio.timing.rtf)
                    loads[name].append(meter.foreign_cores())
    return {
        name: _speed(walls[name], walls["fp32"], rates[name], rtfs[name], loads[name])
        for name in bundles
        if walls[name]
    }


def _speed(walls: list[float], base: list[float], rates: list[float], rtfs: list[float], loads: list[float]) -> Speed:
    ratios = [own / other for own, other in zip(walls, base, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    medians = (statistics.median(rates), statistics.median(rtfs))
    return Speed(*medians, ratio, low, high, statistics.median(loads))


def summary(result: Result) -> tuple[list[str], list[list[str]]]:
    """One row for each precision."""
    header = ["precision", "MB", "of FP32", "worst SNR dB", "likeliest token", "mel dB", "loudness LU", "pitch cents"]
    header += ["words wrong", "tokens/s", "RTF", "time / FP32", "gate"]
    rows = []
    for name, report in result.reports.items():
        size, before = sum(s.size for s in report.sizes), sum(s.reference_size or 0 for s in report.sizes)
        worst = min((g.worst.snr_db for g in report.graphs if g.against == "reference" and g.worst), default=None)
        row = [name, f"{size / 1e6:.2f}", f"{size / before:.2f}", "-" if worst is None else _snr(worst)]
        difference = report.difference
        if difference is None:
            row += ["-"] * 4
        else:
            pitch = difference.pitch_error_cents
            row += [f"{difference.token_agreement:.1%}", f"{difference.mel_distance_db:.2f}"]
            row += [f"{difference.loudness_difference_lu:+.2f}", "-" if pitch is None else f"{pitch:.1f}"]
        heard = [item.speech.words for item in report.utterances if item.speech.words is not None]
        row.append(f"{word_error_rate(heard):.0%}" if heard else "-")
        row += _speed_cells(result.speeds.get(name))
        rows.append([*row, "reference" if name == "fp32" else "passed" if report.passed else "failed"])
    return header, rows


def _speed_cells(speed: Speed | None) -> list[str]:
    if speed is None:
        return ["-"] * 3
    mark = "*" if speed.foreign_cores > _CONTENDED_CORES else ""
    spread = f"{speed.beside_fp32:.2f} ({speed.low:.2f}-{speed.high:.2f})"
    return [f"{speed.tokens_per_s:.0f}{mark}", f"{speed.rtf:.3f}{mark}", spread]


def graphs(result: Result) -> tuple[list[str], list[list[str]]]:
    """Signal-to-noise ratio of the worst output, and size beside FP32, for every graph and precision."""
    names = [name for name in result.reports if name != "fp32"]
    by_graph: dict[str, dict[str, str]] = {}
    for name in names:
        report = result.reports[name]
        for size in report.sizes:
            found = [
                g.worst.snr_db for g in report.graphs if g.name == size.name and g.against == "reference" and g.worst
            ]
            cell = f"{_snr(min(found)) if found else '-'}, {size.ratio:.2f}" if size.ratio is not None else "-"
            by_graph.setdefault(size.name, {})[name] = cell
    return ["graph: SNR dB, size / FP32", *names], [
        [graph, *(cells.get(name, "-") for name in names)] for graph, cells in by_graph.items()
    ]


def _snr(decibels: float) -> str:
    return "equal" if decibels >= 200.0 else f"{decibels:.1f}"


def render(machine: Machine, results: Sequence[Result], settings: Settings, threads: int, markdown: bool) -> str:
    """The whole report."""
    table, bullet = (markdown_table, "* ") if markdown else (text_table, "  ")
    parts = [machine_lines(machine)]
    parts.append(
        f"{threads} thread{'s'[: threads - 1]}; calibrated with {settings.lines} lines; mixed: {settings.mixed_base} "
        f"where it may be, at least {settings.min_snr_db:g} dB at every output of every graph."
    )
    for result in results:
        about = f" ({result.note.rstrip('.')})" if result.note else ""
        parts += [f"**{result.name}**{about}" if markdown else result.name + about, table(*summary(result))]
        if len(result.reports) > 1:
            parts.append(table(*graphs(result)))
        notes = list(_notes(result))
        if notes:
            parts.append("\n".join(bullet + note for note in notes))
    parts.append(
        f"`*`: others used more than {_CONTENDED_CORES} cores meanwhile; ratios within a round stand nevertheless."
    )
    return "\n\n".join(parts)


def _notes(result: Result) -> Iterator[str]:
    for precision, why in result.failures.items():
        yield f"{precision}: {why}"
    for name, report in result.reports.items():
        if not report.passed and name != "fp32":
            more = f" (and {len(report.failures) - 1} more)" if len(report.failures) > 1 else ""
            yield f"{name} failed its gate: {report.failures[0]}{more}"
    for graph, layers in result.kept.items():
        shown = ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")
        yield f"mixed, {graph}: {len(layers)} kept higher: {shown}"
    if not result.heard_by:
        yield "words: not measured, pocketsphinx is not installed"


def _recogniser(probes: Sequence[Probe]) -> Recogniser | None:
    try:
        return PocketSphinx([probe.text for probe in probes])
    except BackendUnavailableError:
        return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Size, quality and speed of a voice at every precision.")
    parser.add_argument(
        "--voice",
        action="append",
        required=True,
        metavar="NAME=PATH[,SET]",
        help="checkpoint or FP32 bundle; a calibration set whose first lines calibrate it and whose last lines it says",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundles; what is there is used again")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, default=[], help="only these; repeat")
    parser.add_argument("--lines", type=int, default=16, help="of the set")
    parser.add_argument("--max-tokens", type=int, default=160, help="speech tokens of one utterance at most")
    parser.add_argument("--min-snr", type=float, default=25.0, help="dB, for mixed precision")
    parser.add_argument("--mixed-base", default="int8", help="what layers of mixed precision get that may have it")
    parser.add_argument("--probes", type=int, default=len(PROBES), help="utterances to verify with")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--codec", type=Path, help="bundle of the codec, for voices that speak in codes")
    parser.add_argument("--pages", type=Path, help="folder for a quality page of each bundle")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file with the marks REGION:begin and REGION:end")
    parser.add_argument("--region", default="quality_table", help="of the Markdown file")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace, calibration_set: str) -> Settings:
    """Of one voice; what it says is not what it was calibrated with."""
    probes = probes_of(calibration_set)[-arguments.probes :] if calibration_set else PROBES[: arguments.probes]
    return Settings(
        precisions=tuple(arguments.precision) or PRECISIONS,
        calibration_set=calibration_set or "default",
        lines=arguments.lines,
        max_tokens=arguments.max_tokens,
        min_snr_db=arguments.min_snr,
        mixed_base=arguments.mixed_base,
        probes=tuple(_limited(probe, arguments.max_tokens) for probe in probes),
        codec=arguments.codec,
    )


def _limited(probe: Probe, most: int) -> Probe:
    return dataclasses.replace(probe, min_tokens=min(probe.min_tokens, most), max_tokens=most)


def main() -> None:
    """Run from the command line."""
    arguments = _arguments()
    if arguments.pages is not None:
        arguments.pages.mkdir(parents=True, exist_ok=True)
    results = []
    for text in arguments.voice:
        name, _, place = text.rpartition("=")
        path, _, calibration_set = place.partition(",")
        settings = _settings(arguments, calibration_set)
        work = arguments.work / (name or Path(path).name).replace("/", "-").replace(" ", "-")
        work.mkdir(parents=True, exist_ok=True)
        voice = make(name or Path(path).name, Path(path), work, settings)
        if "fp32" not in voice.bundles:
            raise SystemExit(f"{voice.name}: no FP32 bundle: {voice.failures.get('fp32')}")
        results.append(measure(voice, settings, arguments.rounds, arguments.threads, arguments.pages))
    machine = describe(PACKAGES)
    print(render(machine, results, settings, arguments.threads, markdown=False))
    if arguments.output:
        data = {"machine": asdict(machine), "settings": asdict(settings), "voices": [asdict(r) for r in results]}
        arguments.output.write_text(json.dumps(data, indent=1))
    if arguments.markdown:
        page = render(machine, results, settings, arguments.threads, markdown=True)
        replace_region(arguments.markdown, arguments.region, page)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

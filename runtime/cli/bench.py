"""`voxedge bench`: how fast a voice is here, measured always the same way.

In: a bundle (or the built-in voice) and a text. Out: real-time factor, time to first audio, tokens per second and peak
memory, cold and warm apart, with the formulas and the device beside them. Two bundles are compared by
`cli.bench_compare`.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.files import format_bytes
from voxedge.runtime.cli.common import UsageError, Verbs, version, whole
from voxedge.runtime.cli.console import Console, table
from voxedge.runtime.cli.synthesis import add_engine_flags, add_voice_flags, open_synthesizer, synthesis_config

if TYPE_CHECKING:
    from voxedge.engines.device import DeviceReport
    from voxedge.runtime.synthesizer import SynthesisConfig, Synthesizer

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm afternoon sun."
FORMULAS = {
    "cold": "the first run: it loads the graphs",
    "rtf": "wall seconds / audio seconds; lower is better",
    "first_audio_s": "seconds from the call to the first samples",
    "tokens_per_s": "tokens of the language model / wall seconds",
    "p50, p95": "percentiles over the warm runs, linear between ranks",
    "peak_memory_bytes": "largest resident set of this process",
}


_COLUMNS = {"rtf": "RTF", "first_audio_s": "first audio, s", "wall_s": "wall, s", "tokens_per_s": "tokens/s"}


@dataclass(frozen=True, slots=True)
class Run:
    """One spoken text."""

    wall_s: float
    """From the call to the last sample."""
    first_audio_s: float
    """From the call to the first samples."""
    audio_s: float
    """Length of what was spoken."""
    tokens: int
    """Drawn from the language model."""

    @property
    def rtf(self) -> float:
        """Wall seconds / audio seconds."""
        return self.wall_s / self.audio_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the language model / wall seconds."""
        return self.tokens / self.wall_s


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("bench", help="measure speed and memory")
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="without one: the built-in voice")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two bundles in turns, in one run")
    parser.add_argument("-t", "--text", default=TEXT, help="what to speak")
    parser.add_argument("--warmup", type=whole(0), default=1, metavar="N", help="runs that do not count")
    parser.add_argument("--runs", type=whole(1), default=5, metavar="N", help="runs that count")
    add_voice_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Measure and show."""
    from voxedge.engines.device import gather
    from voxedge.runtime.noise import fresh_seed

    seed = fresh_seed() if arguments.seed is None else arguments.seed
    if arguments.compare is not None:
        from voxedge.runtime.cli.bench_compare import compare

        if arguments.bundle is not None:
            raise UsageError(f"expected --compare A B or one bundle, found {arguments.bundle} beside --compare")
        return compare(arguments, console, seed)
    with open_synthesizer(arguments.bundle, arguments, console) as synthesizer:
        runs = []
        with console.progress() as progress:
            total = 1 + arguments.warmup + arguments.runs
            for index in range(total):
                runs.append(measure(synthesizer, arguments, seed))
                progress("runs", index + 1, total)
        cold, warm = runs[0], runs[1 + arguments.warmup :]
        data: dict[str, Any] = {
            "device": device_line(gather(), synthesizer.backend, arguments.threads),
            "bundle": str(synthesizer.bundle.root),
            "note": synthesizer.bundle.manifest.note,
            "text": arguments.text,
            "seed": seed,
            "audio_s": cold.audio_s,
            "cold": describe(cold),
            "warm": {name: summary([describe(each)[name] for each in warm]) for name in _COLUMNS},
            "runs": len(warm),
            "peak_memory_bytes": peak_memory_bytes(),
            "formulas": FORMULAS,
        }
    console.result(data, text_of(data))
    return 0


def measure(
    synthesizer: Synthesizer, arguments: argparse.Namespace, seed: int, config: SynthesisConfig | None = None
) -> Run:
    """Speak once, with the flags that were given or with other options."""
    config = config or synthesis_config(synthesizer, arguments)
    audio = synthesizer.synthesize(arguments.text, description=arguments.description, seed=seed, config=config)
    timing = audio.timing
    return Run(timing.wall_s, timing.first_audio_s, timing.audio_s, timing.tokens)


def describe(run: Run) -> dict[str, float]:
    """A run as a flat record."""
    return {**asdict(run), "rtf": run.rtf, "tokens_per_s": run.tokens_per_s}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile.

    Example:
        >>> summary([1.0, 2.0, 3.0, 4.0, 5.0])
        {'p50': 3.0, 'p95': 4.8}
    """
    return {"p50": round(percentile(values, 0.50), 6), "p95": round(percentile(values, 0.95), 6)}


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which a fraction of the sorted values lies; linear between neighbours."""
    ranked = sorted(values)
    place = fraction * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


def peak_memory_bytes() -> int:
    """Largest resident set that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def device_line(report: DeviceReport, backend: str, threads: int | None) -> str:
    """Without it a figure cannot be compared: device, power mode, backend, threads, versions."""
    parts = [
        *([report.jetson_model] if report.jetson_model else []),
        f"{report.cpu}, {report.cores} cores",
        *(f"{gpu.name}" for gpu in report.gpus),
        *([f"power mode {report.power_mode}"] if report.power_mode else []),
        f"backend {backend}",
        *([f"{threads} thread(s)"] if threads else []),
        f"voxedge {version()}",
        *(f"{name} {found}" for name, found in sorted(report.packages.items())),
        f"Python {report.python}",
    ]
    return ", ".join(parts)


def text_of(data: dict[str, Any]) -> str:
    """The report for people."""
    cold, warm = data["cold"], data["warm"]
    rows = [
        (title, f"{cold[name]:.3f}", f"{warm[name]['p50']:.3f}", f"{warm[name]['p95']:.3f}")
        for name, title in _COLUMNS.items()
    ]
    lines = [
        data["device"],
        f"{data['audio_s']:.2f} s of audio, peak memory {format_bytes(data['peak_memory_bytes'])}",
        "",
        table(rows, ("", "cold", f"warm p50 of {data['runs']}", "warm p95")),
        "",
        *(f"{name}: {formula}" for name, formula in FORMULAS.items()),
    ]
    return "\n".join(lines)

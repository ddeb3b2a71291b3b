"""`voxedge bench --compare A B`: which of two bundles is faster here, in turns within one run.

In: two bundles and a text. Out: the ratio of their times with its spread, and the usual figures of both. Both say
equally many tokens, as many as A draws by itself, so that their times are times of the same work. Judges no quality.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from voxedge.engines.timing import SpeedRatio, compare_speed
from voxedge.runtime.cli.bench import FORMULAS, Run, describe, device_line, measure, peak_memory_bytes, summary
from voxedge.runtime.cli.console import Console, table
from voxedge.runtime.cli.synthesis import open_synthesizer, synthesis_config

if TYPE_CHECKING:
    from voxedge.engines.backend import Array
    from voxedge.runtime.config import SynthesisConfig
    from voxedge.runtime.synthesizer import Synthesizer

RATIO = "time of B / time of A within each round, A B, B A, ...; median and quartiles; below 1 B is faster"
_LABELS = ("A", "B")
_COLUMNS = {"rtf": "RTF", "first_audio_s": "first audio, s", "wall_s": "wall, s", "tokens_per_s": "tokens/s"}


class Spoken:
    """A voice that can be timed; see `engines.timing.Runnable`."""

    def __init__(self, speak: Callable[[], Run]) -> None:
        self._speak = speak
        self.runs: list[Run] = []

    def run(self, feeds: Mapping[str, Array]) -> object:
        """Speak once and keep the figures."""
        self.runs.append(self._speak())
        return self.runs[-1]


def compare(arguments: argparse.Namespace, console: Console, seed: int) -> int:
    """Measure both and show."""
    from voxedge.engines.device import gather

    with contextlib.ExitStack() as stack:
        voices = [stack.enter_context(open_synthesizer(path, arguments, console)) for path in arguments.compare]
        with console.progress() as progress:
            colds, spoken, ratio = _measure(voices, arguments, seed, progress)
        data: dict[str, Any] = {
            "device": device_line(gather(), voices[0].backend, arguments.threads),
            "bundles": dict(zip(_LABELS, (str(voice.bundle.root) for voice in voices), strict=True)),
            "text": arguments.text,
            "seed": seed,
            "tokens": spoken[0].runs[-1].tokens,
            "cold": dict(zip(_LABELS, map(describe, colds), strict=True)),
            "warm": dict(zip(_LABELS, map(_warm, spoken), strict=True)),
            "ratio": dataclasses.asdict(ratio),
            "peak_memory_bytes": peak_memory_bytes(),
            "formulas": {**FORMULAS, "ratio": RATIO, "peak_memory_bytes": "largest resident set with both loaded"},
        }
    console.result(data, text_of(data))
    return 0


def _measure(
    voices: Sequence[Synthesizer], arguments: argparse.Namespace, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[list[Run], list[Spoken], SpeedRatio]:
    """Cold runs, then rounds; the cold run of A says how many tokens both have to say."""
    total = 2 * (arguments.runs + 2)
    first = measure(voices[0], arguments, seed)
    configs = [_same_length(synthesis_config(voice, arguments), first.tokens) for voice in voices]
    colds = [first, measure(voices[1], arguments, seed, configs[1])]
    done = 2

    def speaker(voice: Synthesizer, config: SynthesisConfig) -> Callable[[], Run]:
        def speak() -> Run:
            nonlocal done
            progress("runs", done, total)
            done += 1
            return measure(voice, arguments, seed, config)

        return speak

    spoken = [Spoken(speaker(voice, config)) for voice, config in zip(voices, configs, strict=True)]
    first_voice, second_voice = spoken
    ratio = compare_speed(first_voice, second_voice, {}, rounds=arguments.runs, budget_s=float("inf"))
    progress("runs", total, total)
    return colds, spoken, ratio


def _same_length(config: SynthesisConfig, tokens: int) -> SynthesisConfig:
    sampling = dataclasses.replace(config.sampling, min_tokens=tokens, max_tokens=max(1, tokens))
    return dataclasses.replace(config, sampling=sampling)


def _warm(spoken: Spoken) -> dict[str, dict[str, float]]:
    """All rounds but the first, which `compare_speed` drops, too."""
    figures = [describe(run) for run in spoken.runs[1:]]
    return {name: summary([each[name] for each in figures]) for name in _COLUMNS}


def text_of(data: Mapping[str, Any]) -> str:
    """The report for people."""
    warm, ratio = data["warm"], SpeedRatio(**data["ratio"])
    rows = [
        (title, *(f"{warm[label][name][rank]:.3f}" for label in _LABELS for rank in ("p50", "p95")))
        for name, title in _COLUMNS.items()
    ]
    spread = f"{ratio.low:.3f} .. {ratio.high:.3f} in the middle half of {ratio.rounds} rounds"
    verdict = "neither is faster beyond doubt"
    if ratio.slower:
        verdict = "A is faster: for speed keep A"
    elif ratio.high < 1.0:
        verdict = "B is faster: for speed keep B"
    return "\n".join(
        [
            data["device"],
            *(f"{label}: {path}" for label, path in data["bundles"].items()),
            f"both say {data['tokens']} tokens",
            "",
            table(rows, ("", "A p50", "A p95", "B p50", "B p95")),
            "",
            f"B takes {ratio.ratio:.3f} times as long as A ({spread}); {verdict}",
            *(f"{name}: {formula}" for name, formula in data["formulas"].items()),
        ]
    )

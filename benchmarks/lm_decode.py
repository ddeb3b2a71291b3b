"""Decode and prefill speed of the speech language model against other runtimes, interleaved in one run.

In: a shape with random weights, and an interpreter that has the peers installed (see README.md here). Out: a table, a
JSON file, and the tables of docs/benchmarks.md. Says which peers are not installed; leaves none out silently.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import Machine, describe
from measure import Figure, Lineup, Plan, prepare
from report import machine_lines, markdown_table, replace_region, text_table
from roster import Entry, select
from shapes import SHAPES, write_checkpoint

PACKAGES = ("voxedge", "onnxruntime", "numpy")
_CONTENDED_CORES = 0.15
"""Load of others from which a figure is marked."""
_OVERHEAD_STEPS = 64


@dataclass(slots=True)
class Results:
    """Everything one run found."""

    machine: Machine
    """Where it ran."""
    settings: dict[str, Any]
    """The command's own settings."""
    figures: list[Figure] = field(default_factory=list)
    """One per engine, thread count and phase."""
    failures: dict[str, str] = field(default_factory=dict)
    """Engines that did not take part, with the reason."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Versions, load time and how a context was made, by engine."""
    logit_errors: dict[str, float] = field(default_factory=dict)
    """Relative error of the logits against the reference engine: do all run the same model?"""
    overhead_us: dict[str, float] = field(default_factory=dict)
    """Microseconds per decode step outside the runtime library, by engine and threads."""


def read_results(path: Path) -> Results:
    """Results that `--output` wrote."""
    found = json.loads(path.read_text())
    figures = [Figure(**{**each, "rounds_ms": tuple(each["rounds_ms"])}) for each in found["figures"]]
    return Results(**{**found, "machine": Machine(**found["machine"]), "figures": figures})


def add_earlier(results: Results, earlier: Results) -> None:
    """Put the figures of an earlier part of the run before the own ones.

    Raises:
        SystemExit: It was another machine, or other versions or sizes.
    """
    same = ("shape", "contexts", "prefill")
    if earlier.machine != results.machine or any(earlier.settings[name] != results.settings[name] for name in same):
        raise SystemExit("expected parts of one run on one machine with the same shape, contexts and prefill")
    results.figures[:0] = earlier.figures
    results.failures = {**earlier.failures, **results.failures}
    results.facts = {**earlier.facts, **results.facts}
    results.logit_errors = {**earlier.logit_errors, **results.logit_errors}
    results.overhead_us = {**earlier.overhead_us, **results.overhead_us}


def run(plan: Plan, entries: list[Entry], threads: list[int], results: Results) -> None:
    """Prepare, then measure every thread count with its own resident processes."""
    ready, failures = prepare(plan, entries)
    results.failures |= failures
    for count in threads:
        lineup = Lineup(plan, ready, count)
        try:
            results.logit_errors |= _logit_errors(lineup.logits(min(64, plan.prefill)))
            for context in sorted(plan.contexts):
                results.figures += lineup.decode(context)
            overhead = lineup.overhead_us(max(plan.contexts), _OVERHEAD_STEPS)
            results.overhead_us |= {f"{name}, threads={count}": value for name, value in overhead.items()}
            results.figures += lineup.prefill()
        finally:
            results.failures |= lineup.failures
            results.facts |= lineup.facts
            lineup.close()


def _logit_errors(logits: dict[str, Any]) -> dict[str, float]:
    """Relative L2 error against the first FP32 peer that is there."""
    names = [name for name in logits if "fp32" in name and not name.startswith("voxedge")] or list(logits)
    if not names:
        return {}
    reference = logits[names[0]]
    norm = float(np.linalg.norm(reference))
    return {name: float(np.linalg.norm(values - reference)) / norm for name, values in logits.items()}


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    mark = "*" if figure.foreign_cores > _CONTENDED_CORES else ""
    rate = figure.context / figure.ms * 1e3 if figure.phase == "prefill" else 1e3 / figure.ms
    share = f", {figure.roofline:.0%}" if figure.phase == "decode" else ""
    return f"{figure.ms:.1f}{mark} ({rate:.0f}/s{share})"


def tables(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of one table per thread count."""
    names = list(dict.fromkeys(figure.engine for figure in results.figures))
    for threads in dict.fromkeys(figure.threads for figure in results.figures):
        cells = {(f.engine, f.phase, f.context): f for f in results.figures if f.threads == threads}
        phases = list(dict.fromkeys((phase, context) for _, phase, context in cells))
        bandwidths = sorted(figure.bandwidth_gb_s for figure in cells.values())
        title = f"{threads} thread{'s'[: threads - 1]}, read bandwidth {bandwidths[0]:.1f}-{bandwidths[-1]:.1f} GB/s"
        header = ["ms (tokens/s, share of bandwidth)"]
        header += [f"decode @{size}" if phase == "decode" else f"prefill {size}" for phase, size in phases]
        yield title, header, [[name, *(_cell(cells.get((name, *phase))) for phase in phases)] for name in names]


def ratios(results: Results, entries: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """How many times faster each of our engines is than the best peer with as many bits per weight."""
    by_name = {entry.name: entry for entry in entries}
    rows = []
    for figure in (figure for figure in results.figures if by_name[figure.engine].own):
        same = (figure.threads, figure.phase, figure.context, by_name[figure.engine].bits_class)
        peers = [
            other
            for other in results.figures
            if not by_name[other.engine].own
            and (other.threads, other.phase, other.context, by_name[other.engine].bits_class) == same
        ]
        if peers:
            best = min(peers, key=lambda peer: peer.ms)
            place = f"{figure.phase} {figure.context}, threads={figure.threads}"
            rows.append([figure.engine, place, f"{figure.ms:.1f}", best.engine, f"{best.ms:.1f}"])
            rows[-1].append(f"{best.ms / figure.ms:.2f}")
    return ["engine", "phase", "ms", "best peer of equal bits", "its ms", "times faster"], rows


def _facts(results: Results, entries: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """What each engine that took part is."""
    rows = []
    for entry in (entry for entry in entries if entry.name in results.facts):
        facts, error = results.facts[entry.name], results.logit_errors.get(entry.name, float("nan"))
        rows.append([entry.name, f"{entry.weight_bits:g}", f"{entry.kv_bits:g}", f"{error:.1e}", facts["context"]])
        rows[-1].append(f"{facts['load_s']:.1f}")
    return ["engine", "bits per weight", "bits per KV element", "logit error", "context", "load s"], rows


def _notes(results: Results, entries: list[Entry]) -> Iterator[str]:
    versions = {key: value for facts in results.facts.values() for key, value in facts["versions"].items()}
    if versions:
        yield "Versions: " + ", ".join(f"{key} {value}" for key, value in versions.items()) + "."
    for entry in entries:
        if entry.name in results.failures:
            yield f"{entry.name}: {results.failures[entry.name]}"
    for name, value in results.overhead_us.items():
        yield f"{name}: {value:.0f} microseconds per decode step outside the runtime library's run call."


def render(results: Results, entries: list[Entry], markdown: bool) -> str:
    """The whole report."""
    table, bullet = (markdown_table, "* ") if markdown else (text_table, "  ")
    parts = [machine_lines(results.machine)]
    for title, header, rows in tables(results):
        parts += [f"**{title}**" if markdown else title, table(header, rows)]
    parts += [table(header, rows) for header, rows in (ratios(results, entries), _facts(results, entries)) if rows]
    parts.append("\n".join(bullet + note for note in _notes(results, entries)))
    parts.append(f"`*`: others used more than {_CONTENDED_CORES} cores during the visits.")
    return "\n\n".join(parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare LM decode and prefill speed with other runtimes.")
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and converted models")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers' environment")
    parser.add_argument("--engine", action="append", default=[], help="part of an engine's name; repeat for more")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], help="comma-separated")
    parser.add_argument("--contexts", type=_numbers, default=[0, 512, 2048], help="comma-separated")
    parser.add_argument("--prefill", type=int, default=256, help="tokens of the timed prefill")
    parser.add_argument("--rounds", type=int, default=5, help="visits per engine and phase, the first is dropped")
    parser.add_argument("--steps", type=int, default=12, help="decode steps per visit")
    parser.add_argument("--patience", type=float, default=20.0, help="longest wait for a quiet moment, in seconds")
    parser.add_argument("--add", type=Path, action="append", default=[], help="JSON of an earlier part of the run")
    parser.add_argument("--prepare-only", action="store_true", help="convert the models and stop")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file to put the tables into")
    parser.add_argument("--region", default="lm_decode", help="its marks there: REGION:begin and REGION:end")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"expected --rounds of at least 2 (the first is dropped), got {arguments.rounds}")
    return arguments


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run from the command line."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[arguments.shape]
    checkpoint = write_checkpoint(arguments.work / f"checkpoint-{arguments.shape}-bf16", shape)
    plan = Plan(
        shape=shape,
        checkpoint=checkpoint,
        work=arguments.work,
        pythons=(sys.executable, arguments.peer_python),
        contexts=tuple(arguments.contexts),
        prefill=arguments.prefill,
        steps=arguments.steps,
        rounds=arguments.rounds,
        quiet_cores=_CONTENDED_CORES,
        patience_s=arguments.patience,
    )
    settings = {
        name: getattr(arguments, name) for name in ("shape", "threads", "contexts", "prefill", "rounds", "steps")
    }
    results, entries = Results(describe(PACKAGES), settings), select(arguments.engine)
    if arguments.prepare_only:
        failures = prepare(plan, entries)[1]
        print("\n".join(f"{name}: {reason}" for name, reason in failures.items()) or "all are ready")
        return
    run(plan, entries, arguments.threads, results)
    for path in arguments.add:
        add_earlier(results, read_results(path))
    print(render(results, entries, markdown=False))
    if arguments.output:
        arguments.output.write_text(json.dumps(asdict(results), indent=1))
    if arguments.markdown:
        replace_region(arguments.markdown, arguments.region, render(results, entries, markdown=True))


if __name__ == "__main__":
    main()

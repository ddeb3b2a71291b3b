"""Decode steps and a prefill of one language model on everything that runs on a GPU, interleaved; used by gpu_check.py.

In: a checkpoint and its bundle, and a `Plan`. Out: in `Findings`: logits beside the CPU's, times, and what did not run.
Loads every engine at once and drops one that fails; the others go on. Exports and builds nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gpu_steps import FixedSteps, Logits, OurSteps, Steps, TransformersSteps
from machine import Machine
from report import machine_lines, markdown_table
from shapes import LmShape

from voxedge.engines.bundle import Bundle
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.engines.stamps import EngineFlavour
from voxedge.engines.trt.api import FLAVOURS, Target
from voxedge.engines.trt.loading import EngineSource
from voxedge.engines.trt.runner import TrtOptions

TARGETS: tuple[Target, ...] = ("rtx", "trt")
GRAPH = "speech_expert"
_CHECKED = 24
"""Tokens of the past at which logits are compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed."""

    contexts: tuple[int, ...]
    """Tokens of the past before a visit's first step."""
    prefill: int
    """Tokens of the timed prefill."""
    steps: int
    """Decode steps of a visit."""
    rounds: int
    """Visits that count."""
    logits: bool
    """Whether logits are compared first."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Decode steps of one engine after a context, or one prefill."""

    engine: str
    """Label."""
    kind: str
    """`decode` or `prefill`."""
    tokens: int
    """Tokens in the cache before the first timed step, or tokens of the prefill."""
    ms: float
    """Median over rounds of the median step; lower is better."""
    rounds_ms: tuple[float, ...]
    """The rounds behind it, without the dropped first ones."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a decode step has to read, to compare its time with."""

    shape: LmShape
    """The language model; two bytes per element."""
    peak_gb_s: float | None
    """The device's memory bandwidth in 10^9 bytes per second; None where nobody said."""

    def read_gb(self, context: int) -> float:
        """All matrices once, and the cache."""
        return 2e-9 * (self.shape.step_weights + context * self.shape.kv_elements)


@dataclass(slots=True)
class Findings:
    """Everything that was found so far, also on disk."""

    output: Path | None
    """Where; None keeps it in memory."""
    found: dict[str, Any] = field(default_factory=dict)
    """By part."""
    failures: dict[str, str] = field(default_factory=dict)
    """What did not run, with its reason."""

    def add(self, part: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Keep a part, and write all of them."""
        self.found[part] = value
        self.save()

    def save(self) -> None:
        """Write all parts and the failures so far."""
        if self.output is not None:
            self.output.write_text(json.dumps({**self.found, "failures": self.failures}, indent=1, default=str))


def decoders(checkpoint: Path, bundle: Bundle, plan: Plan, failures: dict[str, str]) -> dict[str, Steps]:
    """Everything that loads, resident at once."""
    folder, capacity = checkpoint / GRAPH, max(max(plan.contexts) + plan.steps, plan.prefill) + 64
    graphs = plan.steps * len(plan.contexts)  # a growing past needs one for each length
    makers: dict[str, Callable[[], Steps]] = {
        "onnxruntime cuda": lambda: OurSteps(_ort_engine(bundle, "cuda"), capacity),
        "onnxruntime cuda, CUDA graphs": lambda: OurSteps(_ort_engine(bundle, "cuda", graphs=True), capacity),
        "onnxruntime cuda, fixed buffers": lambda: _fixed(bundle, capacity, False),
        "onnxruntime cuda, fixed buffers, CUDA graph": lambda: _fixed(bundle, capacity, True),
        "transformers, torch.compile": lambda: TransformersSteps(folder, capacity, mode="reduce-overhead"),
        "transformers, eager": lambda: TransformersSteps(folder, capacity),
    }
    for target in TARGETS:
        for label, count in (("", 0), (", CUDA graphs", graphs)):
            makers[f"{FLAVOURS[target]}{label}"] = _trt_maker(bundle, FLAVOURS[target], count, capacity)
    found: dict[str, Steps] = {}
    for name, make in makers.items():
        started = time.perf_counter()
        try:
            found[name] = make()
            print(f"{name}: loaded in {time.perf_counter() - started:.1f} s", flush=True)
        except Exception as error:  # whatever a missing or broken peer raises is the answer
            failures[f"decode with {name}"] = first_line(error)
    return found


def check_logits(bundle: Bundle, engines: dict[str, Steps], failures: dict[str, str]) -> dict[str, float | None]:
    """Largest error of any engine's logits beside ONNX Runtime's on the CPU, relative to the largest of these.

    A step is made four times, as in a timed visit, so that it is a captured one's where there are any. An engine whose
    logits are no numbers is dropped: the time of wrong work says nothing.
    """
    errors: dict[str, float | None] = {}
    try:
        expected = _logits(OurSteps(_ort_engine(bundle, "cpu"), _CHECKED + 64))
    except Exception as error:  # as above
        failures["logits on the CPU"] = first_line(error)
        return errors
    for name, engine in list(engines.items()):
        try:
            found = _logits(engine)[: len(expected)]
        except Exception as error:  # as above
            failures[f"logits of {name}"] = first_line(error)
            del engines[name]
            continue
        # transformers has no row for the end of speech, which is the last
        difference = np.abs(found - expected[: len(found)]).max() / np.abs(expected).max()
        errors[name] = float(difference) if np.isfinite(difference) else None
        if errors[name] is None:
            failures[f"logits of {name}"] = "expected numbers, found NaN or infinity"
            del engines[name]
    return errors


def _logits(engine: Steps) -> Logits:
    for _ in range(4):
        engine.rewind(_CHECKED)
        found = engine.step()
    return found


def first_line(error: Exception) -> str:
    """What a failure says, short."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def _ort_engine(bundle: Bundle, device: Literal["cpu", "cuda"], graphs: bool = False) -> OrtEngine:
    spec = bundle.manifest.graph(GRAPH, "ort")
    return OrtEngine(bundle.graph_path(spec), spec, OrtOptions(device=device, cuda_graphs=graphs))


def _fixed(bundle: Bundle, capacity: int, graph: bool) -> FixedSteps:
    spec = bundle.manifest.graph(GRAPH, "ort")
    return FixedSteps(bundle.graph_path(spec), spec, capacity, graph)


def _trt_maker(bundle: Bundle, flavour: EngineFlavour, graphs: int, capacity: int) -> Callable[[], Steps]:
    return lambda: OurSteps(EngineSource(bundle, flavour, TrtOptions(graphs)).load(GRAPH), capacity)


def time_decode(
    engines: dict[str, Steps], context: int, steps: int, rounds: int, failures: dict[str, str]
) -> list[Figure]:
    """Decode steps after a context."""

    def visit(engine: Steps) -> float:
        engine.rewind(context)
        return statistics.median(_milliseconds(engine.step) for _ in range(steps))

    return _in_turns("decode", context, engines, visit, rounds, failures)


def time_prefill(engines: dict[str, Steps], count: int, rounds: int, failures: dict[str, str]) -> list[Figure]:
    """A prompt at once."""
    return _in_turns(
        "prefill", count, engines, lambda engine: _milliseconds(lambda: engine.prefill(count)), rounds, failures
    )


def _in_turns(
    kind: str,
    tokens: int,
    engines: dict[str, Steps],
    visit: Callable[[Steps], float],
    rounds: int,
    failures: dict[str, str],
) -> list[Figure]:
    """Visits in turns: A B C, A B C, ...; the first two rounds warm up, and are where graphs are captured."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 2):
        for name in [name for name in times if name in engines]:
            try:
                times[name].append(visit(engines[name]))
            except Exception as error:  # as above
                failures[f"{kind} with {name} at {tokens}"] = first_line(error)
                del engines[name]
    kept = {name: tuple(times[name][2:]) for name in engines}
    return [Figure(name, kind, tokens, statistics.median(values), values) for name, values in kept.items()]


def _milliseconds(call: Callable[[], object]) -> float:
    """Wall time; the call returns with logits on the host, so the device is done."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def decode(checkpoint: Path, bundle: Bundle, plan: Plan, findings: Findings) -> None:
    """Load everything, compare logits, time; what was found is kept after every part."""
    engines = decoders(checkpoint, bundle, plan, findings.failures)
    placed = {name: engine.placement for name, engine in engines.items() if isinstance(engine, FixedSteps)}
    findings.add("placement of the language model", placed)
    if plan.logits:
        findings.add("logits", check_logits(bundle, engines, findings.failures))
    figures: list[Figure] = []
    for context in plan.contexts:
        figures += time_decode(engines, context, plan.steps, plan.rounds, findings.failures)
        findings.add("decode", [asdict(figure) for figure in figures])
    figures += time_prefill(engines, plan.prefill, plan.rounds, findings.failures)
    findings.add("decode", [asdict(figure) for figure in figures])


def decode_table(found: dict[str, Any]) -> str:
    """Decode steps and prefills as Markdown: a row for each engine, milliseconds, and the spread of the rounds."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for figure in found["decode"]:
        rounds = figure["rounds_ms"]
        text = f"{figure['ms']:.2f} ({min(rounds):.2f}-{max(rounds):.2f})"
        cells.setdefault((figure["kind"], figure["tokens"]), {})[figure["engine"]] = text
    columns = sorted(cells)
    engines = list(dict.fromkeys(figure["engine"] for figure in found["decode"]))
    rows = [(engine, *(cells[column].get(engine, "") for column in columns)) for engine in engines]
    gpus = ", ".join(f"{gpu['name']}, driver {found['device']['driver']}" for gpu in found["device"]["gpus"])
    header = ("ms", *(f"{kind} {tokens}" if kind == "prefill" else f"{kind} @{tokens}" for kind, tokens in columns))
    return f"GPU: {gpus}. {machine_lines(Machine(**found['machine']))}\n\n{markdown_table(header, rows)}"


def row(figure: dict[str, Any], traffic: Traffic, errors: dict[str, float | None]) -> tuple[str, ...]:
    """A figure for people; a step's traffic is all weights and the cache, whatever an engine really moves."""
    what, error = f"{figure['kind']} {figure['tokens']}", errors.get(figure["engine"])
    own = (figure["engine"], what, f"{figure['ms']:.3f}")
    if figure["kind"] == "prefill":
        return (*own, f"{1e3 * figure['tokens'] / figure['ms']:.0f}", "", "", "")
    speed = 1e3 * traffic.read_gb(figure["tokens"]) / figure["ms"]
    share = "" if traffic.peak_gb_s is None else f"{100 * speed / traffic.peak_gb_s:.0f} %"
    return (*own, f"{1e3 / figure['ms']:.0f}", f"{speed:.0f}", share, "" if error is None else f"{error:.1e}")

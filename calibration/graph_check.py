"""Run every flavour of every graph on recorded calls and compare what comes out.

In: a bundle, its reference where there is one, a recording. Out: `GraphReport`s, and sentences about graphs that could
not be run. One engine is in memory at a time. Does not judge figures (see `calibration.gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from voxedge.calibration import metrics
from voxedge.calibration.recording import Recording
from voxedge.calibration.replay import Feeds, replay
from voxedge.calibration.report import Against, GraphReport
from voxedge.engines.backend import Array
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InferenceError
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort import OrtEngine, OrtOptions

Outputs = list[dict[str, Array]]
"""Of each call, by name."""
Progress = Callable[[str, int, int], None]


def check_graphs(
    bundle: Bundle, reference: Bundle | None, recording: Recording, on_progress: Progress
) -> tuple[list[GraphReport], list[str]]:
    """Run all graphs.

    Args:
        bundle: Whose graphs are run.
        reference: What they are compared with.
        recording: What they are given.
        on_progress: Told about every graph.

    Returns:
        Reports, and a sentence for each graph that could not be run.

    Raises:
        BundleError: The reference lacks a graph.
        BackendUnavailableError: ONNX Runtime is not installed, or too old for a graph.
    """
    reports: list[GraphReport] = []
    failures: list[str] = []
    names = list(dict.fromkeys(graph.name for graph in bundle.manifest.graphs))
    for done, name in enumerate(names):
        on_progress("comparing graphs", done, len(names))
        calls = recording.calls(name)
        if not calls:
            failures.append(f"graph {name}: expected to be run at least once, speaking did not reach it")
            continue
        reports += _check_graph(bundle, reference, name, calls, failures)
    on_progress("comparing graphs", len(names), len(names))
    return reports, failures


def _check_graph(
    bundle: Bundle, reference: Bundle | None, name: str, calls: Sequence[Feeds], failures: list[str]
) -> Iterator[GraphReport]:
    """All flavours of one graph, the portable one first."""
    known: dict[Against, Outputs] = {}
    if reference is not None:
        known["reference"] = _run(reference, reference.manifest.graph(name), calls)
    specs = [graph for graph in bundle.manifest.graphs if graph.name == name]
    for spec in sorted(specs, key=lambda graph: graph.flavour != "portable"):
        try:
            outputs = _run(bundle, spec, calls)
        except (BundleError, InferenceError) as error:
            failures.append(f"graph {name} ({spec.flavour}, {spec.precision}): {error}")
            continue
        yield from _reports(spec, outputs, known)
        if spec.flavour == "portable":
            known["portable"] = outputs


def run_calls(path: Path, spec: GraphSpec, calls: Sequence[Feeds]) -> Outputs:
    """Load one graph on the CPU, run all calls, let go of it.

    Args:
        path: The .onnx file.
        spec: What it takes and gives.
        calls: What it is given.

    Raises:
        BundleError: The graph cannot be loaded.
        InferenceError: A call fails.
        InputError: The calls belong to another graph.
    """
    engine = OrtEngine(path, spec, OrtOptions())
    try:
        return [replay(engine, feeds) for feeds in calls]
    finally:
        engine.close()


def _run(bundle: Bundle, spec: GraphSpec, calls: Sequence[Feeds]) -> Outputs:
    return run_calls(bundle.graph_path(spec), spec, calls)


def _reports(spec: GraphSpec, outputs: Outputs, known: dict[Against, Outputs]) -> Iterator[GraphReport]:
    """One report for each thing to compare with; a bare one where there is nothing."""
    values = sum(array.size for call in outputs for array in call.values())
    numbers = sum(int(np.isfinite(array).sum()) for call in outputs for array in call.values())
    finite = numbers / values if values else 1.0
    broken = tuple(name for name in outputs[0] if any(metrics.finite_share(call[name]) < 1.0 for call in outputs))
    compared: list[Against | None] = [*known] or [None]
    for against in compared:
        differences = (
            (
                metrics.worst(
                    metrics.compare(name, true[name], call[name])
                    for true, call in zip(known[against], outputs, strict=True)
                )
                for name in outputs[0]
            )
            if against is not None
            else ()
        )
        yield GraphReport(
            spec.name, spec.flavour, spec.precision, len(outputs), finite, broken, against, tuple(differences)
        )

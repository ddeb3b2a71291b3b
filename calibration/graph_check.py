"""Run every flavour of every graph on recorded calls and compare what comes out.

In: a bundle, its reference where there is one, a recording. Out: `GraphReport`s, and sentences about graphs that could
not be run. One engine is in memory at a time. Does not judge figures (see `calibration.gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from voxedge.calibration import metrics
from voxedge.calibration.backends import GraphRunner, Outputs
from voxedge.calibration.recording import Recording
from voxedge.calibration.replay import Feeds
from voxedge.calibration.report import Against, GraphReport
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InferenceError
from voxedge.engines.loader import Backend
from voxedge.engines.manifest import GraphSpec

Progress = Callable[[str, int, int], None]


def check_graphs(
    bundle: Bundle, reference: Bundle | None, recording: Recording, on_progress: Progress, backend: Backend = "cpu"
) -> tuple[list[GraphReport], list[str]]:
    """Run all graphs.

    Args:
        bundle: Whose graphs are run.
        reference: What they are compared with.
        recording: What they are given.
        on_progress: Told about every graph.
        backend: Where they are run; what they are compared with runs on the CPU.

    Returns:
        Reports, and a sentence for each graph that could not be run.

    Raises:
        BundleError: The reference lacks a graph.
        BackendUnavailableError: The backend is not there, or ONNX Runtime is too old for a graph.
        EngineMismatchError: TensorRT was asked for, and a graph has no engine that fits.
    """
    reports: list[GraphReport] = []
    failures: list[str] = []
    names = list(dict.fromkeys(graph.name for graph in bundle.manifest.graphs))
    with GraphRunner(bundle, backend) as runner:
        for done, name in enumerate(names):
            on_progress("comparing graphs", done, len(names))
            calls = recording.calls(name)
            if not calls:
                failures.append(f"graph {name}: expected to be run at least once, speaking did not reach it")
                continue
            reports += _check_graph(bundle, reference, runner, name, calls, failures)
    on_progress("comparing graphs", len(names), len(names))
    return reports, failures


def _check_graph(
    bundle: Bundle,
    reference: Bundle | None,
    runner: GraphRunner,
    name: str,
    calls: Sequence[Feeds],
    failures: list[str],
) -> Iterator[GraphReport]:
    """All flavours of one graph, the portable one first; beyond the CPU, beside the CPU."""
    known: dict[Against, Outputs] = {}
    if reference is not None:
        with GraphRunner(reference) as cpu:
            known["reference"] = cpu.run(reference.manifest.graph(name), calls)
    elif runner.backend != "cpu":
        with GraphRunner(bundle) as cpu:
            known["portable"] = cpu.run(bundle.manifest.graph(name), calls)
    for spec in runner.specs(name):
        try:
            outputs = runner.run(spec, calls)
        except (BundleError, InferenceError) as error:
            failures.append(f"graph {name} ({spec.flavour}, {spec.precision}): {error}")
            continue
        yield from _reports(spec, outputs, known)
        if spec.flavour == "portable":
            known["portable"] = outputs


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

"""Put traced graphs into a bundle that is being written.

In: for each graph its flavours, the tensors and its profiles. Out: files in the bundle and the `GraphSpec`s of the
manifest. Lints every portable graph on the way: a graph that TensorRT 10.1's parser would refuse never leaves here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.calibration.graph_files import save_models
from voxedge.calibration.lint import require_portable
from voxedge.calibration.quantise.graph import EditedGraph, opset_of
from voxedge.calibration.quantise.streaming import Rounding
from voxedge.engines.bundle import BundleWriter
from voxedge.engines.data_file import Progress
from voxedge.engines.manifest import DimRange, Flavour, GraphSpec
from voxedge.export.graph import Traced
from voxedge.export.weights import Tensors, sources_of

Profiles = Mapping[str, Mapping[str, DimRange]]


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph that will be exported."""

    name: str
    precision: str
    trace: Mapping[Flavour, Callable[[], Traced]]
    """How to trace each flavour; called when the graph is written, so that no other graph's trace is in memory."""
    tensors: Tensors
    """The checkpoint's tensors by the module's parameter names."""
    profiles: Mapping[Flavour, Profiles]
    weight_uses: int = 1
    """How often one call reads the same weights, see `GraphSpec`."""


def write_graph(
    writer: BundleWriter, plan: GraphPlan, progress: Progress, rounding: Rounding | None = None
) -> tuple[GraphSpec, ...]:
    """Trace, round, save and lint one graph.

    Args:
        writer: Where it goes.
        plan: What it is.
        progress: Told about every block of weights read.
        rounding: How its weights are rounded on the way; None keeps them.

    Raises:
        ExportError: The graph cannot be traced, a tensor is missing, or a portable graph is not portable.
        ConfigError: A rule cannot be followed.
    """
    data = f"graphs/{plan.name}.data"
    paths = {flavour: f"graphs/{plan.name}.{flavour}.onnx" for flavour in plan.trace}
    traced = {flavour: trace() for flavour, trace in plan.trace.items()}
    places: dict[Flavour, Path] = {flavour: writer.path(path) for flavour, path in paths.items()}
    sources = sources_of(traced, plan.tensors)
    models = {flavour: graph.model for flavour, graph in traced.items()}
    rounded = None if rounding is None else rounding.round(EditedGraph(plan.name, models, sources, plan.weight_uses))
    save_models({places[flavour]: model for flavour, model in models.items()}, sources, writer.path(data), progress)
    specs = tuple(
        GraphSpec(
            name=plan.name,
            flavour=flavour,
            path=paths[flavour],
            data=data,
            precision=plan.precision,
            opset=opset_of(graph.model),
            inputs=graph.inputs,
            outputs=graph.outputs,
            profiles=plan.profiles[flavour],
            weight_uses=plan.weight_uses,
        )
        for flavour, graph in traced.items()
    )
    if rounded is not None:
        specs = tuple(rounded.described(spec) for spec in specs)
    for spec in specs:
        if spec.flavour == "portable":
            require_portable(places["portable"], spec)
    return specs

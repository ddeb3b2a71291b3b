"""Put traced graphs into a bundle that is being written.

In: for each graph its flavours, the tensors and its profiles. Out: files in the bundle and the `GraphSpec`s of the
manifest. Lints every portable graph on the way: a graph that TensorRT 10.1's parser would refuse never leaves here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.calibration.lint import require_portable
from voxedge.engines.bundle import BundleWriter
from voxedge.engines.data_file import Progress
from voxedge.engines.manifest import DimRange, Flavour, GraphSpec
from voxedge.export.graph import Traced
from voxedge.export.weights import Tensors, save_graphs

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


def write_graph(writer: BundleWriter, plan: GraphPlan, progress: Progress) -> tuple[GraphSpec, ...]:
    """Trace, save and lint one graph.

    Raises:
        ExportError: The graph cannot be traced, a tensor is missing, or a portable graph is not portable.
    """
    data = f"graphs/{plan.name}.data"
    paths = {flavour: f"graphs/{plan.name}.{flavour}.onnx" for flavour in plan.trace}
    traced = {flavour: trace() for flavour, trace in plan.trace.items()}
    places: dict[Flavour, Path] = {flavour: writer.path(path) for flavour, path in paths.items()}
    save_graphs(traced, plan.tensors, places, writer.path(data), progress)
    specs = tuple(
        GraphSpec(
            name=plan.name,
            flavour=flavour,
            path=paths[flavour],
            data=data,
            precision=plan.precision,
            opset=graph.opset,
            inputs=graph.inputs,
            outputs=graph.outputs,
            profiles=plan.profiles[flavour],
        )
        for flavour, graph in traced.items()
    )
    for spec in specs:
        if spec.flavour == "portable":
            require_portable(places["portable"], spec)
    return specs

"""A small graph in memory as the quantisers see it: an `EditedGraph` whose weights are arrays.

In: nodes, weights. Out: the graph, and what ONNX Runtime computes of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from voxedge.calibration.accumulate import TensorAccumulator
from voxedge.calibration.graph_files import save_models
from voxedge.calibration.quantise.graph import EditedGraph
from voxedge.calibration.statistics import Provenance, Statistics
from voxedge.engines.lazy import InMemory
from voxedge.engines.manifest import Flavour, GraphSpec
from voxedge.engines.ort import graph_options

Arrays = dict[str, np.ndarray]
PROVENANCE = Provenance("0" * 64, "toy", "1" * 64, 1, 0, 1, "0", "0")


def toy_graph(text: str, weights: Arrays) -> EditedGraph:
    """A graph of ONNX's textual form whose initialisers are `weights`, given there as inputs after the first."""
    parsed = ir.from_onnx_text(text)
    for name, array in weights.items():
        value = next(value for value in parsed.graph.inputs if value.name == name)
        parsed.graph.inputs.remove(value)
        parsed.graph.initializers[name] = value
        value.shape = ir.Shape(array.shape)
    for node in parsed.graph:
        node.name = f"/{node.outputs[0].name}/{node.op_type}"
    sources = {name: InMemory(name, array) for name, array in weights.items()}
    return EditedGraph("toy", {"portable": parsed}, dict(sources))


def run_graph(graph: EditedGraph, folder: Path, x: np.ndarray, flavour: Flavour = "portable") -> Arrays:
    """Save and run one flavour."""
    folder.mkdir(exist_ok=True)
    model = graph.models[flavour]
    save_models({folder / "toy.onnx": model}, graph.sources, folder / "toy.data", lambda count: None)
    precision = "int8" if any(node.op_type == "QuantizeLinear" for node in model.graph) else "fp32"
    uses = graph.weight_uses
    spec = GraphSpec("toy", flavour, "toy.onnx", "toy.data", precision, 20, (), (), {"any": {}}, weight_uses=uses)
    settings = onnxruntime.SessionOptions()
    for name, value in graph_options(spec).items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(str(folder / "toy.onnx"), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def statistics_of(values: dict[str, tuple[int, np.ndarray]]) -> Statistics:
    """Of activations by name, each with its axis of channels."""
    found = {}
    for name, (axis, array) in values.items():
        accumulator = TensorAccumulator(axis)
        accumulator.add(array)
        found["toy", name] = accumulator.finish()
    return Statistics.of(PROVENANCE, {key: value for key, value in found.items() if value is not None})

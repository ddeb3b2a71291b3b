"""One graph of a bundle while its weights are being replaced, in all its flavours at once.

In: `onnx_ir` models and the lazily read values of their initialisers. Out: the same models with new nodes and new
initialisers, whose values are computed while they are written. Flavours share initialisers by name, and so the data
file. Does not decide precisions (see `quantise.plan`) and does not round (see `quantise.rounding`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from voxedge.calibration.graph_files import dtype_of, is_streamed, shape_of
from voxedge.calibration.quantise.plan import Operator, WeightedNode
from voxedge.engines.errors import ExportError
from voxedge.engines.lazy import LazyTensor
from voxedge.engines.manifest import Flavour

FLOAT_TYPES: Mapping[Literal["fp32", "fp16"], str] = {"fp32": "float32", "fp16": "float16"}

_OPERATORS: tuple[Operator, ...] = get_args(Operator)
_WEIGHT_INPUT: Mapping[Operator, int] = {"MatMul": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}
_RANKS: Mapping[Operator, tuple[int, ...]] = {"MatMul": (2,), "Conv": (3, 4), "ConvTranspose": (3, 4), "Gather": (2,)}
_PRECISIONS: Mapping[str, Literal["fp32", "fp16"]] = {"float32": "fp32", "float16": "fp16"}
_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int4": ir.DataType.INT4,
}


@dataclass(frozen=True, slots=True)
class EditedGraph:
    """All flavours of one graph."""

    name: str
    """Of the graph, such as `speech_expert`."""
    models: Mapping[Flavour, ir.Model]
    """Rewritten in place."""
    sources: dict[str, LazyTensor]
    """Values of every initialiser outside the graphs, by name; grows by the new ones."""
    weight_uses: int = 1
    """How often one call reads the same weights, see `GraphSpec`."""

    def weighted_nodes(self) -> tuple[WeightedNode, ...]:
        """Every node of any flavour that reads a weight, in the order of the graph, each path once."""
        found: dict[str, WeightedNode] = {}
        for model in self.models.values():
            for node in model.graph:
                described = describe(node)
                if described is not None and described.weight in self.sources:
                    found.setdefault(described.path, described)
        return tuple(found.values())

    def with_weights_of_their_own(self, groups: Iterable[Sequence[WeightedNode]]) -> list[bool]:
        """For each group of nodes whether nobody else reads their weights, which may then be changed for these alone.

        A frame step reads the same matrices once for each channel.
        """
        readers: dict[str, set[str]] = {}
        for node in self.weighted_nodes():
            readers.setdefault(node.weight, set()).add(node.path)
        return [all(readers[node.weight] <= {each.path for each in nodes} for node in nodes) for nodes in groups]

    def drop_unused(self) -> None:
        """Forget initialisers that no node of a flavour reads any more."""
        for model in self.models.values():
            for name, value in list(model.graph.initializers.items()):
                if not value.uses() and not value.is_graph_output():
                    del model.graph.initializers[name]


def describe(node: ir.Node) -> WeightedNode | None:
    """The weight that a node reads; None where it reads none from the data file."""
    operator = next((known for known in _OPERATORS if node.op_type == known and node.domain in ("", "ai.onnx")), None)
    if operator is None:
        return None
    value = node.inputs[_WEIGHT_INPUT[operator]]
    if value is None or not value.is_initializer() or not is_streamed(value) or value.name is None:
        return None
    shape, stored = shape_of(value), _PRECISIONS.get(dtype_of(value))
    if stored is None or len(shape) not in _RANKS[operator]:
        return None
    return WeightedNode(node.name or "", operator, value.name, shape, stored)


def weight_input(node: ir.Node) -> int:
    """Which input of a weighted node is the weight."""
    return _WEIGHT_INPUT[node.op_type]  # type: ignore[index]  # `describe` has seen the operator


def add_initialiser(model: ir.Model, name: str, dtype: str, shape: tuple[int, ...]) -> ir.Value:
    """An initialiser whose values will be streamed from the source of its name; one that exists is given again.

    Raises:
        ExportError: It exists with another type or shape.
    """
    existing = model.graph.initializers.get(name)
    if existing is not None:
        if (dtype_of(existing), shape_of(existing)) != (dtype, shape):
            raise ExportError(f"expected one form of {name}, found {dtype} {shape} beside {existing.shape}")
        return existing
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(_TYPES[dtype]))
    model.graph.initializers[name] = value
    return value


def add_constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A small initialiser inside the graph file; one that exists is given again."""
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers[name] = value
    return value


def new_node(
    place: ir.Node,
    operator: str,
    inputs: list[ir.Value],
    dtype: str,
    shape: ir.Shape | None,
    attributes: Mapping[str, int] | None = None,
    after: bool = False,
) -> ir.Value:
    """Insert a node of ONNX before another one, or after it, named by the other's path; gives its output."""
    model_graph = place.graph
    if model_graph is None:
        raise ExportError(f"expected {place.name} in a graph")
    path = str(place.name).rpartition("/")[0]
    near = [node for node in model_graph if (node.name or "").startswith(path)]
    # A node that was renamed has left its output the old name, so both are looked at.
    taken = {node.name for node in near} | {str(node.outputs[0].name).removesuffix(":0") for node in near}
    stem = f"{path}/{operator}"
    name = next(name for name in (stem, *(f"{stem}_{n}" for n in range(1, len(taken) + 2))) if name not in taken)
    node = ir.node(operator, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{name}:0", shape, ir.TensorType(_TYPES[dtype])
    (model_graph.insert_after if after else model_graph.insert_before)(place, node)
    return output


def replace_node(node: ir.Node, value: ir.Value) -> None:
    """Let a new value stand for a node's output, under its name, and remove the node."""
    old = node.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    old.name, value.name = None, name
    graph = node.graph
    if graph is not None:
        graph.remove(node, safe=True)


def require_opset(model: ir.Model, opset: int) -> None:
    """Raise the model's opset and file version to what an operator needs."""
    model.opset_imports[""] = max(opset, model.opset_imports.get("", 0))
    model.ir_version = max(model.ir_version, 10 if opset >= 21 else model.ir_version)


def opset_of(model: ir.Model) -> int:
    """Opset of the default domain."""
    return model.opset_imports[""]

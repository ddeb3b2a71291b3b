"""An ONNX graph as the lint's rules see it: nodes, element types and constants, without the weights.

In: an .onnx file. Out: a `GraphView`. Reads no external data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import external_data_helper, numpy_helper, shape_inference

from voxedge.engines.errors import ExportError
from voxedge.engines.files import format_bytes
from voxedge.engines.manifest import GraphSpec

Rule = Literal[
    "domain",
    "operator",
    "types",
    "limits",
    "precision",
    "random",
    "data-dependent",
    "dims",
    "int64",
    "names",
    "interface",
    "external-data",
    "duplicates",
    "quantised",
]

# Above this, weights must be inside the file; a graph of 64 layers without weights has about 2 MB.
_MAX_GRAPH_BYTES = 256 << 20
_MAX_CONSTANT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a graph breaks a rule."""

    rule: Rule
    """Which rule; see `calibration.lint`."""
    node: str
    """Name of the node or tensor; empty for the graph as a whole."""
    message: str
    """What was expected and what was found."""


@dataclass(frozen=True, slots=True)
class GraphView:
    """A loaded graph and what could be inferred of it."""

    model: onnx.ModelProto
    """The graph; its external weights are not loaded."""
    spec: GraphSpec
    """What the manifest says about it."""
    folder: Path
    """Where the .onnx file is; external data is relative to it."""
    opset: int
    """Of the default domain; 0 if it imports none."""
    types: Mapping[str, int]
    """Element type of every tensor whose type is known (TensorProto.DataType)."""
    initializers: Mapping[str, onnx.TensorProto]
    """Weights and constants by name."""
    constants: frozenset[str]
    """Tensors whose values are known when the engine is built."""

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """The value of a small initialiser, wherever it is stored; None for anything else."""
        tensor = self.initializers.get(name)
        if tensor is None:
            return None
        if not external_data_helper.uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        place = external_place(tensor)
        path = self.folder / place.location
        if place.length > _MAX_CONSTANT_BYTES or ".." in Path(place.location).parts or not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(place.offset)
            raw = file.read(place.length)
        copy = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
        return numpy_helper.to_array(copy)


@dataclass(frozen=True, slots=True)
class ExternalPlace:
    """Where an external tensor's bytes are."""

    location: str
    """File, relative to the graph's folder."""
    offset: int
    """First byte."""
    length: int
    """Bytes; computed from dtype and shape where the file does not say."""


def view_graph(path: Path, spec: GraphSpec) -> GraphView:
    """Load a graph without its weights and infer the types of its tensors.

    Raises:
        ExportError: The file is no ONNX graph, or is so large that the weights are inside.
    """
    size = path.stat().st_size
    if size > _MAX_GRAPH_BYTES:
        raise ExportError(f"{path}: expected a graph with external weights, found a file of {format_bytes(size)}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's decode error is not part of its public interface
        raise ExportError(f"{path}: expected an ONNX graph, found {error}") from error
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    return GraphView(model, spec, path.parent, opset, _types(model), initializers, frozenset(made | set(initializers)))


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor's values, from its dtype and shape."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (count + 1) // 2
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def external_place(tensor: onnx.TensorProto) -> ExternalPlace:
    """Where an external tensor's bytes are; a number that is no number counts as -1."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = _number(entries["length"]) if "length" in entries else tensor_bytes(tensor)
    return ExternalPlace(entries.get("location", ""), _number(entries.get("offset", "0")), length)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1


def _types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        inferred = shape_inference.infer_shapes(model).graph
    except shape_inference.InferenceError:
        inferred = model.graph  # the types that the file states; onnx's checker reports the contradiction
    known = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        known[value.name] = value.type.tensor_type.elem_type
    return {name: kind for name, kind in known.items() if kind}

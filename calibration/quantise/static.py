"""INT8 products: QuantizeLinear and DequantizeLinear in front of both operands (W8A8).

In: an `EditedGraph`, the layers at `int8`, statistics of the FP32 activations. Out: every such MatMul, Conv and
ConvTranspose reads its activation through a Q/DQ pair with one scale and its INT8 weight through a DequantizeLinear
with one scale for each output channel; both symmetric with zero-point 0, so that TensorRT fuses them. Biases stay
floats. The `ort` flavour holds the same values as unsigned integers with the zero-point 128, for which x86 has faster
kernels.

A convolution over time gets a second dimension of length 1: TensorRT has none of one dimension, and its parser would
put the missing one between DequantizeLinear and the layer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.graph import EditedGraph, add_constant, add_initialiser, describe, new_node
from voxedge.calibration.quantise.plan import WeightedNode
from voxedge.calibration.quantise.ranges import LEVELS, Histogram, activation_range
from voxedge.calibration.quantise.scaling import Flat
from voxedge.calibration.quantise.smooth import Group, Smoothing, smooth_group
from voxedge.calibration.quantise.weight_only import shares_floats, store_matrix
from voxedge.calibration.statistics import Statistics, TensorStatistics
from voxedge.engines.errors import InputError
from voxedge.engines.lazy import InMemory, materialise
from voxedge.engines.manifest import Flavour, LayerSpec

CpuForm = Literal["integer", "float"]
"""How the `ort` flavour computes INT8 layers: as integers, or as floats from INT8 weights."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one model writes its INT8 layers."""

    unsigned: bool
    """uint8 with the zero-point 128 rather than int8 with 0; the same values."""
    style: Literal["plain", "integer", "float"]
    """`plain`: Q/DQ in front of both operands. `integer`: a Conv quantises its result too, without which ONNX Runtime
    computes floats, and a ConvTranspose stays float, because it has no other. `float`: activations are left alone."""


PORTABLE = Form(unsigned=False, style="plain")


def ort_form(form: CpuForm) -> Form:
    """Form of ONNX Runtime's flavour."""
    return Form(unsigned=True, style=form)


def form_of_layers(
    layers: Mapping[str, LayerSpec], nodes: Sequence[WeightedNode], form: CpuForm
) -> dict[str, LayerSpec]:
    """What the `ort` flavour makes of every layer: those that it computes as floats have INT8 weights alone."""
    weight_only = {node.path for node in nodes if form == "float" or node.operator == "ConvTranspose"}
    return {
        path: LayerSpec("int8-weight") if path in weight_only and spec.precision == "int8" else spec
        for path, spec in layers.items()
    }


def quantise_activations(
    graph: EditedGraph,
    layers: Mapping[str, LayerSpec],
    statistics: Statistics,
    config: QuantiseConfig,
    forms: Mapping[Flavour, Form],
) -> list[Smoothing]:
    """Rewrite all INT8 layers of all flavours, in place.

    Args:
        graph: With an untouched portable flavour, whose values the statistics know.
        layers: By node path; those at `int8` are rewritten.
        statistics: Of the same bundle at FP32.
        config: How ranges are chosen, and whether activations are smoothed.
        forms: Of every flavour.

    Returns:
        What smoothing did, for each activation of matrix products.

    Raises:
        InputError: The statistics lack an activation.
    """
    inputs = _activations(graph, layers, statistics)
    ranges = {value.name: activation_range(Histogram.of(found), config.ranges) for value, found, _ in inputs.values()}
    smoothed: list[Smoothing] = []
    if config.smooth:
        for group in _groups(graph, inputs):
            smoothed.append(smooth_group(graph, group, config.ranges))
            ranges[group.value.name] = smoothed[-1].range
    outputs = _result_ranges(graph, inputs, statistics, config)
    names = {path: str(value.name) for path, (value, _, _) in inputs.items()}
    for flavour, model in graph.models.items():
        writer = _Writer(graph, flavour, forms[flavour])
        for node in list(model.graph):
            if node.name in names:
                writer.write(node, ranges[names[node.name]], outputs.get(node.name))
    return smoothed


_Input = tuple[ir.Value, TensorStatistics, WeightedNode]


def _activations(graph: EditedGraph, layers: Mapping[str, LayerSpec], statistics: Statistics) -> dict[str, _Input]:
    """What enters every INT8 layer, by node path, in the order of the portable graph."""
    found: dict[str, _Input] = {}
    for node in graph.models["portable"].graph:
        described = describe(node)
        if described is None or described.path not in layers or layers[described.path].precision != "int8":
            continue
        value = node.inputs[0]
        known = None if value is None else statistics.tensor(graph.name, str(value.name))
        if value is None or known is None:
            raise InputError(
                f"expected statistics of {graph.name}:{described.path}, found none: nothing that was said reached it; "
                "run `voxedge calibrate` on the whole bundle"
            )
        found[described.path] = (value, known, described)
    return found


def _groups(graph: EditedGraph, inputs: Mapping[str, _Input]) -> list[Group]:
    """Matrix products by what they read, where nothing else reads it as integers, and with weights of their own."""
    groups: dict[str, list[_Input]] = {}
    for given in inputs.values():
        groups.setdefault(str(given[0].name), []).append(given)
    found = [
        Group(members[0][0], [node for _, _, node in members], members[0][1])
        for members in groups.values()
        if all(node.operator == "MatMul" for _, _, node in members)
    ]
    return list(itertools.compress(found, graph.with_weights_of_their_own(group.nodes for group in found)))


def _result_ranges(
    graph: EditedGraph, inputs: Mapping[str, _Input], statistics: Statistics, config: QuantiseConfig
) -> dict[str | None, float]:
    """Ranges of what convolutions give, by node path; none for the graph's own outputs, which stay floats."""
    ranges: dict[str | None, float] = {}
    for node in graph.models["portable"].graph:
        value = node.outputs[0]
        if node.name in inputs and node.op_type == "Conv" and not value.is_graph_output():
            known = statistics.tensor(graph.name, str(value.name))
            if known is not None:
                ranges[node.name] = activation_range(Histogram.of(known), config.ranges)
    return ranges


class _Writer:
    """Rewrites the INT8 layers of one model; Q of an activation is shared, each reader has its own DQ."""

    def __init__(self, graph: EditedGraph, flavour: Flavour, form: Form) -> None:
        self._graph, self._model, self._form = graph, graph.models[flavour], form
        self._own_floats = form.style != "float" and not shares_floats(graph, flavour)
        self._type = "uint8" if form.unsigned else "int8"
        self._quantised: dict[tuple[str | None, float], ir.Value] = {}
        self._planes: dict[str | None, ir.Value] = {}

    def write(self, node: ir.Node, limit: float, result_limit: float | None) -> None:
        found = describe(node)
        activation = node.inputs[0]
        if found is None or activation is None:
            return
        last: ir.Value | None = None
        if found.operator != "MatMul" and len(found.shape) == 3:
            found, activation, last = self._add_dimension(node, found, activation)
        store_matrix(self._graph, self._model, node, found, LayerSpec("int8-weight"), self._own_floats)
        whole = self._form.style == "integer" and found.operator == "Conv"
        if self._has_integers(found, whole, result_limit):
            self._quantise_input(node, activation, limit)
            if whole and result_limit is not None:
                self._quantise_bias(node, found, limit)
                self._quantise_result(node, result_limit)
        if last is not None:
            self._drop_dimension(node, last)

    def _add_dimension(
        self, node: ir.Node, found: WeightedNode, activation: ir.Value
    ) -> tuple[WeightedNode, ir.Value, ir.Value]:
        """Make a convolution over time one over a plane of height 1.

        Returns:
            The layer with its kernel [O, I, 1, k], the activation [B, C, 1, T], and a value that stands for the old
            result [B, C, T] wherever that was read.
        """
        if activation.name not in self._planes:
            self._planes[activation.name] = new_node(
                node, "Unsqueeze", [activation, self._height()], "float32", _with_height(activation.shape)
            )
        plane = self._planes[activation.name]
        flat = dataclasses.replace(found, weight=f"{found.weight}.plane", shape=(*found.shape[:2], 1, found.shape[2]))
        self._graph.sources[flat.weight] = Flat(self._graph.sources[found.weight])
        node.replace_input_with(0, plane)
        for name, first in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 0)):
            if name in node.attributes:
                node.attributes[name] = ir.AttrInt64s(name, [first, *node.attributes[name].as_ints()])
        if "pads" in node.attributes:
            before, behind = node.attributes["pads"].as_ints()
            node.attributes["pads"] = ir.AttrInt64s("pads", [0, before, 0, behind])
        result = node.outputs[0]
        line = ir.Value(name=result.name, shape=result.shape, type=result.type)
        ir.convenience.replace_all_uses_with(result, line, replace_graph_outputs=True)
        result.name, result.shape = f"{result.name}.plane", _with_height(result.shape)
        return flat, plane, line

    def _drop_dimension(self, node: ir.Node, line: ir.Value) -> None:
        """Give the result [B, C, T] from the plane [B, C, 1, T], behind its Q and DQ where it has them."""
        result = node.outputs[0]
        while result.uses():
            node = next(iter(result.uses())).node
            result = node.outputs[0]
        squeezed = new_node(node, "Squeeze", [result, self._height()], "float32", line.shape, after=True)
        name = line.name
        ir.convenience.replace_all_uses_with(line, squeezed, replace_graph_outputs=True)
        line.name, squeezed.name = None, name

    def _height(self) -> ir.Value:
        """The axis of length 1."""
        return add_constant(self._model, "height", np.array([2]))

    def _quantise_input(self, node: ir.Node, activation: ir.Value, limit: float) -> None:
        scale, zero = self._constants(limit)
        key = (activation.name, limit)
        if key not in self._quantised:
            self._quantised[key] = new_node(
                node, "QuantizeLinear", [activation, scale, zero], self._type, activation.shape
            )
        floats = new_node(node, "DequantizeLinear", [self._quantised[key], scale, zero], "float32", activation.shape)
        node.replace_input_with(0, floats)

    def _has_integers(self, found: WeightedNode, whole: bool, result_limit: float | None) -> bool:
        """Whether the runtime has an integer kernel for a layer; Q and DQ would only cost time where it has none."""
        if self._form.style == "plain":
            return True
        if self._form.style == "float" or found.operator == "ConvTranspose":
            return False
        return not whole or result_limit is not None  # the last Conv gives the graph's own output, as floats

    def _constants(self, limit: float) -> tuple[ir.Value, ir.Value]:
        """Scale and zero-point."""
        step = np.float32(limit / LEVELS)
        zero = np.array(128, np.uint8) if self._form.unsigned else np.array(0, np.int8)
        scale = add_constant(self._model, f"step.{float(step):.9g}", np.array(step))
        return scale, add_constant(self._model, f"zero.{self._type}", zero)

    def _quantise_bias(self, node: ir.Node, found: WeightedNode, limit: float) -> None:
        """As INT32 at the scale of the products, which is what an integer convolution adds."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None or bias.name is None:
            return
        scales = self._graph.sources[f"{found.weight}.int8.scale"]  # of the weight just written
        steps = materialise(scales).astype(np.float32) * np.float32(limit / LEVELS)
        rounded = np.rint(materialise(self._graph.sources[bias.name]).astype(np.float64) / steps)
        whole = np.clip(rounded, -(2**31) + 1, 2**31 - 1).astype(np.int32)
        for name, array in ((f"{found.weight}.bias", whole), (f"{found.weight}.bias.scale", steps)):
            self._graph.sources[name] = InMemory(name, array)
        integers = add_initialiser(self._model, f"{found.weight}.bias", "int32", whole.shape)
        scale = add_initialiser(self._model, f"{found.weight}.bias.scale", "float32", steps.shape)
        floats = new_node(node, "DequantizeLinear", [integers, scale], "float32", ir.Shape(whole.shape), {"axis": 0})
        node.replace_input_with(2, floats)

    def _quantise_result(self, node: ir.Node, limit: float) -> None:
        """Q and DQ behind a layer whose result nothing reads yet."""
        value = node.outputs[0]
        scale, zero = self._constants(limit)
        integers = new_node(node, "QuantizeLinear", [value, scale, zero], self._type, value.shape, after=True)
        place = integers.producer() or node
        new_node(place, "DequantizeLinear", [integers, scale, zero], "float32", value.shape, after=True)


def _with_height(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*list(shape)[:2], 1, *list(shape)[2:]])

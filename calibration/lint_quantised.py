"""Rules for rounded weights: read by DequantizeLinear alone, and in the form that the manifest gives each layer.

In: a `GraphView`. Out: findings of the rule `quantised`. Blocks of weights that share a scale, and INT4, need opset 21,
which TensorRT reads from 10.6 on; a graph without them must stay readable for 10.1. Does not look at values.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from voxedge.calibration.lint_graph import Finding, GraphView
from voxedge.engines.manifest import GraphSpec, LayerSpec

BLOCKED_OPSET = 21
"""Opset of a graph whose weights have scales by blocks, or four bits."""

_BITS: dict[int, int] = {onnx.TensorProto.INT8: 8, onnx.TensorProto.INT4: 4, onnx.TensorProto.INT32: 32}
_PLAIN: dict[int, LayerSpec] = {
    onnx.TensorProto.FLOAT: LayerSpec("fp32"),
    onnx.TensorProto.FLOAT16: LayerSpec("fp16"),
}
_WEIGHT_INPUT = {"MatMul": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}


def newest_opset(spec: GraphSpec, newest: int) -> int:
    """The newest opset that a graph may have: that of the list, or what its layers need."""
    blocked = any(layer.block is not None or layer.precision == "int4-weight" for layer in spec.layers.values())
    return max(newest, BLOCKED_OPSET) if blocked else newest


def check_quantised(view: GraphView) -> Iterator[Finding]:
    """Findings on integer constants that no compiler takes, and on layers that are not what the manifest says."""
    yield from _check_constants(view)
    nodes = {node.name: node for node in view.model.graph.node}
    makers = {name: node for node in view.model.graph.node for name in node.output}
    for path, layer in view.spec.layers.items():
        if path not in nodes:
            yield Finding("quantised", path, "expected this layer of the manifest, the graph has no such node")
            continue
        found = _form(view, nodes[path], makers)
        if found != layer:
            yield Finding(
                "quantised", path, f"expected {_describe(layer)} as in the manifest, found {_describe(found)}"
            )


def _check_constants(view: GraphView) -> Iterator[Finding]:
    """TensorRT: "Quantized constant is only allowed before DQ"."""
    small = {name for name, tensor in view.initializers.items() if _BITS.get(tensor.data_type, 32) < 32}
    for node in view.model.graph.node:
        for name in {*node.input} & small:
            zero_point = node.op_type == "QuantizeLinear" and [*node.input].index(name) == 2
            if node.op_type != "DequantizeLinear" and not zero_point:
                yield Finding(
                    "quantised",
                    node.name,
                    f"expected DequantizeLinear to read the integers {name!r}, found {node.op_type}",
                )


def _form(view: GraphView, node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> LayerSpec | None:
    """How a node's weight is really stored; None for a form that has no name."""
    name = node.input[_WEIGHT_INPUT[node.op_type]] if node.op_type in _WEIGHT_INPUT else ""
    maker = makers.get(name)
    stored = name if maker is None else maker.input[0]
    if stored not in view.initializers:
        return None
    kind = view.initializers[stored].data_type
    if maker is None or maker.op_type == "Cast":
        return LayerSpec("int8-weight") if node.op_type == "Gather" and _BITS.get(kind) == 32 else _PLAIN.get(kind)
    if maker.op_type != "DequantizeLinear" or _BITS.get(kind) not in (4, 8):
        return None
    block = next((item.i for item in maker.attribute if item.name == "block_size"), 0) or None
    if _BITS[kind] == 4:
        return LayerSpec("int4-weight", block)
    given = makers.get(node.input[0])
    return LayerSpec("int8" if given is not None and given.op_type == "DequantizeLinear" else "int8-weight", block)


def _describe(layer: LayerSpec | None) -> str:
    if layer is None:
        return "a weight in another form"
    return layer.precision + (f" in blocks of {layer.block}" if layer.block else "")

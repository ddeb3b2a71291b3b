"""Store weights as integers that the graph itself makes floats again: INT8 and INT4 weight-only, and FP16.

In: an `EditedGraph` and the layers' precisions. Out: standard `DequantizeLinear` before every matrix product and
convolution, which ONNX Runtime fuses into its own kernels and TensorRT reads as it is. Activations keep their type.
Tables of embeddings have their own form, see `quantise.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from voxedge.calibration.quantise.config import BLOCK_SIZES, DEFAULT_INT4_BLOCK, QuantiseConfig
from voxedge.calibration.quantise.graph import (
    FLOAT_TYPES,
    EditedGraph,
    add_initialiser,
    describe,
    new_node,
    require_opset,
    weight_input,
)
from voxedge.calibration.quantise.plan import LayerPrecision, WeightedNode
from voxedge.calibration.quantise.rounding import Grid, Rounded, Scales
from voxedge.calibration.quantise.tables import fits_table, store_table
from voxedge.engines.lazy import InMemory
from voxedge.engines.manifest import Flavour, LayerSpec

BLOCKED_OPSET = 21
"""Oldest opset whose DequantizeLinear knows blocks and INT4."""


def layer_spec(node: WeightedNode, precision: LayerPrecision, config: QuantiseConfig) -> LayerSpec:
    """The form that a layer really gets: blocks must divide its input channels.

    A matrix of 48 input channels gets blocks of 16 where 64 were wanted; one that no block divides, or whose rows have
    an odd length and so no whole bytes at 4 bits, gets 8 bits and a scale for each output channel. A table whose rows
    are no multiple of four gets FP16.
    """
    if node.operator == "Gather" and precision == "int8-weight" and not fits_table(node):
        return LayerSpec("fp16")
    if node.operator != "MatMul" or precision not in ("int8-weight", "int4-weight"):
        return LayerSpec(precision)
    wanted = config.block_size or (DEFAULT_INT4_BLOCK if precision == "int4-weight" else None)
    if wanted is None:
        return LayerSpec(precision)
    inputs, outputs = node.shape
    block = max((size for size in BLOCK_SIZES if size <= wanted and inputs % size == 0), default=None)
    if precision == "int4-weight" and (block is None or outputs % 2):
        return LayerSpec("int8-weight", block)
    return LayerSpec(precision, block)


def store_weights(graph: EditedGraph, layers: Mapping[str, LayerSpec]) -> None:
    """Rewrite all weight-only layers of all flavours, in place."""
    beside_int8 = any(spec.precision == "int8" for spec in layers.values())
    for flavour, model in graph.models.items():
        own = beside_int8 and not shares_floats(graph, flavour)
        for node in list(model.graph):
            found = describe(node)
            if found is None or found.path not in layers:
                continue
            spec = layers[found.path]
            if spec.precision in ("int8-weight", "int4-weight"):
                if found.operator == "Gather":
                    store_table(graph, model, node, found)
                else:
                    store_matrix(graph, model, node, found, spec, own)
            elif spec.precision == "fp16" and found.stored == "fp32":
                _store_half(graph, model, node, found)
    graph.drop_unused()


def grid_of(node: WeightedNode, spec: LayerSpec) -> Grid:
    """Which weights of a layer share a scale."""
    bits = 4 if spec.precision == "int4-weight" else 8
    if spec.block is not None:
        return Grid(axis=0, block=spec.block, bits=bits)
    return Grid(axis=0 if node.operator == "Conv" else 1, block=None, bits=bits)


def rounded_weight(graph: EditedGraph, model: ir.Model, node: WeightedNode, grid: Grid) -> tuple[ir.Value, ir.Value]:
    """Initialisers of a weight's integers and scales; both flavours, and all nodes that read the weight, share them."""
    suffix = f"int{grid.bits}" + (f".block{grid.block}" if grid.block else "")
    name, scales_name = f"{node.weight}.{suffix}", f"{node.weight}.{suffix}.scale"
    scales = graph.sources.get(scales_name)
    if not isinstance(scales, Scales):
        scales = Scales(graph.sources[node.weight], grid, FLOAT_TYPES[node.stored])
        graph.sources[scales_name], graph.sources[name] = scales, Rounded(scales)
    scale = add_initialiser(model, scales_name, scales.dtype, scales.shape)
    return add_initialiser(model, name, f"int{grid.bits}", node.shape), scale


def shares_floats(graph: EditedGraph, flavour: Flavour) -> bool:
    """Whether nodes that read one weight read one DequantizeLinear, even where they compute with INT8.

    TensorRT fuses a DequantizeLinear into the product behind it, so its graphs have one for each. ONNX Runtime takes
    shared ones apart where it computes integers; where it may not (`engines.ort.graph_options`), floats that are shared
    are made once.
    """
    return flavour == "ort" and graph.weight_uses > 1


def store_matrix(
    graph: EditedGraph, model: ir.Model, node: ir.Node, found: WeightedNode, spec: LayerSpec, own: bool
) -> None:
    """Let one node of one model read its weight as integers through a DequantizeLinear, its own or a shared one.

    Zero-points, all 0, are written out where each node has its own, which is beside layers that compute with INT8:
    where ONNX Runtime has to make those layers U8 by U8 (`engines.ort.graph_options`) it shifts all INT8 weights of the
    graph. Where there is no zero-point it makes a scalar one, and where nodes share one it shifts that twice; it then
    refuses both. In other graphs nodes that read one weight share its floats: as no kernel of ONNX Runtime's reads
    shared integers, they are made once, at load, and not by every node in every call.
    """
    grid = grid_of(found, spec)
    integers, scale = rounded_weight(graph, model, found, grid)
    known = [use.node for use in integers.uses() if use.node.inputs[1] is scale]
    if known and not own:
        node.replace_input_with(weight_input(node), known[0].outputs[0])
        return
    attributes = {"axis": grid.axis}
    if grid.block is not None:
        attributes["block_size"] = grid.block
    if grid.block is not None or grid.bits == 4:
        require_opset(model, BLOCKED_OPSET)
    operands = [integers, scale]
    if own and grid.bits == 8:
        zeros = np.zeros(graph.sources[str(scale.name)].shape, np.int8)
        name = f"{node.name}.zeros"
        graph.sources[name] = InMemory(name, zeros)
        operands.append(add_initialiser(model, name, "int8", zeros.shape))
    floats = new_node(node, "DequantizeLinear", operands, FLOAT_TYPES[found.stored], ir.Shape(found.shape), attributes)
    node.replace_input_with(weight_input(node), floats)


def _store_half(graph: EditedGraph, model: ir.Model, node: ir.Node, found: WeightedNode) -> None:
    """Half the bytes; the values are made FP32 again before they are used."""
    name = f"{found.weight}.fp16"
    graph.sources[name] = graph.sources[found.weight]
    half = add_initialiser(model, name, "float16", found.shape)
    cast = new_node(node, "Cast", [half], "float32", ir.Shape(found.shape), {"to": int(ir.DataType.FLOAT)})
    node.replace_input_with(weight_input(node), cast)

"""Checks that one graph runs everywhere: what TensorRT 10.1 parses, and voxedge's own rules for graphs.

In: an .onnx file and its `GraphSpec`. Out: findings, none for a portable graph. The rules, by name:

* `domain`, `operator`, `types`, `limits`: only ONNX's own operators, of an opset, with types and within limits that
  TensorRT 10.1's parser lists (JetPack 6.1 has TensorRT 10.3).
* `precision`: in a half-precision graph, sums and functions that overflow or cancel are computed in FP32.
* `random`: noise is an input; TensorRT ignores seeds. `data-dependent`: no shape depends on values, no control flow.
* `dims`, `interface`, `int64`: inputs and outputs are the manifest's, with its symbolic dimensions, ids in INT32.
* `names`: node names are readable and unique paths, such as `/layers.3/attn/qkv_proj/MatMul`.
* `external-data`, `duplicates`: see `calibration.lint_weights`. `quantised`: see `calibration.lint_quantised`.

Never loads the weights, and changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx

from voxedge.calibration.lint_graph import Finding, GraphView, Rule, view_graph
from voxedge.calibration.lint_operators import check_operators, operator_list
from voxedge.calibration.lint_quantised import check_quantised, newest_opset
from voxedge.calibration.lint_weights import check_weights
from voxedge.engines.errors import ExportError
from voxedge.engines.manifest import GraphSpec, TensorSpec

__all__ = ["Finding", "Rule", "lint", "require_portable"]

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_DATA_DEPENDENT = frozenset(
    {"Compress", "DFT", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "SequenceMap", "STFT", "Unique"}
)
_COMPLEX = frozenset({onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})
# Norm statistics, softmax, logarithms, powers and angles: what overflows at 65504 or loses its small terms in FP16.
_FP32_ONLY = frozenset(
    {
        "Cos",
        "Exp",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceSumSquare",
        "Sin",
        "Softmax",
    }
)
_DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
    "int8": onnx.TensorProto.INT8,
    "uint8": onnx.TensorProto.UINT8,
    "bool": onnx.TensorProto.BOOL,
}


def lint(model_path: Path, spec: GraphSpec) -> list[Finding]:
    """Check one portable graph.

    Args:
        model_path: The .onnx file; its weights lie beside it.
        spec: What the manifest says, or will say, about it.

    Returns:
        Findings in the order of the rules; empty for a portable graph.

    Raises:
        ExportError: The file is no ONNX graph.

    Example:
        >>> lint(Path("graphs/decoder.onnx"), spec)  # doctest: +SKIP
        [Finding(rule='names', node='node_17', message='expected a path such as ...')]
    """
    view = view_graph(model_path, spec)
    return [
        *_check_domain(view),
        *_check_forbidden(view),
        *check_operators(view),
        *_check_precision(view),
        *_check_interface(view),
        *_check_names(view),
        *check_weights(view),
        *check_quantised(view),
    ]


def require_portable(model_path: Path, spec: GraphSpec) -> None:
    """Refuse to let a graph out that breaks a rule; arguments as for `lint`.

    Raises:
        ExportError: There are findings, or the file is no ONNX graph.
    """
    findings = lint(model_path, spec)
    if findings:
        lines = "; ".join(f"{finding.rule} at {finding.node}: {finding.message}" for finding in findings[:5])
        raise ExportError(f"graph {spec.name}: expected only what TensorRT 10.1 parses, found {len(findings)}: {lines}")


def _check_domain(view: GraphView) -> Iterator[Finding]:
    oldest, newest = operator_list()["opset"]
    newest = newest_opset(view.spec, newest)
    if not oldest <= view.opset <= newest:
        yield Finding("domain", "", f"expected an opset from {oldest} to {newest}, found {view.opset}")
    if view.opset != view.spec.opset:
        yield Finding("domain", "", f"expected opset {view.spec.opset} as in the manifest, found {view.opset}")
    for node in view.model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield Finding("domain", node.name, f"expected ONNX's own operators, found {node.domain}::{node.op_type}")
    for function in view.model.functions:
        yield Finding("domain", function.name, "expected a flat graph, found a function; inline it")


def _check_forbidden(view: GraphView) -> Iterator[Finding]:
    for node in view.model.graph.node:
        if node.op_type in _RANDOM:
            yield Finding("random", node.name, f"expected noise as an input, found {node.op_type}")
        if node.op_type in _DATA_DEPENDENT:
            yield Finding("data-dependent", node.name, f"expected shapes known before the run, found {node.op_type}")
    for name, kind in view.types.items():
        if kind in _COMPLEX:
            yield Finding("data-dependent", name, "expected real tensors, found complex ones; keep two real parts")


def _check_precision(view: GraphView) -> Iterator[Finding]:
    for node in view.model.graph.node:
        kind = view.types.get(node.input[0]) if node.input else None
        if node.op_type in _FP32_ONLY and kind == onnx.TensorProto.FLOAT16:
            yield Finding("precision", node.name, f"expected {node.op_type} in FP32, found FP16; cast around it")


def _check_interface(view: GraphView) -> Iterator[Finding]:
    graph, spec = view.model.graph, view.spec
    initializers = set(view.initializers)
    inputs = [value for value in graph.input if value.name not in initializers]
    yield from _check_side("inputs", spec.inputs, inputs)
    yield from _check_side("outputs", spec.outputs, list(graph.output))
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.dtype == "int64":
            yield Finding("int64", tensor.name, "expected INT32 at the boundary of a graph, found INT64; cast inside")


def _check_side(side: str, expected: tuple[TensorSpec, ...], found: list[onnx.ValueInfoProto]) -> Iterator[Finding]:
    names = [value.name for value in found]
    wanted = [tensor.name for tensor in expected]
    if names != wanted:
        yield Finding("interface", "", f"expected the {side} {wanted} in this order, found {names}")
    values = {value.name: value.type.tensor_type for value in found}
    for tensor in expected:
        if tensor.name not in values:
            continue
        kind = values[tensor.name]
        if kind.elem_type != _DTYPES[tensor.dtype]:
            name = onnx.TensorProto.DataType.Name(kind.elem_type)
            yield Finding("interface", tensor.name, f"expected the type {tensor.dtype}, found {name}")
        shape = _shape(kind)
        if shape != tensor.shape:
            symbols = {size for size in shape if not isinstance(size, int)} - set(tensor.shape)
            rule: Rule = "dims" if symbols and len(shape) == len(tensor.shape) else "interface"
            yield Finding(rule, tensor.name, f"expected the shape {list(tensor.shape)}, found {list(shape)}")


def _shape(kind: onnx.TypeProto.Tensor) -> tuple[int | str, ...]:
    """Sizes, names of symbolic dimensions, and `?` for a dimension of which nothing is known."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim)


def _check_names(view: GraphView) -> Iterator[Finding]:
    counts = Counter(node.name for node in view.model.graph.node)
    for node in view.model.graph.node:
        pattern = rf"(/[A-Za-z0-9_.\-]+)*/{re.escape(node.op_type)}(_\d+)?"
        if not re.fullmatch(pattern, node.name):
            yield Finding(
                "names", node.name, f"expected a path such as /layers.3/attn/{node.op_type}, found {node.name!r}"
            )
        elif counts[node.name] > 1:
            yield Finding("names", node.name, f"expected unique names, found this one {counts[node.name]} times")

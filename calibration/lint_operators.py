"""What TensorRT 10.1's ONNX parser takes: operators, their types and their limits.

In: a `GraphView`. Out: findings. The list is that of onnx-tensorrt 10.1-GA (docs/operators.md), kept as data; types are
checked as far as ONNX's inference knows them, limits by one small function for each sentence of the list.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np
import onnx

from voxedge.calibration.lint_graph import Finding, GraphView

Limit = Callable[[GraphView, onnx.NodeProto], bool]
"""Whether a node keeps within the operator's limits."""

_TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
}
# The list has a misprint: ConstantOfShape takes "INF64".
_MISPRINTS = {"INF64": "INT64"}
_FIRST_INPUT_ONLY = frozenset({"DequantizeLinear", "QuantizeLinear"})
_EVERY_TENSOR = frozenset({"Cast"})


@functools.cache
def operator_list() -> dict[str, Any]:
    """The decoded list: `opset` (oldest, newest) and `operators` by name with `supported`, `types` and `limits`."""
    file = resources.files("voxedge.calibration") / "data/tensorrt_10.1_operators.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def check_operators(view: GraphView) -> Iterator[Finding]:
    """Findings on operators that the parser does not take, or takes with other types or within limits only."""
    operators = operator_list()["operators"]
    for node in view.model.graph.node:
        entry = operators.get(node.op_type)
        if entry is None or not entry["supported"]:
            yield Finding("operator", node.name, f"TensorRT 10.1 does not take the operator {node.op_type}")
            continue
        yield from _check_types(view, node, {_MISPRINTS.get(name, name) for name in entry["types"]})
        if entry["limits"] and not _LIMITS.get(node.op_type, _never)(view, node):
            yield Finding("limits", node.name, f"TensorRT 10.1 takes {node.op_type} with a limit: {entry['limits']}")


def _check_types(view: GraphView, node: onnx.NodeProto, allowed: set[str]) -> Iterator[Finding]:
    for name in _typed_tensors(view, node):
        kind = view.types.get(name)
        if kind is None:
            continue
        found = _TYPE_NAMES.get(kind, onnx.TensorProto.DataType.Name(kind))
        if found not in allowed:
            yield Finding(
                "types", node.name, f"{node.op_type} takes {', '.join(sorted(allowed))}; {name!r} has the type {found}"
            )


def _typed_tensors(view: GraphView, node: onnx.NodeProto) -> list[str]:
    """Tensors that the list's types speak of: those of the type that outputs share with inputs, else the inputs'."""
    if node.op_type in _EVERY_TENSOR:
        return [*node.input, *node.output]
    if node.op_type in _FIRST_INPUT_ONLY or not onnx.defs.has(node.op_type, view.opset, ""):
        return list(node.input[:1])
    schema = onnx.defs.get_schema(node.op_type, view.opset, "")
    inputs, outputs = _formal(schema.inputs, node.input), _formal(schema.outputs, node.output)
    shared = {kind for _, kind in inputs} & {kind for _, kind in outputs[:1]}
    wanted = shared or {kind for _, kind in inputs[:1] or outputs[:1]}
    return [name for name, kind in (*inputs, *outputs) if kind in wanted and name]


def _formal(parameters: Any, names: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - onnx has no types for its schemas
    """Actual names with the type variables of their formal parameters; the last formal one may be repeated."""
    return [(name, parameters[min(i, len(parameters) - 1)].type_str) for i, name in enumerate(names) if parameters]


def _never(_view: GraphView, _node: onnx.NodeProto) -> bool:
    return False


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:  # noqa: ANN401
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    return default


def _constant_input(index: int) -> Limit:
    """The input `index` must be known when the engine is built, or absent."""

    def check(view: GraphView, node: onnx.NodeProto) -> bool:
        return len(node.input) <= index or not node.input[index] or node.input[index] in view.constants

    return check


def _outputs(count: int) -> Limit:
    def check(_view: GraphView, node: onnx.NodeProto) -> bool:
        return not any(node.output[count:])

    return check


def _attributes(**allowed: tuple[object, ...]) -> Limit:
    """Every named attribute has one of the values, the first of which is its default."""

    def check(_view: GraphView, node: onnx.NodeProto) -> bool:
        return all(_attribute(node, name, values[0]) in values for name, values in allowed.items())

    return check


def _all(*limits: Limit) -> Limit:
    def check(view: GraphView, node: onnx.NodeProto) -> bool:
        return all(limit(view, node) for limit in limits)

    return check


def _zero_point(view: GraphView, node: onnx.NodeProto) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return True
    value = view.constant(node.input[2])
    return value is not None and not np.any(value.astype(np.float64))


def _undilated(_view: GraphView, node: onnx.NodeProto) -> bool:
    return all(step == 1 for step in _attribute(node, "dilations", ()))


def _top_k(view: GraphView, node: onnx.NodeProto) -> bool:
    count = view.constant(node.input[1])
    return _attribute(node, "sorted", 1) == 1 and count is not None and int(count.reshape(-1)[0]) < 3840


def _no_text(_view: GraphView, node: onnx.NodeProto) -> bool:
    return not any(item.name in ("sparse_value", "value_string", "value_strings") for item in node.attribute)


_RESIZE = _attributes(
    coordinate_transformation_mode=(
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    ),
    mode=("nearest", "linear"),
    nearest_mode=("round_prefer_floor", "floor", "ceil", "round_prefer_ceil"),
    keep_aspect_ratio_policy=("stretch",),
    antialias=(0,),
    axes=(None,),
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

# An operator that has limits in the list and no entry here is always reported: nobody has checked that it is safe.
_LIMITS: dict[str, Limit] = {
    **{f"Reduce{name}": _constant_input(1) for name in _REDUCTIONS},
    "AveragePool": _undilated,
    "Constant": _no_text,
    "CumSum": _constant_input(1),
    "DequantizeLinear": _zero_point,
    "LayerNormalization": _outputs(1),
    "LpPool": _undilated,
    "LSTM": _attributes(input_forget=(0,), layout=(0,), direction=("forward", "reverse")),
    "MaxPool": _all(_undilated, _outputs(1)),
    "OneHot": _constant_input(1),
    "Pad": _constant_input(3),
    "QuantizeLinear": _zero_point,
    "Resize": _RESIZE,
    "ScatterND": _attributes(reduction=("none",)),
    "Slice": _constant_input(3),
    "Squeeze": _constant_input(1),
    "TopK": _top_k,
    "Unsqueeze": _constant_input(1),
}

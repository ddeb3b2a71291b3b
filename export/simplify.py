"""Take out of a traced graph what the tracer put in and no runtime needs.

In: a graph whose parameters have no values. Out: the same graph with constants folded, common nodes merged, and shapes
written as constants wherever a copied or inferred axis will do. Does not change what is computed.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import optimize_ir


def simplify(model: ir.Model) -> None:
    """Simplify in place; parameters keep their names."""
    optimize_ir(model, num_iterations=2, onnx_shape_inference=False)
    _undone_reshapes(model)
    _constant_reshapes(model)
    for run in (
        passes.CommonSubexpressionEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        run(model)


def _undone_reshapes(model: ir.Model) -> None:
    """Read what was reshaped and reshaped back as it was before."""
    for node in model.graph:
        between = node.inputs[0] if node.op_type == "Reshape" else None
        before = between.producer() if between is not None else None
        if before is None or before.op_type != "Reshape" or before.inputs[0] is None:
            continue
        source, result = before.inputs[0], node.outputs[0]
        if source.shape is not None and source.shape == result.shape and not result.is_graph_output():
            ir.convenience.replace_all_uses_with(result, source)


def _constant_reshapes(model: ir.Model) -> None:
    """Write shapes as constants (0 copies an axis, -1 is inferred) instead of assembling them at run time."""
    for node in model.graph:
        target = _constant_target(node) if node.op_type == "Reshape" else None
        if target is None:
            continue
        constant = ir.node("Constant", [], {"value": ir.tensor(target, dtype=ir.DataType.INT64)})
        model.graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes.pop("allowzero", None)


def _constant_target(node: ir.Node) -> list[int] | None:
    source, result = node.inputs[0], node.outputs[0]
    shape = node.inputs[1]
    if source is None or source.shape is None or result.shape is None or shape is None or shape.const_value is not None:
        return None
    before = [str(dim) for dim in source.shape]
    target: list[int] = []
    for axis, dim in enumerate(result.shape):
        if isinstance(dim, int):
            target.append(dim)
        else:
            target.append(0 if axis < len(before) and before[axis] == str(dim) else -1)
    return target if target.count(-1) <= 1 else None

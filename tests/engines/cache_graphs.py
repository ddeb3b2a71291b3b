"""A small graph with a cache that grows, as the portable language models have it, in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from toy_graphs import WIDTH

from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.manifest import DimRange, GraphSpec, ManifestDraft, TensorSpec

LONGEST = 64
PROFILES = {
    "prefill": {"past": DimRange(0, 0, LONGEST), "new": DimRange(1, 8, 32)},
    "decode": {"past": DimRange(1, 32, LONGEST), "new": DimRange(1, 1, 1)},
}


def cache_spec(width: int = WIDTH, opset: int = 17, name: str = "grow") -> GraphSpec:
    """`new` = `x` times a matrix, and `total` = the sum of all rows of `past` and `new`."""
    return GraphSpec(
        name=name,
        flavour="portable",
        path=f"graphs/{name}.onnx",
        data=f"graphs/{name}.data",
        precision="fp32",
        opset=opset,
        inputs=(TensorSpec("x", "float32", ("new", width)), TensorSpec("past", "float32", ("past", width))),
        outputs=(TensorSpec("total", "float32", (1, width)), TensorSpec("new", "float32", ("new", width))),
        profiles=PROFILES,
    )


def weight(width: int) -> np.ndarray:
    """The matrix of the graph: twice the identity, so that sums of small numbers are exact."""
    return 2 * np.eye(width, dtype=np.float32)


def cache_model(spec: GraphSpec) -> onnx.ModelProto:
    """The graph of `cache_spec`."""
    width = int(spec.inputs[0].shape[1])
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["new"], "/project/MatMul"),
        helper.make_node("Concat", ["past", "new"], ["all"], "/cache/Concat", axis=0),
        helper.make_node("ReduceSum", ["all", "axes"], ["total"], "/sum/ReduceSum", keepdims=1),
    ]
    ends = [
        [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape)) for tensor in side]
        for side in (spec.inputs, spec.outputs)
    ]
    held = [numpy_helper.from_array(weight(width), "weight"), numpy_helper.from_array(np.array([0]), "axes")]
    graph = helper.make_graph(nodes, spec.name, *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", spec.opset)], ir_version=10)


def write_cache_bundle(target: Path, *specs: GraphSpec) -> Bundle:
    """A bundle of such graphs."""
    with BundleWriter(target) as writer:
        for spec in specs:
            path = writer.path(spec.path)
            onnx.save(
                cache_model(spec), path, save_as_external_data=True, location=f"{spec.name}.data", size_threshold=64
            )
        return writer.commit(ManifestDraft("toy", {}, specs))

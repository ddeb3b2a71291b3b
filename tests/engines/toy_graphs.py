"""Small ONNX graphs in bundles, for the tests of builders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.manifest import DimRange, GraphSpec, ManifestDraft, TensorSpec

WIDTH = 64
NAMES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
PROFILES = {
    "decode": {"rows": DimRange(1, 1, 1)},
    "prefill": {"rows": DimRange(1, 16, 64)},
}


def attention_nodes(layers: int = 2) -> list[onnx.NodeProto]:
    """`layers` times MatMul and Softmax from `x` to `y`."""
    nodes, name = [], "x"
    for index in range(layers):
        last = "y" if index == layers - 1 else f"soft.{index}"
        nodes.append(helper.make_node("MatMul", [name, f"weight.{index}"], [f"mul.{index}"], f"/layers.{index}/MatMul"))
        nodes.append(helper.make_node("Softmax", [f"mul.{index}"], [last], f"/layers.{index}/Softmax", axis=-1))
        name = last
    return nodes


def model(nodes: Sequence[onnx.NodeProto], dtype: int = TensorProto.FLOAT, seed: int = 0) -> onnx.ModelProto:
    """A graph from `x` [rows, WIDTH] to `y` of the same shape; every `weight.N` in it is a random square matrix."""
    random = np.random.default_rng(seed)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    names = sorted({name for node in nodes for name in node.input if name.startswith("weight.")})
    weights = [numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(kind), name) for name in names]
    ends = [helper.make_tensor_value_info(name, dtype, ["rows", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(list(nodes), "toy", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def spec(name: str = "toy", dtype: int = TensorProto.FLOAT) -> GraphSpec:
    """The manifest's record of a graph of `model`."""
    return GraphSpec(
        name=name,
        flavour="portable",
        path=f"graphs/{name}.onnx",
        data=f"graphs/{name}.data",
        precision="fp32" if dtype == TensorProto.FLOAT else "fp16",
        opset=17,
        inputs=(TensorSpec("x", NAMES[dtype], ("rows", WIDTH)),),  # type: ignore[arg-type]
        outputs=(TensorSpec("y", NAMES[dtype], ("rows", WIDTH)),),  # type: ignore[arg-type]
        profiles=PROFILES,
    )


def write(target: Path, graphs: dict[str, onnx.ModelProto], overwrite: bool = False) -> Bundle:
    """A bundle of these graphs, with external weights."""
    specs = []
    with BundleWriter(target, overwrite=overwrite) as writer:
        for name, proto in graphs.items():
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)
            path = writer.path(f"graphs/{name}.onnx")
            onnx.save(copy, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
            specs.append(spec(name, proto.graph.input[0].type.tensor_type.elem_type))
            writer.path(f"graphs/{name}.data").touch()
        return writer.commit(ManifestDraft("toy", {}, tuple(specs)))

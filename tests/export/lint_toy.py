"""A small portable graph that tests break in one place each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from voxedge.calibration.lint import lint
from voxedge.engines.manifest import DimRange, GraphSpec, TensorSpec

SPEC = GraphSpec(
    name="toy",
    flavour="portable",
    path="graphs/toy.onnx",
    data="graphs/toy.data",
    precision="fp32",
    opset=20,
    inputs=(TensorSpec("x", "float32", ("rows", 32)), TensorSpec("ids", "int32", ("rows",))),
    outputs=(TensorSpec("y", "float32", ("rows", 32)),),
    profiles={"main": {"rows": DimRange(1, 2, 8)}},
)
Weights = dict[str, npt.NDArray[np.generic]]


class Toy:
    """A graph under construction: nodes from `x` to `y`, weights, and where in the data file they go."""

    def __init__(self) -> None:
        self.nodes = [
            node("MatMul", ["x", "weight"], ["/in/MatMul:0"], "/in"),
            node("Gather", ["table", "ids"], ["/embed/Gather:0"], "/embed"),
            node("Add", ["/in/MatMul:0", "/embed/Gather:0"], ["sum"], ""),
        ]
        random = np.random.default_rng(0)
        self.weights: Weights = {
            "weight": random.standard_normal((32, 32)).astype(np.float32),
            "table": random.standard_normal((100, 32)).astype(np.float32),
        }
        self.last: list[onnx.NodeProto] = [node("Softmax", ["sum"], ["y"], "/out", axis=-1)]
        self.offsets: dict[str, int] = {}
        self.inline: set[str] = set()
        self.location = "toy.data"
        self.opset = 20
        self.spec = SPEC
        self.edit: Callable[[onnx.ModelProto], object] = lambda _: None

    def end(self, *nodes: onnx.NodeProto) -> None:
        """Replace what comes after `sum`."""
        self.last = list(nodes)

    def save(self, folder: Path) -> Path:
        """Write the graph and its weights; returns the .onnx file."""
        values = {"x": (TensorProto.FLOAT, ["rows", 32]), "ids": (TensorProto.INT32, ["rows"])}
        inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in values.items()]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 32])]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph([*self.nodes, *self.last], "toy", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        self._move_weights(model, folder)
        self.edit(model)
        (folder / "toy.onnx").write_bytes(model.SerializeToString())
        return folder / "toy.onnx"

    def _move_weights(self, model: onnx.ModelProto, folder: Path) -> None:
        data = bytearray()
        for tensor in model.graph.initializer:
            raw = self.weights[tensor.name].tobytes()
            if len(raw) <= 1024 or tensor.name in self.inline:
                continue
            offset = self.offsets.get(tensor.name, -(-len(data) // 4096) * 4096)
            data.extend(bytes(max(0, offset + len(raw) - len(data))))
            data[offset : offset + len(raw)] = raw
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": self.location, "offset": offset, "length": len(raw)}.items():
                tensor.external_data.add(key=key, value=str(value))
        (folder / "toy.data").write_bytes(data)

    def rules(self, folder: Path) -> set[str]:
        """Rules that the lint finds broken."""
        return {finding.rule for finding in lint(self.save(folder), self.spec)}


def node(kind: str, inputs: list[str], outputs: list[str], path: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, f"{path}/{kind}", **attributes)

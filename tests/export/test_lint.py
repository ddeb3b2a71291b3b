"""One graph that keeps every rule, and for every rule a graph that breaks it alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from lint_toy import SPEC, Toy, node
from onnx import TensorProto, helper, numpy_helper

from voxedge.calibration.lint import Finding, lint
from voxedge.calibration.lint_operators import _LIMITS, operator_list
from voxedge.engines.errors import ExportError
from voxedge.engines.manifest import LayerSpec, TensorSpec


@pytest.fixture
def toy() -> Toy:
    return Toy()


def test_a_portable_graph(toy: Toy, tmp_path: Path) -> None:
    toy.weights["axes"] = np.array([-1])
    toy.weights["tied"] = toy.weights["weight"]
    toy.offsets["tied"] = 0  # the same bytes under two names
    toy.end(
        node("ReduceSum", ["sum", "axes"], ["/out/ReduceSum:0"], "/out", keepdims=1),
        node("Less", ["/out/ReduceSum:0", "sum"], ["/out/Less:0"], "/out"),
        node("MatMul", ["sum", "tied"], ["/out/MatMul:0"], "/out"),
        node("Where", ["/out/Less:0", "sum", "/out/MatMul:0"], ["y"], "/out.0/sub-module"),
    )
    assert lint(toy.save(tmp_path), toy.spec) == []


def opset_21(toy: Toy) -> None:
    toy.opset = 21
    toy.spec = dataclasses.replace(SPEC, opset=21)


def other_opset_than_manifest(toy: Toy) -> None:
    toy.spec = dataclasses.replace(SPEC, opset=17)


def foreign_domain(toy: Toy) -> None:
    toy.nodes[2].domain = "com.microsoft"


def unsupported_operator(toy: Toy) -> None:
    toy.end(node("CenterCropPad", ["sum", "size"], ["y"], "/out"))
    toy.weights["size"] = np.array([1, 32])


def wrong_type(toy: Toy) -> None:
    # The parser takes Softmax in floating point only; Abs it takes in INT64, but not in INT8.
    toy.end(
        node("Cast", ["ids"], ["/out/Cast:0"], "/out", to=TensorProto.DOUBLE),
        node("Identity", ["sum"], ["y"], "/out"),
    )


def axes_at_run_time(toy: Toy) -> None:
    toy.end(
        node("Shape", ["ids"], ["/out/Shape:0"], "/out"),
        node("ReduceMax", ["sum", "/out/Shape:0"], ["y"], "/out"),
    )


def zero_point(toy: Toy) -> None:
    toy.weights |= {"scale": np.float32(0.1), "zero": np.int8(3)}
    toy.end(
        node("QuantizeLinear", ["sum", "scale", "zero"], ["/out/QuantizeLinear:0"], "/out"),
        node("DequantizeLinear", ["/out/QuantizeLinear:0", "scale", "zero"], ["y"], "/out"),
    )


def softmax_in_fp16(toy: Toy) -> None:
    toy.end(
        node("Cast", ["sum"], ["/out/Cast:0"], "/out", to=TensorProto.FLOAT16),
        node("Softmax", ["/out/Cast:0"], ["/out/Softmax:0"], "/out"),
        node("Cast", ["/out/Softmax:0"], ["y"], "/out/back", to=TensorProto.FLOAT),
    )


def random_node(toy: Toy) -> None:
    toy.end(node("RandomNormalLike", ["sum"], ["y"], "/noise"))


def dropout(toy: Toy) -> None:
    toy.end(node("Dropout", ["sum"], ["y"], "/out"))


def non_zero(toy: Toy) -> None:
    toy.end(
        node("NonZero", ["sum"], ["/out/NonZero:0"], "/out"),
        node("GatherND", ["sum", "/out/NonZero:0"], ["y"], "/out"),
    )


def loop(toy: Toy) -> None:
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)])
    toy.weights["yes"] = np.array(True)
    toy.end(node("If", ["yes"], ["y"], "/out", then_branch=body, else_branch=body))


def strange_dimension(toy: Toy) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "s0"

    toy.edit = edit


def unnamed_dimension(toy: Toy) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[0].Clear()

    toy.edit = edit


def other_size(toy: Toy) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16

    toy.edit = edit


def int64_ids(toy: Toy) -> None:
    inputs = (SPEC.inputs[0], TensorSpec("ids", "int64", ("rows",)))
    toy.spec = dataclasses.replace(SPEC, inputs=inputs)

    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64

    toy.edit = edit


def other_type(toy: Toy) -> None:
    inputs = (TensorSpec("x", "float16", ("rows", 32)), SPEC.inputs[1])
    toy.spec = dataclasses.replace(SPEC, inputs=inputs)


def other_inputs(toy: Toy) -> None:
    toy.spec = dataclasses.replace(SPEC, inputs=SPEC.inputs[::-1])


def numbered_names(toy: Toy) -> None:
    toy.nodes[0].name = "node_MatMul_17"


def repeated_names(toy: Toy) -> None:
    toy.nodes[0].name = "/in/Add"
    toy.nodes[0].CopyFrom(node("Add", ["x", "/embed/Gather:0"], ["/in/MatMul:0"], ""))
    toy.nodes.reverse()
    toy.nodes.sort(key=lambda item: item.op_type != "Gather")
    toy.nodes.sort(key=lambda item: "sum" in item.output)


def inline_weights(toy: Toy) -> None:
    toy.inline.add("weight")


def inline_constant(toy: Toy) -> None:
    value = numpy_helper.from_array(np.ones((32, 32), np.float32))
    toy.nodes.insert(0, node("Constant", [], ["/in/Constant:0"], "/in", value=value))
    toy.nodes[1].input[1] = "/in/Constant:0"


def other_file(toy: Toy) -> None:
    toy.location = "../toy.data"


def unaligned(toy: Toy) -> None:
    toy.offsets["table"] = 5000


def overlapping(toy: Toy) -> None:
    toy.weights["weight"] = np.ones((64, 32), np.float32)  # 8 KiB, and the table starts after 4
    toy.nodes[0].input[0] = "wide"
    toy.nodes.insert(0, node("Concat", ["x", "x"], ["wide"], "/in", axis=1))
    toy.offsets["table"] = 4096


def truncated(toy: Toy) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for entry in model.graph.initializer[1].external_data:
            if entry.key == "offset":
                entry.value = "1048576"

    toy.edit = edit


def other_length(toy: Toy) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].external_data[2].value = "12"

    toy.edit = edit


def duplicate(toy: Toy) -> None:
    big = np.random.default_rng(1).standard_normal((8192, 32)).astype(np.float32)  # 1 MiB
    toy.weights |= {"table": big, "again": big.copy()}
    toy.end(
        node("Gather", ["again", "ids"], ["/out/Gather:0"], "/out"),
        node("Add", ["sum", "/out/Gather:0"], ["y"], "/out"),
    )


def quantise(toy: Toy, layer: LayerSpec) -> None:
    """The toy's product with INT8 weights, two blocks of 16, as the manifest should say."""
    opset_21(toy)
    toy.spec = dataclasses.replace(toy.spec, layers={"/in/MatMul": layer})
    toy.weights["weight"] = np.ones((32, 32), np.int8)
    toy.weights["scale"] = np.ones((2, 32), np.float32)
    floats = node("DequantizeLinear", ["weight", "scale"], ["floats"], "/in", axis=0, block_size=16)
    toy.nodes[0].input[1] = "floats"
    toy.nodes.insert(0, floats)


def other_form_than_manifest(toy: Toy) -> None:
    quantise(toy, LayerSpec("int8-weight", 32))


def layer_of_no_node(toy: Toy) -> None:
    toy.spec = dataclasses.replace(SPEC, layers={"/elsewhere/MatMul": LayerSpec("fp32")})


def integers_without_dequantise(toy: Toy) -> None:
    toy.weights["table"] = np.ones((100, 32), np.int8)
    toy.nodes[1] = node("Gather", ["table", "ids"], ["rows8"], "/embed")
    toy.weights["one"] = np.ones((), np.float32)
    toy.nodes.insert(2, node("DequantizeLinear", ["rows8", "one"], ["/embed/Gather:0"], "/embed"))


def test_blocks_of_weights_may_have_opset_21(toy: Toy, tmp_path: Path) -> None:
    quantise(toy, LayerSpec("int8-weight", 16))
    assert lint(toy.save(tmp_path), toy.spec) == []


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("quantised", other_form_than_manifest),
        ("quantised", layer_of_no_node),
        ("quantised", integers_without_dequantise),
        ("domain", opset_21),
        ("domain", other_opset_than_manifest),
        ("domain", foreign_domain),
        ("operator", unsupported_operator),
        ("types", wrong_type),
        ("limits", axes_at_run_time),
        ("limits", zero_point),
        ("precision", softmax_in_fp16),
        ("random", random_node),
        ("random", dropout),
        ("data-dependent", non_zero),
        ("data-dependent", loop),
        ("dims", strange_dimension),
        ("dims", unnamed_dimension),
        ("interface", other_size),
        ("interface", other_type),
        ("interface", other_inputs),
        ("int64", int64_ids),
        ("names", numbered_names),
        ("names", repeated_names),
        ("external-data", inline_weights),
        ("external-data", inline_constant),
        ("external-data", other_file),
        ("external-data", unaligned),
        ("external-data", overlapping),
        ("external-data", truncated),
        ("external-data", other_length),
        ("duplicates", duplicate),
    ],
)
def test_broken_graphs(toy: Toy, tmp_path: Path, rule: str, broken: Callable[[Toy], None]) -> None:
    broken(toy)
    found = toy.rules(tmp_path)
    also = {
        "quantised": {"types"},
        "random": {"limits", "operator"},
        "data-dependent": {"limits", "operator", "interface"},
    }.get(rule, set())
    assert rule in found
    assert found <= {rule} | also


def test_nearly_equal_weights_are_no_duplicates(toy: Toy, tmp_path: Path) -> None:
    duplicate(toy)
    toy.weights["again"].reshape(-1)[5000] += 1  # outside of the sampled bytes
    assert toy.rules(tmp_path) == set()


def test_findings_name_the_place(toy: Toy, tmp_path: Path) -> None:
    softmax_in_fp16(toy)
    [finding] = lint(toy.save(tmp_path), toy.spec)
    assert finding == Finding("precision", "/out/Softmax", "expected Softmax in FP32, found FP16; cast around it")


def test_zero_point_in_the_data_file_is_read(toy: Toy, tmp_path: Path) -> None:
    rows = 2048
    toy.weights |= {
        "table": np.random.default_rng(2).integers(-8, 8, (rows, 32)).astype(np.int8),
        "scale": np.ones(rows, np.float32),
        "zero": np.zeros(rows, np.int8),
    }
    toy.nodes.insert(0, node("DequantizeLinear", ["table", "scale", "zero"], ["real"], "/embed", axis=0))
    toy.nodes[2].input[0] = "real"
    assert toy.rules(tmp_path) == set()
    toy.weights["zero"][7] = 1
    assert toy.rules(tmp_path) == {"limits"}


def test_every_limit_of_the_list_is_known_or_reported() -> None:
    """A checker for an operator without limits in the list would be dead code."""
    limited = {name for name, entry in operator_list()["operators"].items() if entry["limits"]}
    assert set(_LIMITS) <= limited
    assert len(limited - set(_LIMITS)) < 20  # rare ones: recurrent, vision; each use is reported


def test_no_graph(tmp_path: Path) -> None:
    (tmp_path / "toy.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError, match="expected an ONNX graph"):
        lint(tmp_path / "toy.onnx", SPEC)
    with (tmp_path / "toy.onnx").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(ExportError, match="external weights"):
        lint(tmp_path / "toy.onnx", SPEC)

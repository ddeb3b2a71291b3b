"""ONNX Runtime engines and buffers: feeds that do not fit, outputs written in place, backends that are missing."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_voice import tiny_voice

from voxedge.engines import loader, ort
from voxedge.engines.backend import Buffer
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, BundleError, InferenceError
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.engines.manifest import DimRange, GraphSpec, TensorSpec
from voxedge.engines.ort import OrtEngine, OrtOptions

SPEC = GraphSpec(
    name="sum",
    flavour="portable",
    path="sum.onnx",
    data="sum.data",
    precision="fp32",
    opset=20,
    inputs=(TensorSpec("a", "float32", ("rows", 3)), TensorSpec("b", "float32", ("rows", 3))),
    outputs=(TensorSpec("c", "float32", ("rows", 3)),),
    profiles={"main": {"rows": DimRange(0, 2, 8)}},
)


@pytest.fixture
def engine(tmp_path: Path) -> OrtEngine:
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in "abc"}
    node = helper.make_node("Add", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "sum", [values["a"], values["b"]], [values["c"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "sum.onnx")
    return OrtEngine(tmp_path / "sum.onnx", SPEC, OrtOptions(threads=1))


def feeds(rows: int = 2) -> dict[str, np.ndarray]:
    return {name: np.full((rows, 3), value, np.float32) for name, value in (("a", 1), ("b", 2))}


def test_run(engine: OrtEngine) -> None:
    np.testing.assert_array_equal(engine.run(feeds())["c"], np.full((2, 3), 3, np.float32))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": np.zeros((2, 3), np.float64)}, "expected float32"),
        ({"a": np.zeros((2, 4), np.float32)}, r"expected float32 \['rows', 3\]"),
        ({"a": np.zeros((3, 3), np.float32)}, r"\{'rows': 3\}"),
        ({"a": np.zeros(3, np.float32)}, "input a"),
        ({"d": np.zeros((2, 3), np.float32)}, r"expected the inputs \['a', 'b'\]"),
    ],
)
def test_feeds_that_do_not_fit(engine: OrtEngine, changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        engine.run({**feeds(), **changed})


def test_a_binding_writes_into_a_view_and_sees_changes(engine: OrtEngine) -> None:
    memory = engine.allocate((4, 3), np.float32)
    binding = engine.binding()
    given = feeds()
    for name, array in given.items():
        binding.bind(name, Buffer.of(array))
    binding.bind("c", memory.rows(1, 3))
    binding.run()
    np.testing.assert_array_equal(memory.array()[:, 0], [0, 3, 3, 0])
    given["a"][:] = 5  # in place: nothing is bound again
    binding.run()
    np.testing.assert_array_equal(engine.download(memory)[:, 0], [0, 7, 7, 0])


def test_an_unbound_input_is_an_error(engine: OrtEngine) -> None:
    binding = engine.binding()
    binding.bind("a", Buffer.of(feeds()["a"]))
    with pytest.raises(InferenceError, match="graph sum failed"):
        binding.run()


def test_buffers_are_views_with_limits(engine: OrtEngine) -> None:
    memory = engine.upload(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_array_equal(memory.rows(2, 4).array(), [[6, 7, 8], [9, 10, 11]])
    np.testing.assert_array_equal(memory.reshape(2, 2).array(), [[0, 1], [2, 3]])
    assert memory.rows(0, 0).shape == (0, 3)
    for wrong in (lambda: memory.rows(3, 5), lambda: memory.rows(2, 1), lambda: memory.reshape(13)):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    with pytest.raises(ValueError, match="C-contiguous"):
        Buffer.of(np.zeros((3, 4))[:, ::2])
    with pytest.raises(InferenceError, match="to upload"):
        engine.upload(np.zeros(3, np.float32), memory)


def test_a_view_of_device_memory_is_downloaded_from_its_place(engine: OrtEngine) -> None:
    """The owner stands in for a tensor of another device."""
    whole = np.arange(6, dtype=np.float32)
    owner = types.SimpleNamespace(data_ptr=lambda: 1000, numpy=lambda: whole)
    device = Buffer(1000, (6,), np.dtype(np.float32), "cuda", owner)
    np.testing.assert_array_equal(engine.download(device.rows(2, 5)), [2, 3, 4])


def test_another_graph_than_the_manifest_says(engine: OrtEngine, tmp_path: Path) -> None:
    wrong = GraphSpec(
        name="sum",
        flavour="portable",
        path="sum.onnx",
        data="sum.data",
        precision="fp32",
        opset=20,
        inputs=SPEC.inputs[:1],
        outputs=SPEC.outputs,
        profiles=SPEC.profiles,
    )
    with pytest.raises(BundleError, match="expected the tensors"):
        OrtEngine(tmp_path / "sum.onnx", wrong, OrtOptions())


def test_missing_and_old_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(__version__="1.19.2", get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort.importlib, "import_module", lambda name: fake)
    with pytest.raises(BackendUnavailableError, match=r"expected ONNX Runtime 1\.20 or newer .* found 1\.19\.2"):
        ort.load_onnxruntime("cpu", "1.20")
    with pytest.raises(BackendUnavailableError, match="expected CUDAExecutionProvider"):
        ort.load_onnxruntime("cuda")

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(ort.importlib, "import_module", missing)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'voxedge\[ort\]'"):
        ort.load_onnxruntime("cpu")


def test_auto_stages_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_voice())
    for available, staged in ((1 << 40, False), (1 << 20, True), (None, False)):
        monkeypatch.setattr(loader, "available_bytes", lambda available=available: available)
        assert GraphLoader(bundle, LoadOptions("cpu", "auto")).staged is staged
        assert GraphLoader(bundle, LoadOptions("cpu", "resident")).staged is False

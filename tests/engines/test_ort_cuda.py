"""ONNX Runtime on CUDA, as far as it goes without a GPU: a session that copies as CUDA's does, and what is chosen."""

# ruff: noqa: D102, ANN401 - a stand-in for a session without static types

from __future__ import annotations

import ctypes
import dataclasses
from collections import Counter
from typing import Any, Literal

import cuda_stand_in
import numpy as np
import onnxruntime
import pytest
from tiny_voice import tiny_voice

from voxedge.engines import ort
from voxedge.engines.backend import Buffer
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InferenceError
from voxedge.engines.loader import choose_graph
from voxedge.engines.manifest import DimRange, DType, Flavour, GraphSpec, Manifest, TensorSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.engines.ort_binding import OrtBinding
from voxedge.runtime.decoder import Decoder, KvCache

SPEC = GraphSpec(
    name="sum",
    flavour="portable",
    path="sum.onnx",
    data="sum.data",
    precision="fp32",
    opset=20,
    inputs=(TensorSpec("a", "float32", ("rows",)), TensorSpec("b", "float32", ("rows",))),
    outputs=(TensorSpec("c", "float32", ("rows",)),),
    profiles={"main": {"rows": DimRange(0, 2, 8)}},
)


def memory(pointer: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(pointer))


class CopyingSession:
    """c = a + b; host memory plays the device's.

    An input of another device is copied when it is bound, as ONNX Runtime's `IOBinding::BindInput` does.
    """

    def __init__(self, places: dict[str, str]) -> None:
        self.places = places
        self.fed: dict[str, np.ndarray] = {}
        self.bound: Counter[str] = Counter()

    def io_binding(self) -> CopyingSession:
        return self

    def bind_input(self, name: str, device: str, _: int, dtype: Any, shape: list[int], pointer: int) -> None:
        found = memory(pointer, shape[0])
        self.fed[name] = found if device == self.places[name].lower() else found.copy()
        self.bound[name] += 1

    def bind_output(self, name: str, device: str, _: int, dtype: Any, shape: list[int], pointer: int) -> None:
        self.fed[name] = memory(pointer, shape[0])

    def run_with_iobinding(self, binding: CopyingSession) -> None:
        self.fed["c"][:] = self.fed["a"] + self.fed["b"]


class ToldSession(CopyingSession):
    """The same in a version that says where the graph reads its inputs."""

    def get_input_memory_infos(self) -> list[Any]:
        place = dataclasses.make_dataclass("Place", ["name"])
        return [place(self.places[name]) for name in ("a", "b")]


def on(device: str, array: np.ndarray) -> Buffer:
    return dataclasses.replace(Buffer.of(array), device=device)


def run_twice(session: CopyingSession, device: str, a: str, b: str) -> list[float]:
    """The sums before and after both inputs were changed in place."""
    binding = OrtBinding(session, SPEC, device)
    arrays = {name: np.full(2, 1, np.float32) for name in "abc"}
    for name, place in (("a", a), ("b", b), ("c", "cpu")):
        binding.bind(name, on(place, arrays[name]))
    sums = []
    for value in (1, 5):
        arrays["a"][:] = arrays["b"][:] = value
        binding.run()
        sums.append(float(arrays["c"][0]))
    return sums


@pytest.mark.parametrize("session", [CopyingSession, ToldSession])
def test_host_memory_changed_between_runs_reaches_a_device(session: type[CopyingSession]) -> None:
    cuda = session({"a": "Cuda", "b": "Cuda"})
    assert run_twice(cuda, "cuda", "cpu", "cuda") == [2, 10]
    assert cuda.bound == {"a": 2, "b": 1}  # what is on the device already is bound once


def test_device_memory_that_a_node_of_the_cpu_reads() -> None:
    """A cache beside an attention that has no kernel for the device."""
    assert run_twice(ToldSession({"a": "Cuda", "b": "Cpu"}), "cuda", "cuda", "cuda") == [2, 10]


def test_the_cpu_binds_once() -> None:
    session = ToldSession({"a": "Cpu", "b": "Cpu"})
    assert run_twice(session, "cpu", "cpu", "cpu") == [2, 10]
    assert session.bound == {"a": 1, "b": 1}


def test_a_host_buffer_that_a_device_buffer_replaces_is_forgotten() -> None:
    session = CopyingSession({"a": "Cuda", "b": "Cuda"})
    binding = OrtBinding(session, SPEC, "cuda")
    old, new, other, total = (np.full(2, value, np.float32) for value in (1, 2, 3, 0))
    for name, buffer in (
        ("a", on("cpu", old)),
        ("a", on("cuda", new)),
        ("b", on("cuda", other)),
        ("c", Buffer.of(total)),
    ):
        binding.bind(name, buffer)
    binding.run()
    assert total[0] == 5


def test_a_copy_that_fails_is_the_graphs_failure() -> None:
    class Refusing(CopyingSession):
        def bind_input(self, *_: Any) -> None:
            raise RuntimeError("CUDA failure 2: out of memory\nexpr=cudaMalloc")

    binding = OrtBinding(Refusing({}), SPEC, "cuda")
    binding.bind("a", Buffer.of(np.zeros(2, np.float32)))
    with pytest.raises(InferenceError, match=r"graph sum failed: CUDA failure 2: out of memory$"):
        binding.run()


GRAPH = "speech_expert"


def decoder(device: Literal["cpu", "cuda"], flavour: Flavour, graphs: bool = False) -> tuple[Decoder, OrtEngine]:
    bundle = Bundle.open(tiny_voice())
    spec = bundle.manifest.graph(GRAPH, flavour)
    engine = OrtEngine(bundle.graph_path(spec), spec, OrtOptions(device=device, threads=1, cuda_graphs=graphs))
    return Decoder(engine), engine


def logits(found: Decoder) -> list[np.ndarray]:
    """Of two caches: prompts, steps, a prompt in between, the first cache anew, and steps from an empty one."""
    rows = []
    caches = [KvCache(found.engine, found.cache_shape, positions) for positions in (40, 100)]
    parts = (0, [5, 1, 1, 1, 1, 3, 1, 1, 1]), (1, [1, 1, 1, 1, 4, 1, 1, 1]), (0, [2, 1, 1, 1, 1]), (0, [1, 1, 1])
    for number, lengths in parts:
        caches[number].clear()
        for length in lengths:
            ids = (np.arange(length) * 7 + len(rows)).astype(np.int32) % 60
            rows.append(found.forward(ids, caches[number]).copy())
    return rows


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"cpu": onnxruntime, "cuda": cuda_stand_in.Module}
    monkeypatch.setattr(ort, "load_onnxruntime", lambda device, *_: modules[device])


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("flavour", ["ort", "portable"])
def test_a_decoder_gives_the_logits_of_the_cpu(cuda: None, flavour: Flavour, graphs: bool) -> None:
    ours, engine = decoder("cuda", flavour, graphs)
    found, expected = logits(ours), logits(decoder("cpu", flavour)[0])
    assert np.abs(expected[1] - expected[2]).max() > 1e-2  # they differ from step to step
    for mine, theirs in zip(found, expected, strict=True):
        # The same kernels on the same values; memory that is aligned otherwise can move a sum's last bits.
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    runs = engine._session.runs
    if graphs and flavour == "ort":
        # Free are the 4 prompts and the first step over another cache; the next is captured, the others are replayed.
        assert runs == {"free": 4 + 3, "captured": 3, "replayed": 5 + 5 + 2 + 3, "released": 2}
    else:
        assert runs == {"free": len(found)}


def test_a_captured_graph_forgets_a_cache_that_moved(cuda: None) -> None:
    ours, engine = decoder("cuda", "ort", True)
    first, second = (KvCache(engine, ours.cache_shape, 10) for _ in range(2))

    def steps(cache: KvCache, token: int) -> list[np.ndarray]:
        return [ours.forward(np.array([token], np.int32), cache).copy() for _ in range(4)]

    expected = steps(second, 4)
    second.clear()
    steps(first, 3)
    for mine, theirs in zip(steps(second, 4), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert engine._session.runs == {"free": 3, "captured": 3, "replayed": 6, "released": 2}


def test_seldom_calls_are_never_captured(cuda: None) -> None:
    bundle = Bundle.open(tiny_voice())
    spec = bundle.manifest.graph(GRAPH, "ort")
    ours, _ = decoder("cpu", "ort")
    sizes = {"batch": 1, "new": 1, "capacity": 64}
    feeds = {tensor.name: np.zeros(tensor.sizes(sizes), tensor.dtype) for tensor in spec.inputs}
    feeds["total"][:] = 1
    captured = OrtEngine(bundle.graph_path(spec), spec, OrtOptions(device="cuda", threads=1, cuda_graphs=True))
    np.testing.assert_allclose(captured.run(feeds)["logits"], ours.engine.run(feeds)["logits"], rtol=1e-5, atol=1e-5)


def with_cache(dtype: DType) -> Manifest:
    """The tiny voice's manifest, its caches in another number format."""
    manifest = Bundle.open(tiny_voice()).manifest

    def change(graph: GraphSpec) -> GraphSpec:
        tensors = [
            tuple(
                dataclasses.replace(tensor, dtype=dtype)
                if tensor.name.split(".")[0] in ("past", "present", "new")
                else tensor
                for tensor in side
            )
            for side in (graph.inputs, graph.outputs)
        ]
        return dataclasses.replace(graph, inputs=tensors[0], outputs=tensors[1])

    return dataclasses.replace(manifest, graphs=tuple(change(graph) for graph in manifest.graphs))


@pytest.mark.parametrize(
    ("dtype", "backend", "flavour"),
    [
        ("float16", "cuda", "ort"),
        ("float32", "cuda", "portable"),
        ("int8", "cuda", "portable"),
        ("float16", "cpu", "ort"),
        ("float32", "cpu", "ort"),
        ("int8", "cpu", "ort"),
    ],
)
def test_the_fused_attention_is_chosen_where_the_device_has_it(dtype: DType, backend: Any, flavour: str) -> None:
    manifest = with_cache(dtype)
    for name in ("text_expert", "speech_expert"):  # they share a cache
        assert choose_graph(manifest, name, backend).flavour == flavour
    assert choose_graph(manifest, "dit", backend).flavour == "portable"
    with pytest.raises(BundleError, match="expected a graph 'none'"):
        choose_graph(manifest, "none", backend)


def test_fp32_is_fp32_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would round FP32 products to TF32 unless told not to."""
    name, options = ort._provider("CUDAExecutionProvider")
    assert name == "CUDAExecutionProvider"
    assert options["use_tf32"] == "0"
    assert options["enable_cuda_graph"] == "0"
    assert ort._provider("CPUExecutionProvider") == "CPUExecutionProvider"

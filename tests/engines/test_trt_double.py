"""The doubles refuse what the real libraries refuse: a double that takes everything proves nothing."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cache_graphs import cache_model, cache_spec
from tensorrt_surface import API, members
from trt_double import VERSIONS, CudaDouble, IllegalAccess, building, device_of, make_tensorrt, running
from trt_double.running import SCRATCH_BYTES, UndefinedBehaviour
from trt_double.surface import Guarded

WIDTH = 64
NAMES = ("x", "past", "total", "new")


class Rig:
    """An engine of the double with a context, memory and a logger that keeps what it is told."""

    def __init__(self, version: str, path: Path, cuda: CudaDouble | None = None) -> None:
        self.cuda = cuda or device_of(version)
        self.cuda.cuCtxSetCurrent(ctypes.c_void_p(1))
        self.trt = trt = make_tensorrt(version, self.cuda)
        self.said: list[str] = []
        said = self.said

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def log(self, severity: int, msg: str) -> None:
                said.append(msg)

        self.logger = Logger()
        self.plan = self.build(path)

    def build(self, path: Path, **flags: Any) -> Any:  # noqa: ANN401
        """A plan; None where the double refuses."""
        trt = self.trt
        onnx.save(cache_model(cache_spec(WIDTH)), path / "grow.onnx")
        builder = trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        assert parser.parse_from_file(str(path / "grow.onnx"))
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, WIDTH), (1, WIDTH), (4, WIDTH))
        profile.set_shape("past", (0, WIDTH), (4, WIDTH), (8, WIDTH))
        if flags.get("profile", True):
            config.add_optimization_profile(profile)
        return builder.build_serialized_network(network, config)

    def context(self) -> Any:  # noqa: ANN401
        """A fresh one, which knows nothing yet."""
        engine = self.trt.Runtime(self.logger).deserialize_cuda_engine(self.plan)
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def allocate(self, size: int) -> int:
        """Device memory that nobody frees."""
        address = ctypes.c_uint64(0)
        assert self.cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)) == 0
        return address.value

    def ready(self, rows: int = 2) -> Any:  # noqa: ANN401
        """A context that can be run."""
        context = self.context()
        assert context.set_optimization_profile_async(0, 7)
        context.set_device_memory(self.allocate(SCRATCH_BYTES), SCRATCH_BYTES)
        assert context.set_input_shape("x", (1, WIDTH))
        assert context.set_input_shape("past", (rows, WIDTH))
        for name in NAMES:
            assert context.set_tensor_address(name, self.allocate(4 * WIDTH * 8))
        return context


@pytest.fixture(params=VERSIONS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return Rig(request.param, tmp_path)


def test_only_the_names_of_the_version(rig: Rig) -> None:
    version = rig.trt._version
    with pytest.raises(AttributeError, match="Builder has no build_cuda_engine"):
        rig.trt.Builder(rig.logger).build_cuda_engine  # noqa: B018
    with pytest.raises(AttributeError, match="has no max_workspace_size"):
        rig.trt.Builder(rig.logger).create_builder_config().max_workspace_size = 1
    with pytest.raises(AttributeError, match="has no execute_async_v2"):
        rig.ready().execute_async_v2  # noqa: B018
    assert hasattr(rig.trt, "ComputeCapability") is (version == "rtx-1.7")
    assert hasattr(rig.trt.BuilderFlag, "FP16") is version.startswith("10.")
    assert hasattr(rig.trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY") is (version != "10.3")


def test_it_runs(rig: Rig) -> None:
    context = rig.ready()
    for name in NAMES:
        rig.cuda.view(context._addresses[name], 4 * WIDTH * 8).view(np.float32)[:] = 3
    assert context.execute_async_v3(7)
    total = rig.cuda.view(context._addresses["total"], 4 * WIDTH).view(np.float32)
    assert total[0] == 3  # nothing is done before the stream is waited for
    rig.cuda.cuStreamSynchronize(ctypes.c_void_p(7))
    assert total[0] == 2 * 3 + 2 * 3


def test_what_a_context_refuses(rig: Rig) -> None:
    context = rig.context()
    assert not context.set_input_shape("x", (1, WIDTH))
    assert "no optimization profile" in rig.said[-1]
    assert not context.set_optimization_profile_async(1, 7)
    assert not context.execute_async_v3(7)
    context = rig.ready()
    assert not context.set_input_shape("x", (5, WIDTH))
    assert "not within profile 0" in rig.said[-1]
    assert not context.set_input_shape("x", (1, WIDTH, 1))
    assert not context.set_input_shape("y", (1, WIDTH))
    assert not context.set_tensor_address("x", context._addresses["x"] + 4)
    assert "not aligned" in rig.said[-1]
    assert context.set_tensor_address("new", 0)
    assert not context.execute_async_v3(7)
    assert "Address is not set for tensor new" in rig.said[-1]


def test_memory_outside_of_an_allocation(rig: Rig) -> None:
    context = rig.ready()
    small = rig.allocate(256)
    context.set_tensor_address("past", small)
    with pytest.raises(IllegalAccess):
        context.execute_async_v3(7)
    ordinary = np.zeros(1024, np.uint8)
    with pytest.raises(IllegalAccess):
        rig.cuda.cuMemcpyDtoDAsync_v2(
            ctypes.c_uint64(ordinary.ctypes.data), ctypes.c_uint64(small), ctypes.c_size_t(8), None
        )
    context = rig.ready()
    assert context.execute_async_v3(7)
    assert rig.cuda.cuMemFree_v2(ctypes.c_uint64(context._addresses["x"])) == 0  # waits first
    assert rig.cuda.cuMemFree_v2(ctypes.c_uint64(context._addresses["x"])) != 0
    with pytest.raises(IllegalAccess):
        context.execute_async_v3(7)


def test_plans_of_others(rig: Rig, tmp_path: Path) -> None:
    runtime = rig.trt.Runtime(rig.logger)
    for version in VERSIONS:
        if version != rig.trt._version:
            (tmp_path / version).mkdir()
            assert runtime.deserialize_cuda_engine(Rig(version, tmp_path / version).plan) is None
            assert "safeVersionRead" in rig.said[-1]
    (tmp_path / "other").mkdir()
    plan = Rig(rig.trt._version, tmp_path / "other", CudaDouble(capability=72)).plan
    assert runtime.deserialize_cuda_engine(plan) is None
    assert runtime.deserialize_cuda_engine(b"nonsense") is None
    assert rig.build(tmp_path, profile=False) is None
    assert "no optimization profile has been defined" in rig.said[-1]


def capture(rig: Rig, context: Any) -> Any:  # noqa: ANN401
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    assert rig.cuda.cuStreamBeginCapture_v2(None, 1) == 0
    assert context.execute_async_v3(7)
    assert rig.cuda.cuStreamSynchronize(None) == 900
    assert rig.cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64(0)), ctypes.c_size_t(1)) == 900
    assert rig.cuda.cuStreamEndCapture(None, ctypes.byref(graph)) == 0
    assert rig.cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0) == 0
    return executable


def test_captured_graphs(rig: Rig) -> None:
    context = rig.ready()
    with pytest.raises(UndefinedBehaviour, match="right after new shapes"):
        capture(rig, context)
    rig.cuda.cuStreamEndCapture(None, ctypes.byref(ctypes.c_void_p()))
    assert context.execute_async_v3(7)
    executable = capture(rig, context)
    rig.cuda.cuGraphLaunch(executable, None)
    rig.cuda.cuStreamSynchronize(None)
    context.set_input_shape("past", (3, WIDTH))
    rig.cuda.cuGraphLaunch(executable, None)
    with pytest.raises(UndefinedBehaviour, match="changed after the capture"):
        rig.cuda.cuStreamSynchronize(None)


def test_a_context_must_outlive_its_work(rig: Rig) -> None:
    context = rig.ready()
    assert context.execute_async_v3(7)
    del context
    with pytest.raises(UndefinedBehaviour, match="destroyed while its work was enqueued"):
        rig.cuda.cuStreamSynchronize(None)


def test_pointers_must_be_64_bits_wide() -> None:
    cuda = CudaDouble()
    assert cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64(0)), ctypes.c_size_t(1)) == 201  # no current context
    with pytest.raises(AssertionError, match="64-bit"):
        cuda.cuMemsetD8Async(1 << 40, ctypes.c_ubyte(0), ctypes.c_size_t(1), None)


def test_the_surface_is_the_real_one() -> None:
    """What the double plays of TensorRT-RTX exists in the installed one."""
    real = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    played = [
        value
        for module in (building, running)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Guarded) and value is not Guarded
    ]
    assert len(played) > 10
    for cls in played:
        shown = {name for name in vars(cls) if not name.startswith("_")}
        assert shown <= set(dir(getattr(real, cls.__name__))), cls
        assert shown <= set().union(*(members(version, cls.__name__) for version in API)), cls

"""Run graphs on ONNX Runtime, on the CPU or on a CUDA device.

In: a graph of a bundle. Out: an `Engine`. Asking for CUDA and getting the CPU is an error that names what is missing.
Does not choose graphs or devices (see `engines.loader`) and never copies a cache: tensors are bound by address.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Array, Binding, Buffer, check_feeds
from voxedge.engines.errors import BackendUnavailableError, BundleError, InferenceError
from voxedge.engines.manifest import DType, GraphSpec
from voxedge.engines.ort_binding import OrtBinding, first_line
from voxedge.engines.ort_graphs import CapturedBinding, run_options
from voxedge.engines.processor import int8_products_saturate

INSTALL = {"cpu": "pip install 'voxedge[ort]'", "cuda": "pip install 'voxedge[ort-gpu]'"}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_AGAIN = "the manifest and the graph disagree, export it again"
_ORT_TYPES: Mapping[DType, str] = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}


@dataclass(frozen=True, slots=True)
class OrtOptions:
    """How sessions run."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the graph runs and its tensors live."""
    threads: int | None = None
    """Threads of one operator; None means the physical cores that this process may use."""
    spinning: bool = True
    """Idle threads wait busily: about 15 % faster steps, but the cores are not free in between."""
    cuda_graphs: bool = False
    """On CUDA: capture decode steps with fused attention, see `engines.ort_graphs`. It has not run on a GPU yet."""


class OrtEngine:
    """One session of ONNX Runtime; see `engines.backend.Engine`."""

    def __init__(self, path: Path, spec: GraphSpec, options: OrtOptions) -> None:
        """Load the graph.

        Raises:
            BackendUnavailableError: ONNX Runtime or the CUDA provider is missing, or too old for this graph.
            BundleError: The file is no graph, or not the one that the manifest describes.
        """
        self._runtime = load_onnxruntime(options.device, spec.min_onnxruntime)
        self.spec, self.device = spec, options.device
        self._captures = options.cuda_graphs and options.device == "cuda" and spec.flavour == "ort"
        self._numbers = itertools.count(1)
        self._session = self._open(path, options)
        self._check_boundary(path)

    def _open(self, path: Path, options: OrtOptions) -> Any:  # noqa: ANN401 - ONNX Runtime has no types
        provider = PROVIDERS[options.device]
        settings = _session_options(self._runtime, self.spec, options)
        if self.spec.weight_uses > 1:
            # Every node would pack a copy of its own: 12 products with one matrix took 9.5 times its size, and were no
            # faster, since one row at a time is bound by memory.
            settings.add_session_config_entry("session.disable_prepacking", "1")
        try:
            chosen = [_provider(provider, self._captures)]
            session = self._runtime.InferenceSession(str(path), settings, providers=chosen)
        except Exception as error:  # ONNX Runtime raises its own types, which have no common base
            raise BundleError(
                f"{path}: expected a graph that ONNX Runtime {self._runtime.__version__} can load; it says: "
                f"{first_line(error)}; run `voxedge verify` on the bundle, or export it again"
            ) from error
        if session.get_providers()[0] != provider:
            raise BackendUnavailableError(
                f"expected {provider}, got {session.get_providers()[0]}: the CUDA or cuDNN libraries of ONNX Runtime "
                "could not be loaded; run `voxedge doctor`, or ask for --backend cpu"
            )
        return session

    def _check_boundary(self, path: Path) -> None:
        found = [*self._session.get_inputs(), *self._session.get_outputs()]
        expected = [*self.spec.inputs, *self.spec.outputs]
        names = [value.name for value in found], [tensor.name for tensor in expected]
        if names[0] != names[1]:
            raise BundleError(f"{path}: expected the tensors {names[1][:8]}..., found {names[0][:8]}...; {_AGAIN}")
        for tensor, value in zip(expected, found, strict=True):
            if value.type != _ORT_TYPES[tensor.dtype] or not _same_shape(tensor.shape, value.shape):
                raise BundleError(
                    f"{path}: expected {tensor.name} as {tensor.dtype} {list(tensor.shape)}, found {value.type} "
                    f"{value.shape}; {_AGAIN}"
                )

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        """Zero-filled memory on the device."""
        return self.upload(np.zeros(shape, dtype))

    def upload(self, array: Array, buffer: Buffer | None = None) -> Buffer:
        """Copy to the device; on the CPU into memory that later writes to `array` do not reach."""
        if buffer is not None and (buffer.shape != array.shape or buffer.dtype != array.dtype):
            raise InferenceError(f"expected {buffer.dtype} {buffer.shape} to upload, got {array.dtype} {array.shape}")
        if self.device == "cpu":
            return _upload_host(array, buffer)
        if buffer is not None:
            buffer.owner.update_inplace(np.ascontiguousarray(array))  # type: ignore[attr-defined]
            return buffer
        value = self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)
        return Buffer(value.data_ptr(), array.shape, array.dtype, self.device, value)

    def download(self, buffer: Buffer) -> Array:
        """Copy to the host; of another device's memory the whole tensor comes over, then the view is cut out."""
        if buffer.device == "cpu":
            values: Array = buffer.array().copy()
            return values
        value: Any = buffer.owner
        skipped = (buffer.pointer - value.data_ptr()) // buffer.dtype.itemsize
        count = int(np.prod(buffer.shape, dtype=np.int64))
        whole: Array = value.numpy()
        return whole.reshape(-1)[skipped : skipped + count].reshape(buffer.shape)

    def binding(self) -> Binding:
        """A new binding of this session."""
        if self._captures:
            return CapturedBinding(self._session, self.spec, self._runtime, self.device, self._numbers)
        return OrtBinding(self._session, self.spec, self.device)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once from host to host."""
        check_feeds(self.spec, feeds)
        options = run_options(self._runtime) if self._captures else None
        try:
            results = self._session.run(None, dict(feeds), options)
        except Exception as error:  # as above
            raise InferenceError(f"graph {self.spec.name} failed: {first_line(error)}") from error
        return dict(zip((tensor.name for tensor in self.spec.outputs), results, strict=True))

    def close(self) -> None:
        """Give the session's memory back."""
        self._session = None


def load_onnxruntime(device: str, minimum: str = "0") -> Any:  # noqa: ANN401 - a module without types
    """Import ONNX Runtime for a device.

    Raises:
        BackendUnavailableError: It is not installed, lacks the device's provider, or is older than `minimum`.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailableError(
            f"expected ONNX Runtime, found none ({error}); type: {INSTALL[device]}"
        ) from error
    if not newer_or_equal(runtime.__version__, minimum):
        raise BackendUnavailableError(
            f"expected ONNX Runtime {minimum} or newer for this graph, found {runtime.__version__}; "
            f"type: pip install -U 'onnxruntime>={minimum}', or export the bundle again without that graph form"
        )
    if PROVIDERS[device] not in runtime.get_available_providers():
        raise BackendUnavailableError(
            f"expected {PROVIDERS[device]}, found {runtime.get_available_providers()}; type: pip uninstall onnxruntime "
            f"&& {INSTALL[device]} (on a Jetson there is no such wheel: use --backend cpu)"
        )
    if device == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    return runtime


def physical_cores() -> int:
    """Cores that this process may use, hyperthreads not counted where the system tells them apart."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = Path("/sys/devices/system/cpu")
    siblings = set()
    for core in allowed:
        listed = topology / f"cpu{core}" / "topology" / "thread_siblings_list"
        siblings.add(listed.read_text().strip() if listed.is_file() else str(core))
    return max(1, len(siblings))


def graph_options(spec: GraphSpec, device: Literal["cpu", "cuda"] = "cpu") -> dict[str, str]:
    """Options that change what ONNX Runtime makes of a graph on this machine.

    Level 4: weight-only products compute with INT8 activations, as is ONNX Runtime's default (1.32: the same logits to
    the bit). In FP32 (level 1) a step of 8 layers takes 19.1 ms, not 7. Precision 1: where products of U8 and S8 may
    saturate, INT8 layers are computed as U8 by U8; elsewhere that would only make them 7 times as slow. Weights that
    several nodes read cannot have it: ONNX Runtime 1.32 would shift them once for each node and fails. Such weights are
    made floats once, at load, where products may saturate and where they are only stored as integers; its fused kernels
    do not take them, and a DequantizeLinear for each node made a frame of 12 channels 5.5 times as slow as in FP32,
    with 3.1 GB and not 0.5.
    """
    chosen = {"session.qdq_matmulnbits_accuracy_level": "4"}
    precisions = {str(layer.precision) for layer in spec.layers.values()} or {spec.precision}
    integers = "int8" in precisions
    saturate = integers and device == "cpu" and int8_products_saturate()
    if saturate and spec.weight_uses == 1:
        chosen["session.x64quantprecision"] = "1"
    if spec.weight_uses > 1 and (saturate or not integers):
        chosen["session.disable_quant_qdq"] = "1"
    return chosen


def _session_options(runtime: Any, spec: GraphSpec, options: OrtOptions) -> Any:  # noqa: ANN401
    session = runtime.SessionOptions()
    session.intra_op_num_threads = options.threads or physical_cores()
    session.inter_op_num_threads = 1
    session.log_severity_level = 3
    # Lengths vary from call to call: cached memory patterns would only grow (kokoro PR 358, onnxruntime #22297).
    session.enable_mem_pattern = False
    for name, value in graph_options(spec, options.device).items():
        session.add_session_config_entry(name, value)
    session.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return session


def save_prepared(graph: Path, spec: GraphSpec, target: Path, data: str, options: OrtOptions) -> None:
    """Write a graph as a CPU session keeps it: optimised, its weights also in the order that the kernels read.

    Args:
        graph: What to load.
        spec: The manifest's words of it.
        target: The .onnx file to write; it fits this processor and this ONNX Runtime alone.
        data: Name of the file of weights beside it.
        options: How it will run; only the device matters for what is written.

    Raises:
        BundleError: ONNX Runtime cannot load the graph or write the files.
    """
    runtime = load_onnxruntime("cpu")
    session = _session_options(runtime, spec, options)
    session.optimized_model_filepath = str(target)
    for name, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", data),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        session.add_session_config_entry(name, value)
    try:
        runtime.InferenceSession(str(graph), session, providers=[PROVIDERS["cpu"]])
    except Exception as error:  # ONNX Runtime raises its own types, which have no common base
        raise BundleError(f"{graph}: ONNX Runtime cannot prepare it: {first_line(error)}") from error
    if not (target.is_file() and target.with_name(data).is_file()):
        raise BundleError(f"{graph}: ONNX Runtime {runtime.__version__} wrote no prepared graph")


def newer_or_equal(version: str, minimum: str) -> bool:
    """Whether a version of ONNX Runtime is `minimum` or later."""
    return _version(version) >= _version(minimum)


def _provider(name: str, captures: bool = False) -> str | tuple[str, dict[str, str]]:
    if name != PROVIDERS["cuda"]:
        return name
    return name, {
        "arena_extend_strategy": "kSameAsRequested",
        # Exhaustive search would run again for every new length (kokoro-onnx #125).
        "cudnn_conv_algo_search": "HEURISTIC",
        # On by default, and gives FP32 products the 11 bits of FP16; an FP32 island is there because those are too few.
        "use_tf32": "0",
        "enable_cuda_graph": str(int(captures)),
    }


def _upload_host(array: Array, buffer: Buffer | None) -> Buffer:
    if buffer is None:
        return Buffer.of(np.array(array, order="C"))
    np.copyto(buffer.array(), array)
    return buffer


def _same_shape(expected: Sequence[int | str], found: Sequence[int | str | None]) -> bool:
    """Whether fixed sizes agree; the manifest may fix one that the graph leaves open, not the other way round."""
    return len(expected) == len(found) and all(
        size == other or not isinstance(other, int) for size, other in zip(expected, found, strict=True)
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())

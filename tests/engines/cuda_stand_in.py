"""ONNX Runtime's CUDA provider as far as binding goes, over a session of the CPU: host memory plays the device's.

An input of another device is copied when it is bound, as `IOBinding::BindInput` does. A captured graph replays the
addresses, the shapes and the host's values of its capture, whatever is bound by then. It proves nothing about kernels.
"""

# ruff: noqa: D101, D102, ANN401 - a stand-in for a module without static types
from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

HOST_INPUTS = ("total",)
"""What GroupQueryAttention reads on the host."""


def copy_of(pointer: int, shape: Sequence[int], dtype: Any) -> Any:
    return ctypes.create_string_buffer(ctypes.string_at(pointer, int(np.prod(shape)) * np.dtype(dtype).itemsize))


class RunOptions:
    def __init__(self) -> None:
        self.graph = "none"

    def add_run_config_entry(self, name: str, value: str) -> None:
        assert name == "gpu_graph_id"
        self.graph = value


class OrtValue:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array.copy()

    @classmethod
    def ortvalue_from_numpy(cls, array: np.ndarray, device: str, _: int) -> OrtValue:
        assert device == "cuda"
        return cls(array)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def numpy(self) -> np.ndarray:
        return self._array.copy()

    def update_inplace(self, array: np.ndarray) -> None:
        assert (array.shape, array.dtype) == (self._array.shape, self._array.dtype)
        self._array[...] = array


class Bound:
    def __init__(self) -> None:
        self.places: dict[str, tuple[bool, Any, tuple[int, ...], int, str, Any]] = {}
        self.binds: Counter[str] = Counter()

    def bind_input(self, name: str, device: str, _: int, dtype: Any, shape: list[int], pointer: int) -> None:
        wanted = "cpu" if name in HOST_INPUTS else "cuda"
        copy = None
        if device != wanted:
            copy = copy_of(pointer, shape, dtype)
            pointer = ctypes.addressof(copy)
        self._keep(True, name, device, dtype, shape, pointer, copy)

    def bind_output(self, name: str, device: str, _: int, dtype: Any, shape: list[int], pointer: int) -> None:
        self._keep(False, name, device, dtype, shape, pointer, None)

    def _keep(self, given: bool, name: str, device: str, dtype: Any, shape: list[int], pointer: int, copy: Any) -> None:
        self.places[name] = given, dtype, tuple(shape), pointer, device, copy
        self.binds[name] += 1


class InferenceSession:
    def __init__(self, path: str, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
        [(name, options)] = providers
        assert name == "CUDAExecutionProvider"
        self.captures = options["enable_cuda_graph"] == "1"
        self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._graphs: dict[str, dict[str, Any]] = {}
        self.runs: Counter[str] = Counter()
        """By kind: free, captured, replayed, released."""

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Bound:
        return Bound()

    def release_captured_graph(self, graph: int) -> None:
        del self._graphs[str(graph)]
        self.runs["released"] += 1

    def run(self, names: None, feeds: dict[str, np.ndarray], options: RunOptions | None) -> list[np.ndarray]:
        assert self.captures is (options is not None and options.graph == "-1")
        found: list[np.ndarray] = self._session.run(names, feeds)
        return found

    def run_with_iobinding(self, binding: Bound, options: RunOptions | None = None) -> None:
        graph = "none" if options is None else options.graph
        assert self.captures is (graph != "none"), "a session with CUDA graphs captures every run that does not say no"
        if graph in ("none", "-1"):
            self.runs["free"] += 1
            self._run(binding.places)
        elif graph in self._graphs:
            self.runs["replayed"] += 1
            self._run(self._graphs[graph])
        else:
            assert all(place[4] == "cuda" or name in HOST_INPUTS for name, place in binding.places.items())
            self.runs["captured"] += 1
            self._graphs[graph] = {name: _frozen(name, place) for name, place in binding.places.items()}
            self._run(self._graphs[graph])

    def _run(self, places: dict[str, Any]) -> None:
        if "total" in places:  # kernels of CUDA are planned for so many tokens, those of the CPU look for themselves
            total, last = (ctypes.c_int32.from_address(places[name][3]).value for name in ("total", "lengths"))
            assert total > last
        real = self._session.io_binding()
        for name, (given, dtype, shape, pointer, _, _) in places.items():
            (real.bind_input if given else real.bind_output)(name, "cpu", 0, dtype, list(shape), pointer)
        self._session.run_with_iobinding(real)


def _frozen(name: str, place: Any) -> Any:
    """What a capture keeps of a tensor: its address, of the host's its value."""
    given, dtype, shape, pointer, device, _ = place
    if name not in HOST_INPUTS:
        return place
    copy = copy_of(pointer, shape, dtype)
    return given, dtype, shape, ctypes.addressof(copy), device, copy


class Module:
    """`onnxruntime` with one device."""

    __version__ = onnxruntime.__version__
    InferenceSession = InferenceSession
    OrtValue = OrtValue
    RunOptions = RunOptions
    SessionOptions = onnxruntime.SessionOptions

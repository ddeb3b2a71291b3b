"""The double as an importable module, and its installation in place of the real libraries."""

# ruff: noqa: ANN401 - a double of bindings without static types
from __future__ import annotations

import ctypes
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from tensorrt_surface import API

from trt_double import building, running
from trt_double.cuda import CudaDouble
from trt_double.surface import Guarded, enumeration, guarded, is_enumeration
from voxedge.engines import gpu
from voxedge.engines.trt import monitor

VERSIONS = {"10.3": "10.3.0.30", "10.13": "10.13.3.9", "11.4": "11.4.0.10", "rtx-1.7": "1.7.1.116"}
"""API surface -> the full version that the double says."""
BASES = {"ILogger": building.ILogger, "IProgressMonitor": building.IProgressMonitor}


class TensorRtDouble:
    """The module `tensorrt` or `tensorrt_rtx` of one version."""

    def __init__(self, version: str, cuda: CudaDouble) -> None:
        self.__version__ = VERSIONS[version]
        self.__spec__ = ModuleSpec("tensorrt", None)  # others look for modules, too: torch does
        self._version, self._cuda = version, cuda
        self._made: dict[str, Any] = dict(BASES)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in API[self._version]:
            raise AttributeError(f"TensorRT {self._version} has no {name}")
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Any:
        if is_enumeration(name, self._version):
            return enumeration(name, self._version)
        found = getattr(building, name, None) or getattr(running, name, None)
        if not isinstance(found, type) or not issubclass(found, Guarded):
            raise NotImplementedError(f"the double does not play {name}")
        return guarded(found, self._version, self)


def make_tensorrt(version: str, cuda: CudaDouble) -> Any:
    """The module of a version on a device."""
    return TensorRtDouble(version, cuda)


def device_of(version: str, **changed: Any) -> CudaDouble:
    """A device that this version has kernels for: a Jetson, for TensorRT-RTX a desktop's GPU."""
    return CudaDouble(**{"name": "RTX 4090", "capability": 89} | changed if version.startswith("rtx") else changed)


def install(monkeypatch: pytest.MonkeyPatch, version: str, cuda: CudaDouble) -> Any:
    """Put the doubles where voxedge looks for the libraries; returns the module."""
    module, real = make_tensorrt(version, cuda), ctypes.CDLL
    name = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(monitor, "_loggers", {})
    monkeypatch.setattr(
        gpu.ctypes, "CDLL", lambda path, *rest, **more: cuda if path == "libcuda.so.1" else real(path, *rest, **more)
    )
    return module

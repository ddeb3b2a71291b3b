"""Device memory, one stream and captured graphs, through NVIDIA's driver itself.

In: the driver's library (`engines.gpu.open_driver`). Out: a `Cuda` that allocates, copies, waits and captures. Uses
ctypes and the driver's own calls: the driver is the one CUDA library that every machine with a GPU has, whatever its
toolkit. Does not know engines, tensors or dtypes; an address is a number and a size is in bytes.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import BackendUnavailableError, InferenceError
from voxedge.engines.files import format_bytes
from voxedge.engines.gpu import Gpu, find_gpus, open_driver

# Values of cuda.h; they are part of its binary interface.
_OUT_OF_MEMORY = 2
_STREAM_NON_BLOCKING = 1
_HOST_DEVICE_MAP = 2
_CAPTURE_THREAD_LOCAL = 1

_KEPT_LIMIT_BYTES = 64 << 20
Bytes = npt.NDArray[np.uint8]


class Cuda:
    """One device with one stream; everything is enqueued there, in order."""

    def __init__(self, gpu: Gpu, driver: Any) -> None:  # noqa: ANN401 - ctypes libraries have no static type
        """Make the device's primary context ready; TensorRT uses the same one. See `open_cuda`."""
        self.gpu = gpu
        self._driver = driver
        self._context = ctypes.c_void_p()
        self._free: dict[int, list[int]] = defaultdict(list)
        self._kept_bytes = 0
        self._closed = False
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), gpu.index)
        self.enter()
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_STREAM_NON_BLOCKING))
        self.stream = int(stream.value or 0)

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401
        """Call the driver.

        Raises:
            InferenceError: It refused; the message has the driver's own words.
        """
        code = getattr(self._driver, name)(*arguments)
        if code != 0:
            raise InferenceError(self._explain(name, code))

    def _explain(self, name: str, code: int) -> str:
        text = ctypes.c_char_p()
        known = self._driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text)) == 0
        said = (text.value or b"").decode("utf-8", errors="replace") if known else "no text"
        if code == _OUT_OF_MEMORY:
            return (
                f"the GPU is out of memory ({format_bytes(self.free_bytes())} free of "
                f"{format_bytes(self.gpu.total_bytes)}): use --memory staged, close other programs, or a smaller "
                "bundle; after many runs on a Jetson a reboot mends fragmented memory"
            )
        return f"the CUDA driver refused {name}: {said} (error {code}); run `voxedge doctor`"

    def enter(self) -> None:
        """Make the device current in the calling thread; every public entry of an engine does so first."""
        self.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Free memory of the device; 0 where the driver does not say."""
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return int(free.value)

    def allocate(self, count: int) -> DeviceMemory:
        """Memory on the device, aligned to 256 bytes at least; not cleared.

        What is given back is kept for the next request of the same size, so that a loop that takes and drops the
        same tensors sees the same addresses, which captured graphs depend on.
        """
        size = _rounded(count)
        if self._free[size]:
            self._kept_bytes -= size
            return DeviceMemory(self, self._free[size].pop(), size)
        address = ctypes.c_uint64(0)
        try:
            self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        except InferenceError:
            if not self._kept_bytes:
                raise
            self.trim()
            self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return DeviceMemory(self, int(address.value), size)

    def allocate_host(self, count: int) -> HostMemory:
        """Host memory that the device reaches: pinned, and mapped into its address space."""
        return HostMemory(self, _rounded(count))

    def give_back(self, address: int, size: int) -> None:
        """Keep freed device memory for the next request of its size, up to a limit."""
        if self._closed or self._kept_bytes + size > _KEPT_LIMIT_BYTES:
            self.release("cuMemFree_v2", ctypes.c_uint64(address))
            return
        self._free[size].append(address)
        self._kept_bytes += size

    def trim(self) -> None:
        """Return all memory that is kept for later to the system."""
        self.enter()
        for addresses in self._free.values():
            while addresses:
                self.call("cuMemFree_v2", ctypes.c_uint64(addresses.pop()))
        self._kept_bytes = 0

    def to_device(self, target: int, source: int, count: int) -> None:
        """Enqueue a copy from host memory, which must stay as it is until `wait` if it is pinned."""
        self._copy("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target), ctypes.c_void_p(source), count)

    def to_host(self, target: int, source: int, count: int) -> None:
        """Enqueue a copy to host memory; it is there after `wait`."""
        self._copy("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(target), ctypes.c_uint64(source), count)

    def on_device(self, target: int, source: int, count: int) -> None:
        """Enqueue a copy within the device."""
        self._copy("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(target), ctypes.c_uint64(source), count)

    def _copy(self, name: str, target: Any, source: Any, count: int) -> None:  # noqa: ANN401
        if count:
            self.call(name, target, source, ctypes.c_size_t(count), ctypes.c_void_p(self.stream))

    def clear(self, target: int, count: int) -> None:
        """Enqueue zeros."""
        if count:
            value, size = ctypes.c_ubyte(0), ctypes.c_size_t(count)
            self.call("cuMemsetD8Async", ctypes.c_uint64(target), value, size, ctypes.c_void_p(self.stream))

    def wait(self) -> None:
        """Return when everything that was enqueued is done.

        Raises:
            InferenceError: Something that was enqueued failed.
        """
        self.call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """Record what `work` enqueues, without running it.

        Raises:
            InferenceError: Something in it cannot be captured; the stream is usable again.
        """
        stream, graph, executable = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, ctypes.c_int(_CAPTURE_THREAD_LOCAL))
        try:
            work()
        except BaseException:
            self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))  # whatever it says, the capture is over
            self._drop_graph(graph)
            raise
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        finally:
            self._drop_graph(graph)
        return CapturedGraph(self, executable)

    def _drop_graph(self, graph: ctypes.c_void_p) -> None:
        if graph.value:
            self._driver.cuGraphDestroy(graph)

    def close(self) -> None:
        """Give everything back; memory that is still held by somebody stays valid until it is dropped."""
        if self._closed:
            return
        self.wait()
        self.trim()
        self._closed = True
        self.call("cuStreamDestroy_v2", ctypes.c_void_p(self.stream))

    def release(self, name: str, *arguments: Any) -> None:  # noqa: ANN401
        """Free something whose owner is gone; errors have nobody to go to (the driver may be shutting down)."""
        if self._driver.cuCtxSetCurrent(self._context) == 0:
            getattr(self._driver, name)(*arguments)


class DeviceMemory:
    """A stretch of device memory; goes back to the `Cuda` that gave it when nothing refers to it any more."""

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        self.address, self.size = address, size
        self._cuda = cuda

    def __del__(self) -> None:
        self._cuda.give_back(self.address, self.size)


class HostMemory:
    """A stretch of pinned host memory; `address` is the host's, `device_address` the device's name for it."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = size
        self._cuda = cuda
        self._pointer = ctypes.c_void_p()
        device = ctypes.c_uint64(0)
        cuda.call("cuMemHostAlloc", ctypes.byref(self._pointer), ctypes.c_size_t(size), ctypes.c_uint(_HOST_DEVICE_MAP))
        self.address = int(self._pointer.value or 0)
        cuda.call("cuMemHostGetDevicePointer_v2", ctypes.byref(device), self._pointer, ctypes.c_uint(0))
        self.device_address = int(device.value)

    def view(self, count: int) -> Bytes:
        """The first `count` bytes as an array; it must not outlive this object."""
        return np.ctypeslib.as_array((ctypes.c_ubyte * count).from_address(self.address))

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._cuda.release("cuMemFreeHost", self._pointer)


class CapturedGraph:
    """Recorded work that is launched as one."""

    def __init__(self, cuda: Cuda, executable: ctypes.c_void_p) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self) -> None:
        """Enqueue all of it again, with the addresses and sizes that it was captured with."""
        self._cuda.call("cuGraphLaunch", self._executable, ctypes.c_void_p(self._cuda.stream))

    def __del__(self) -> None:
        self._cuda.release("cuGraphExecDestroy", self._executable)


def open_cuda(driver: Any = None) -> Cuda:  # noqa: ANN401
    """The first visible CUDA device.

    Args:
        driver: The driver's library; None opens the installed one.

    Raises:
        BackendUnavailableError: There is no driver, or it shows no device.
    """
    driver = driver if driver is not None else open_driver()
    found = () if driver is None else find_gpus(driver)
    if not found:
        what = "no NVIDIA driver (libcuda.so.1)" if driver is None else "a driver that shows no device"
        raise BackendUnavailableError(
            f"expected a CUDA device, found {what}; run `voxedge doctor`; in a container add "
            "--gpus all (on a Jetson --runtime nvidia)"
        )
    return Cuda(found[0], driver)


def _rounded(count: int) -> int:
    """The size that serves a request of `count` bytes; a few sizes only, so that freed memory is used again."""
    unit = 256 if count < 1 << 16 else 1 << 16
    return max(unit, -(-count // unit) * unit)

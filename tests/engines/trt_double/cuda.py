"""The CUDA driver's double: host memory that plays device memory, and one queue that runs when it is waited for.

In: calls as `ctypes` makes them. Out: return codes as the driver gives them. Work is done as late as possible, at the
next synchronisation, so that a missing one shows; memory that is touched outside of an allocation raises.
"""

# ruff: noqa: ANN401, D102 - a double of a C library
from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

OK, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, CAPTURE_UNSUPPORTED = 0, 1, 2, 201, 900
TEXTS = {
    INVALID_VALUE: b"invalid argument",
    OUT_OF_MEMORY: b"out of memory",
    INVALID_CONTEXT: b"invalid device context",
    CAPTURE_UNSUPPORTED: b"operation not permitted when stream is capturing",
}
POINTERS = (ctypes.c_uint64, ctypes.c_void_p)
ALIGNMENT = 512


class IllegalAccess(Exception):
    """Device memory was touched where nothing is allocated; the real driver would end the context."""


@dataclass
class Allocation:
    """One stretch of memory."""

    start: int
    size: int
    memory: np.ndarray
    kind: str


class CudaDouble:
    """`libcuda.so.1` with one device."""

    def __init__(self, name: str = "Orin", capability: int = 87, total: int = 8 << 30, integrated: bool = True) -> None:
        self.name, self.capability, self.total, self.integrated = name, capability, total, integrated
        self.failures: dict[str, int] = {}
        """Codes that the next call of a name returns once."""
        self.allocations: dict[int, Allocation] = {}
        self.copies: list[tuple[str, int]] = []
        """Kind and bytes of every copy that was enqueued."""
        self.launches = 0
        """Of captured graphs."""
        self._queue: list[Callable[[], None]] = []
        self._captured: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._handles = 100
        self._local = threading.local()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return value
        failures = object.__getattribute__(self, "failures")
        return (lambda *_: failures.pop(name)) if name in failures else value

    # The device.

    def cuInit(self, flags: int) -> int:
        return flags

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return OK

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return OK

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return OK

    def cuDeviceGetName(self, name: Any, size: int, _handle: Any) -> int:
        name.value = self.name.encode()[: size - 1]
        return OK

    def cuDeviceTotalMem_v2(self, total: Any, _handle: Any) -> int:
        total._obj.value = self.total
        return OK

    def cuDeviceGetAttribute(self, value: Any, number: int, _handle: Any) -> int:
        value._obj.value = {75: self.capability // 10, 76: self.capability % 10, 18: int(self.integrated)}[number]
        return OK

    def cuDevicePrimaryCtxRetain(self, context: Any, _index: int) -> int:
        context._obj.value = 1
        return OK

    def cuDevicePrimaryCtxRelease_v2(self, _index: int) -> int:
        return OK

    def cuCtxPushCurrent_v2(self, _context: Any) -> int:
        return OK

    def cuCtxPopCurrent_v2(self, _context: Any) -> int:
        return OK

    def cuCtxSetCurrent(self, context: Any) -> int:
        self._local.current = context.value
        return OK

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = self.total - self.used, self.total
        return OK

    def cuGetErrorString(self, code: Any, text: Any) -> int:
        text._obj.value = TEXTS.get(code.value, b"unknown")
        return OK

    # Memory.

    @property
    def used(self) -> int:
        """Bytes that are allocated."""
        return sum(allocation.size for allocation in self.allocations.values())

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        return self._allocate(address, size, "device")

    def cuMemHostAlloc(self, address: Any, size: Any, flags: Any) -> int:
        return INVALID_VALUE if flags.value != 2 else self._allocate(address, size, "pinned")

    def _allocate(self, address: Any, size: ctypes.c_size_t, kind: str) -> int:
        if self._captured is not None:
            return CAPTURE_UNSUPPORTED
        if not self._has_context():
            return INVALID_CONTEXT
        if self.used + size.value > self.total:
            return OUT_OF_MEMORY
        memory = np.full(size.value + ALIGNMENT, 0xCD, np.uint8)  # nothing is cleared by the driver
        skip = -memory.ctypes.data % ALIGNMENT
        start = memory.ctypes.data + skip
        self.allocations[start] = Allocation(start, size.value, memory[skip : skip + size.value], kind)
        address._obj.value = start
        return OK

    def cuMemHostGetDevicePointer_v2(self, address: Any, pointer: Any, _flags: Any) -> int:
        address._obj.value = pointer.value
        return OK

    def cuMemFree_v2(self, address: Any) -> int:
        return self._release(address, "device")

    def cuMemFreeHost(self, address: Any) -> int:
        return self._release(address, "pinned")

    def _release(self, address: Any, kind: str) -> int:
        found = self.allocations.get(address.value)
        if found is None or found.kind != kind:
            return INVALID_VALUE
        self._drain()  # freeing waits
        found.memory.fill(0xEE)
        del self.allocations[address.value]
        return OK

    def view(self, address: int, size: int) -> np.ndarray:
        """`size` bytes of device-visible memory at an address."""
        for found in self.allocations.values():
            if found.start <= address and address + size <= found.start + found.size:
                return found.memory[address - found.start : address - found.start + size]
        raise IllegalAccess(f"{size} bytes at {address:#x} are not within one allocation")

    def _pinned(self, address: int) -> bool:
        return any(
            found.kind == "pinned" and found.start <= address < found.start + found.size
            for found in self.allocations.values()
        )

    # Copies; `host` is a pointer into ordinary or pinned host memory.

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, _stream: Any) -> int:
        self._check_types(target, source)
        pinned = self._pinned(source.value)
        if not pinned and self._captured is not None:
            return CAPTURE_UNSUPPORTED
        # The driver reads pageable memory before it returns, pinned memory later.
        given = None if pinned else ctypes.string_at(source.value, size.value)
        self.view(target.value, size.value)

        def work(to: int = target.value, start: int = source.value, count: int = size.value) -> None:
            data = self.view(start, count) if given is None else np.frombuffer(given, np.uint8)
            self.view(to, count)[:] = data

        self.copies.append(("to device", size.value))
        return self.enqueue(work)

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, _stream: Any) -> int:
        self._check_types(target, source)
        pinned = self._pinned(target.value)
        if not pinned and self._captured is not None:
            return CAPTURE_UNSUPPORTED
        self.view(source.value, size.value)

        def work(to: int = target.value, start: int = source.value, count: int = size.value) -> None:
            ctypes.memmove(to, self.view(start, count).ctypes.data, count)

        self.copies.append(("to host", size.value))
        return self.enqueue(work)

    def cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, size: Any, _stream: Any) -> int:
        self._check_types(target, source)
        self.view(source.value, size.value)
        self.view(target.value, size.value)

        def work(to: int = target.value, start: int = source.value, count: int = size.value) -> None:
            self.view(to, count)[:] = self.view(start, count)

        self.copies.append(("on device", size.value))
        return self.enqueue(work)

    def cuMemsetD8Async(self, target: Any, value: Any, size: Any, _stream: Any) -> int:
        self._check_types(target)
        return self.enqueue(lambda: self.view(target.value, size.value).fill(value.value))

    def _check_types(self, *pointers: Any) -> None:
        for pointer in pointers:  # a bare int would reach C as 32 bits
            assert isinstance(pointer, POINTERS), f"expected a 64-bit ctypes pointer, found {pointer!r}"

    # The stream and its graphs.

    def _has_context(self) -> bool:
        return bool(getattr(self._local, "current", None))

    def cuStreamCreate(self, stream: Any, _flags: Any) -> int:
        stream._obj.value = 7
        return OK

    def cuStreamDestroy_v2(self, _stream: Any) -> int:
        self._drain()
        return OK

    def enqueue(self, work: Callable[[], None]) -> int:
        """Append to the stream, or to the graph that is being captured."""
        if not self._has_context():
            return INVALID_CONTEXT
        (self._queue if self._captured is None else self._captured).append(work)
        return OK

    @property
    def capturing(self) -> bool:
        """Whether the stream is being captured."""
        return self._captured is not None

    def cuStreamSynchronize(self, _stream: Any) -> int:
        if self._captured is not None:
            return CAPTURE_UNSUPPORTED
        self._drain()
        return OK

    def _drain(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def cuStreamBeginCapture_v2(self, _stream: Any, _mode: Any) -> int:
        if self._captured is not None:
            return INVALID_VALUE
        self._captured = []
        return OK

    def cuStreamEndCapture(self, _stream: Any, graph: Any) -> int:
        if self._captured is None:
            return INVALID_VALUE
        graph._obj.value, self._captured = self._keep(self._captured), None
        return OK

    def _keep(self, work: list[Callable[[], None]]) -> int:
        self._handles += 1
        self._graphs[self._handles] = work
        return self._handles

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, _flags: Any) -> int:
        executable._obj.value = self._keep(list(self._graphs[graph.value]))
        return OK

    def cuGraphLaunch(self, executable: Any, _stream: Any) -> int:
        self.launches += 1
        for work in self._graphs[executable.value]:
            self.enqueue(work)
        return OK

    def cuGraphExecDestroy(self, executable: Any) -> int:
        return OK if self._graphs.pop(executable.value, None) is not None else INVALID_VALUE

    def cuGraphDestroy(self, graph: Any) -> int:
        return self.cuGraphExecDestroy(graph)

    @property
    def graphs(self) -> int:
        """Graphs that were not destroyed."""
        return len(self._graphs)

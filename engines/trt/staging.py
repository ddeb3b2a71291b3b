"""Where TensorRT finds tensors that it cannot take as they are: those of the host, and those at uneven addresses.

In: a bound `Buffer`. Out: a `Bound` tensor with an aligned address on the device, and the copies to and from it. A GPU
that shares the host's memory (Jetson) reads and writes the pinned bytes themselves, and nothing is copied by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxedge.engines.backend import Array, Buffer
from voxedge.engines.trt.cuda import Bytes, Cuda

ALIGNMENT = 256
"""Of every address that TensorRT is given (NvInferRuntime.h, IExecutionContext::setTensorAddress)."""


@dataclass(frozen=True, slots=True)
class Place:
    """An aligned place on the device for one tensor."""

    address: int
    """What TensorRT is given."""
    pinned: Bytes | None
    """Host bytes that are copied to the address or from it, or that are the memory at the address itself."""
    mapped: bool
    """Whether `pinned` is that memory."""
    owner: object
    """Keeps all of it alive."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound tensor, and where TensorRT finds it."""

    buffer: Buffer
    """What the caller bound."""
    size: int
    """Bytes."""
    place: Place | None
    """Where it is staged; None where TensorRT is given the buffer's own address."""

    @property
    def address(self) -> int:
        """What TensorRT is given."""
        return self.buffer.pointer if self.place is None else self.place.address

    def fill(self) -> None:
        """Before a run: the caller's host array into the pinned bytes."""
        if self.place is not None and self.place.pinned is not None:
            np.copyto(self._values(self.place.pinned), self.buffer.array())

    def push(self, cuda: Cuda) -> None:
        """Enqueue what brings an input to its place."""
        place = self.place
        if place is None or place.mapped:
            return
        if place.pinned is None:
            cuda.on_device(place.address, self.buffer.pointer, self.size)
        else:
            cuda.to_device(place.address, place.pinned.ctypes.data, self.size)

    def pull(self, cuda: Cuda) -> None:
        """Enqueue what brings an output from its place."""
        place = self.place
        if place is None or place.mapped:
            return
        if place.pinned is None:
            cuda.on_device(self.buffer.pointer, place.address, self.size)
        else:
            cuda.to_host(place.pinned.ctypes.data, place.address, self.size)

    def fetch(self) -> None:
        """After a run: the pinned bytes into the caller's host array."""
        if self.place is not None and self.place.pinned is not None:
            np.copyto(self.buffer.array(), self._values(self.place.pinned))

    def _values(self, pinned: Bytes) -> Array:
        return pinned[: self.size].view(self.buffer.dtype).reshape(self.buffer.shape)


class Staging:
    """The places of one engine's tensors, one for each name; calls come one at a time and may share them."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._places: dict[tuple[str, bool], tuple[int, Place]] = {}
        self.moves = 0
        """How often a place has changed; whoever keeps one must ask for it again then."""

    def bound(self, name: str, buffer: Buffer) -> Bound:
        """A tensor at its own address where TensorRT takes that, else at its place."""
        size, on_host = size_of(buffer), buffer.device == "cpu"
        if not on_host and buffer.pointer % ALIGNMENT == 0:
            return Bound(buffer, size, None)
        return Bound(buffer, size, self._place(name, size, on_host))

    def _place(self, name: str, count: int, on_host: bool) -> Place:
        """It moves only to grow, so that the addresses of captured graphs come again."""
        size, place = self._places.get((name, on_host), (-1, None))
        if place is None or size < count:
            size = max(ALIGNMENT, 1 << (count - 1).bit_length())
            place = self._host_place(size) if on_host else self._device_place(size)
            self._places[name, on_host] = (size, place)
            self.moves += 1
        return place

    def _host_place(self, size: int) -> Place:
        pinned = self._cuda.allocate_host(size)
        view = pinned.view(size)
        if self._cuda.gpu.integrated:
            return Place(pinned.device_address, view, True, pinned)
        memory = self._cuda.allocate(size)
        return Place(memory.address, view, False, (pinned, memory))

    def _device_place(self, size: int) -> Place:
        memory = self._cuda.allocate(size)
        return Place(memory.address, None, False, memory)

    def clear(self) -> None:
        """Give all of it back."""
        self._places.clear()
        self.moves += 1


def size_of(buffer: Buffer) -> int:
    """Bytes of a buffer."""
    return int(np.prod(buffer.shape, dtype=np.int64)) * buffer.dtype.itemsize

"""The seam between voxedge and whatever runs a graph.

In: a graph of a bundle and where to run it. Out: an `Engine` with named tensors on its device. ONNX Runtime
(`engines.ort`) and TensorRT implement it; nothing above this line knows which one it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import InferenceError
from voxedge.engines.manifest import GraphSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A dense, C-contiguous tensor in device memory, or a view of one."""

    pointer: int
    """Device address of the first element."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str
    """`cpu` or `cuda`."""
    owner: object
    """Keeps the memory alive; for `cpu` the array that holds it."""

    @classmethod
    def of(cls, array: Array) -> Buffer:
        """A buffer over a C-contiguous host array; no copy, writes to one are seen in the other."""
        if not array.flags.c_contiguous:
            raise ValueError("expected a C-contiguous array, got strides " + str(array.strides))
        return cls(array.ctypes.data, array.shape, array.dtype, "cpu", array)

    def array(self) -> Array:
        """The host array of a `cpu` buffer; no copy.

        Raises:
            ValueError: The buffer lives on another device.
        """
        if self.device != "cpu" or not isinstance(self.owner, np.ndarray):
            raise ValueError(f"expected a buffer of the CPU, got one of {self.device}; download it first")
        skipped = (self.pointer - self.owner.ctypes.data) // self.dtype.itemsize
        count = int(np.prod(self.shape, dtype=np.int64))
        return self.owner.reshape(-1)[skipped : skipped + count].reshape(self.shape)

    def rows(self, start: int, stop: int) -> Buffer:
        """View of `[start, stop)` along the first axis; no copy."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"expected 0 <= start <= stop <= {self.shape[0]}, got {start} and {stop}")
        stride = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return Buffer(
            self.pointer + start * stride, (stop - start, *self.shape[1:]), self.dtype, self.device, self.owner
        )

    def reshape(self, *shape: int) -> Buffer:
        """The same memory from its start under a shape of at most as many elements."""
        if np.prod(shape, dtype=np.int64) > np.prod(self.shape, dtype=np.int64):
            raise ValueError(f"expected at most {self.shape} elements, got {shape}")
        return Buffer(self.pointer, shape, self.dtype, self.device, self.owner)


class Binding(Protocol):
    """The tensors of one call, bound by name; kept between calls, so that a step of a loop binds nothing.

    A buffer of the host may be bound to any input or output: ids, lengths and logits are; the backend stages it.
    """

    def bind(self, name: str, buffer: Buffer) -> None:
        """Use `buffer` for the input or output `name` from now on."""

    def run(self) -> None:
        """Run the graph once on what is bound; returns when the outputs are ready.

        Raises:
            InferenceError: The backend failed, or a tensor is unbound or of the wrong shape.
        """


class Engine(Protocol):
    """One loaded graph."""

    @property
    def spec(self) -> GraphSpec:
        """The graph's inputs, outputs and ranges."""

    @property
    def device(self) -> str:
        """Where its tensors live: `cpu` or `cuda`."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        """Zero-filled device memory that this and every other engine of the device can bind."""

    def upload(self, array: Array, buffer: Buffer | None = None) -> Buffer:
        """Copy an array to the device, into `buffer` where one is given."""

    def download(self, buffer: Buffer) -> Array:
        """Copy a buffer to the host."""

    def binding(self) -> Binding:
        """A new, empty binding."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once from host arrays to host arrays; for graphs that are called seldom.

        Raises:
            InferenceError: An input is missing, unknown, or of the wrong dtype or shape.
        """

    def close(self) -> None:
        """Give back the memory; the engine cannot be used afterwards."""


def check_feeds(spec: GraphSpec, feeds: Mapping[str, Array]) -> None:
    """Refuse host arrays that are not what the graph takes.

    Raises:
        InferenceError: An input is missing, unknown, or of the wrong dtype or shape.
    """
    expected = {tensor.name: tensor for tensor in spec.inputs}
    if set(feeds) != set(expected):
        raise InferenceError(f"graph {spec.name}: expected the inputs {sorted(expected)}, found {sorted(feeds)}")
    dims: dict[str, int] = {}
    for name, array in feeds.items():
        tensor = expected[name]
        if not tensor.fits(array.shape, dims) or array.dtype != np.dtype(tensor.dtype):
            raise InferenceError(
                f"graph {spec.name}, input {name}: expected {tensor.dtype} {list(tensor.shape)} with {dims}, "
                f"found {array.dtype} {list(array.shape)}"
            )

"""Decode steps of ONNX Runtime on CUDA as one captured graph that is replayed.

In: the session of a decoder graph with fused attention, opened with CUDA graphs, on which every node runs on the
device. Out: an `engines.backend.Binding`. A step that comes again with every tensor at the same address is captured;
what is longer than one token never is. Does not open sessions and does not choose who captures.

A replay reads and writes the addresses that were captured, whatever is bound by then. So what the host passes goes
through tensors on the device that stay where they are, and a tensor that moves ends the captured graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from voxedge.engines.backend import Array, Buffer
from voxedge.engines.errors import InferenceError
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort_binding import first_line

_TOTAL, _PAST, _CAPACITY_AXIS = "total", "past.0.key", 2
_NEVER = -1
"""The number of a graph that is never captured, by ONNX Runtime's convention."""


def run_options(runtime: Any, graph: int = _NEVER) -> Any:  # noqa: ANN401 - ONNX Runtime has no types
    """Options of a run that captures or replays the graph of this number."""
    options = runtime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class CapturedBinding:
    """Bound tensors of one call; see `engines.backend.Binding`."""

    def __init__(self, session: Any, spec: GraphSpec, runtime: Any, device: str, numbers: Iterator[int]) -> None:  # noqa: ANN401
        """Nothing is bound yet.

        Args:
            session: The session.
            spec: Its graph, of the `ort` flavour.
            runtime: The module of ONNX Runtime.
            device: Where the graph runs.
            numbers: Numbers of captured graphs; no two bindings of a session may use one.
        """
        self._session, self._spec, self._runtime, self._device = session, spec, runtime, device
        self._numbers = numbers
        self._binding = session.io_binding()
        self._inputs = {tensor.name for tensor in spec.inputs}
        self._given = spec.inputs[0].name
        self._kept: dict[str, Buffer] = {}
        self._staged: dict[str, Any] = {}
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._moved = True
        self._graph = _NEVER
        self._free = self._options = run_options(runtime)
        self._capacity = np.zeros(1, np.int32)

    def bind(self, name: str, buffer: Buffer) -> None:
        """Bind an address, or a tensor on the device in place of the host's."""
        old, self._kept[name] = self._kept.get(name), buffer
        if name == _TOTAL:  # the one tensor that kernels read on the host; bound when the graph runs
            return
        if buffer.device == self._device:
            self._staged.pop(name, None)
            self._place(name, buffer, buffer.pointer)
            return
        if name not in self._staged or old is None or (old.shape, old.dtype) != (buffer.shape, buffer.dtype):
            zeros: Array = np.zeros(buffer.shape, buffer.dtype)
            self._staged[name] = self._runtime.OrtValue.ortvalue_from_numpy(zeros, self._device, 0)
        self._place(name, buffer, self._staged[name].data_ptr())

    def _place(self, name: str, buffer: Buffer, pointer: int) -> None:
        place = pointer, buffer.shape
        if self._places.get(name) != place:
            bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
            bind(name, self._device, 0, buffer.dtype, list(buffer.shape), pointer)
            self._places[name], self._moved = place, True

    def run(self) -> None:
        """Run on what is bound, or replay the run that was captured."""
        try:
            for name, value in self._staged.items():
                if name in self._inputs:
                    value.update_inplace(self._kept[name].array())
            self._session.run_with_iobinding(self._binding, self._choose())
            for name, value in self._staged.items():
                if name not in self._inputs:
                    np.copyto(self._kept[name].array(), value.numpy())
        except Exception as error:  # ONNX Runtime raises its own types, which have no common base
            raise InferenceError(f"graph {self._spec.name} failed: {first_line(error)}") from error

    def _choose(self) -> Any:  # noqa: ANN401
        """The options of this run; binds how many tokens there are at most."""
        again, self._moved = not self._moved, False
        if not again or self._kept[self._given].shape[1] != 1:
            self._forget()
            self._bind_total(self._kept[_TOTAL])
            return self._free
        if self._graph == _NEVER:
            # A captured graph keeps the value of its capture. It is a bound: `lengths`, on the device, says where the
            # past ends (GroupQueryAttention), so the capacity serves every step.
            self._capacity[0] = self._kept[_PAST].shape[_CAPACITY_AXIS]
            self._bind_total(Buffer.of(self._capacity))
            self._graph = next(self._numbers)
            self._options = run_options(self._runtime, self._graph)
        return self._options

    def _bind_total(self, buffer: Buffer) -> None:
        self._binding.bind_input(_TOTAL, "cpu", 0, buffer.dtype, list(buffer.shape), buffer.pointer)

    def _forget(self) -> None:
        release = getattr(self._session, "release_captured_graph", None)
        if self._graph != _NEVER and release is not None:  # before 1.32 it stays until the session ends
            release(self._graph)
        self._graph = _NEVER

"""Tensors that one ONNX Runtime session reads and writes by address.

In: a session and the device of its engine. Out: an `engines.backend.Binding`: what is changed in place between two runs
is seen by the second, on every device. Does not open sessions and owns no tensors.
"""

from __future__ import annotations

from typing import Any

from voxedge.engines.backend import Buffer
from voxedge.engines.errors import InferenceError
from voxedge.engines.manifest import GraphSpec


class OrtBinding:
    """Bound tensors of one call; see `engines.backend.Binding`.

    ONNX Runtime uses an input by address only where the graph reads it on the buffer's own device. Any other input it
    copies across, and it does so when the input is bound, not when the graph runs: changed in place afterwards, the
    graph would go on with the old values. So these are bound anew before each run.
    """

    def __init__(self, session: Any, spec: GraphSpec, device: str) -> None:  # noqa: ANN401 - no types
        self._session, self._spec, self._device = session, spec, device
        self._binding = session.io_binding()
        self._inputs = {tensor.name for tensor in spec.inputs}
        self._elsewhere = set() if device == "cpu" else _read_elsewhere(session, spec, device)
        self._run = session.run_with_iobinding
        self._kept: dict[str, Buffer] = {}
        self._copied: dict[str, Buffer] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        """Bind an address; the buffer is kept alive as long as it is bound."""
        self._kept[name] = buffer
        if name not in self._inputs:
            self._set(self._binding.bind_output, name, buffer)
        elif self._is_copied(name, buffer):
            self._copied[name] = buffer
        else:
            self._copied.pop(name, None)
            self._set(self._binding.bind_input, name, buffer)

    def run(self) -> None:
        """Run on what is bound."""
        try:
            for name, buffer in self._copied.items():
                self._set(self._binding.bind_input, name, buffer)
            self._run(self._binding)
        except Exception as error:  # ONNX Runtime raises its own types, which have no common base
            raise InferenceError(f"graph {self._spec.name} failed: {first_line(error)}") from error

    def _is_copied(self, name: str, buffer: Buffer) -> bool:
        """Whether ONNX Runtime may copy; where that is not known it counts as yes, which costs time alone."""
        return buffer.device != self._device or name in self._elsewhere

    @staticmethod
    def _set(bind: Any, name: str, buffer: Buffer) -> None:  # noqa: ANN401
        bind(name, buffer.device, 0, buffer.dtype, list(buffer.shape), buffer.pointer)


def first_line(error: Exception) -> str:
    """What ONNX Runtime says, short."""
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__


def _read_elsewhere(session: Any, spec: GraphSpec, device: str) -> set[str]:  # noqa: ANN401
    """Inputs that nodes of another device read first, such as an attention that the device has no kernel for."""
    places = getattr(session, "get_input_memory_infos", None)
    if places is None:  # ONNX Runtime cannot say; `engines.loader` chooses no graph whose cache would be one of these
        return set()
    found = zip((tensor.name for tensor in spec.inputs), places(), strict=True)
    return {name for name, place in found if place.name.lower() != device}

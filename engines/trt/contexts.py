"""Execution contexts: what TensorRT was told about a call, told again only where it changed.

In: an opened engine and a `Call`. Out: enqueued work on the session's stream. A captured graph has a context of its
own, since one that is changed afterwards makes the graph undefined (TensorRT developer guide, "CUDA Graphs"); all
contexts work in the session's one scratch memory. Does not wait and does not copy.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from voxedge.engines.errors import InferenceError
from voxedge.engines.trt.session import Session, failed, said

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Everything that TensorRT needs to know about one call."""

    profile: int
    """Index of the optimisation profile."""
    inputs: Mapping[str, Shape]
    """Shapes of the inputs."""
    outputs: Mapping[str, Shape]
    """Shapes of the bound outputs."""
    addresses: Mapping[str, int]
    """Device address of every input and output."""

    def key(self) -> Hashable:
        """What a captured graph depends on."""
        return self.profile, tuple(self.inputs.values()), tuple(self.addresses.values())


class Context:
    """One execution context and what it was told."""

    def __init__(self, session: Session, engine: Any, graph: str) -> None:  # noqa: ANN401 - TensorRT's own classes
        """Make it, without memory of its own.

        Raises:
            InferenceError: There is no room for it.
        """
        trt = session.library.module
        self._session, self._graph = session, graph
        self._scratch_bytes = int(engine.device_memory_size_v2)
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise InferenceError(f"graph {graph}: no room to run it: {said()}; use --memory staged")
        self._scratch = 0
        self._profile = -1
        self._shapes: dict[str, Shape] = {}
        self._outputs: Mapping[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def prepare(self, call: Call) -> None:
        """Tell TensorRT about a call.

        Raises:
            InferenceError: A shape is refused, or an output is bound with another shape than it will have.
        """
        self.use_scratch()
        changed = self.set_shapes(call.profile, call.inputs)
        if changed or call.outputs != self._outputs:
            for name, shape in call.outputs.items():
                found = self.shape(name)
                if found != shape:
                    raise InferenceError(
                        f"graph {self._graph}, output {name}: expected a buffer of {list(found)}, found {list(shape)}"
                    )
            self._outputs = call.outputs
        context = self._context
        for name, address in call.addresses.items():
            if self._addresses.get(name) != address:
                if not context.set_tensor_address(name, address):
                    raise failed(self._graph)
                self._addresses[name] = address

    def set_shapes(self, profile: int, inputs: Mapping[str, Shape]) -> bool:
        """Choose the profile and set the inputs' shapes; whether anything changed."""
        context = self._context
        if profile != self._profile:
            if not context.set_optimization_profile_async(profile, self._session.cuda.stream):
                raise failed(self._graph)
            self._profile = profile
            self._shapes.clear()  # TensorRT forgets them
            self._addresses.clear()
        changed = [name for name, shape in inputs.items() if self._shapes.get(name) != shape]
        for name in changed:
            if not context.set_input_shape(name, inputs[name]):
                self._shapes.clear()
                raise failed(self._graph)
            self._shapes[name] = inputs[name]
        if changed:
            self._outputs = {}
        missing = context.infer_shapes() if changed else []
        if missing:
            raise InferenceError(f"graph {self._graph}: TensorRT cannot tell the shapes of {', '.join(missing[:8])}")
        return bool(changed)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor under the inputs' shapes."""
        context = self._context
        return tuple(context.get_tensor_shape(name))

    def use_scratch(self) -> bool:
        """Work in the session's scratch memory; whether that has moved since the last call."""
        scratch = self._session.scratch(self._scratch_bytes)
        if scratch.address == self._scratch:
            return False
        context = self._context
        context.set_device_memory(scratch.address, scratch.size)
        self._scratch = scratch.address
        return True

    def enqueue(self) -> None:
        """Enqueue the call.

        Raises:
            InferenceError: TensorRT refused it.
        """
        context = self._context
        if not context.execute_async_v3(self._session.cuda.stream):
            raise failed(self._graph)

    def capturable(self) -> bool:
        """Whether the call can be captured now; TensorRT-RTX cannot while it still compiles kernels for its shapes."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(self._session.cuda.stream))

"""Run engines of TensorRT and TensorRT-RTX.

In: an engine file whose stamp was compared, and the graph's `GraphSpec`. Out: an `engines.backend.Engine`. Tensors on
the device are bound at their own addresses, so that a cache is read and extended in place; tensors on the host are
staged in pinned memory. Calls that repeat are captured and replayed. Does not build and does not choose graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Array, Buffer, check_feeds
from voxedge.engines.errors import EngineMismatchError, InferenceError
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.trt.contexts import Call, Context, Shape
from voxedge.engines.trt.cuda import CapturedGraph
from voxedge.engines.trt.monitor import recent_errors
from voxedge.engines.trt.network import TRT_DTYPES
from voxedge.engines.trt.replays import Replays
from voxedge.engines.trt.session import Session
from voxedge.engines.trt.staging import Bound, Staging, size_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrtOptions:
    """How engines run."""

    cuda_graphs: int = 8
    """Captured graphs of one engine at a time, each with an execution context of its own; 0 captures nothing."""


DEFAULT_OPTIONS = TrtOptions()


class TrtEngine:
    """One opened engine; see `engines.backend.Engine`."""

    device = "cuda"

    def __init__(
        self,
        session: Session,
        path: Path,
        spec: GraphSpec,
        options: TrtOptions = DEFAULT_OPTIONS,
        weights: Path | None = None,
    ) -> None:
        """Open an engine whose stamp was compared.

        Args:
            session: What it shares with the other engines of the process.
            path: The engine file.
            spec: The graph that it was built from.
            options: How it runs.
            weights: The .onnx file that a stripped engine's weights come from.

        Raises:
            EngineMismatchError: TensorRT refuses it, or it is not of this graph.
            InferenceError: There is no room for it.
        """
        self.spec = spec
        self.lock = session.lock
        self._session = session
        with self.lock:
            self._engine = session.open(path, weights)
            self._check_boundary(path)
            self._main = Context(session, self._engine, spec.name)
        self.staging = Staging(session.cuda)
        self._profiles = _by_tightness(spec)
        self._replays: Replays[tuple[Context, CapturedGraph]] = Replays(options.cuda_graphs)

    def _check_boundary(self, path: Path) -> None:
        engine = self._engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        expected = {tensor.name: tensor for tensor in (*self.spec.inputs, *self.spec.outputs)}
        wrong = sorted(names ^ set(expected)) or [
            name for name, tensor in expected.items() if engine.get_tensor_dtype(name).name != TRT_DTYPES[tensor.dtype]
        ]
        profiles = engine.num_optimization_profiles
        if wrong or profiles not in (1, len(self.spec.profiles)):
            raise EngineMismatchError(
                f"{path}: expected the tensors and {len(self.spec.profiles)} profiles of the graph {self.spec.name}, "
                f"found {profiles} profiles and others for {wrong[:5]}; build it again: voxedge build BUNDLE --force"
            )

    def allocate(self, shape: Shape, dtype: npt.DTypeLike) -> Buffer:
        """Zero-filled memory on the device."""
        buffer = self._new(shape, np.dtype(dtype))
        self._session.cuda.clear(buffer.pointer, size_of(buffer))
        self._session.cuda.wait()
        return buffer

    def _new(self, shape: Shape, dtype: np.dtype[Any]) -> Buffer:
        self._session.cuda.enter()
        memory = self._session.cuda.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return Buffer(memory.address, tuple(shape), dtype, self.device, memory)

    def upload(self, array: Array, buffer: Buffer | None = None) -> Buffer:
        """Copy to the device."""
        if buffer is not None and (buffer.shape != array.shape or buffer.dtype != array.dtype):
            raise InferenceError(f"expected {buffer.dtype} {buffer.shape} to upload, got {array.dtype} {array.shape}")
        target = self._new(array.shape, array.dtype) if buffer is None else buffer
        source = np.ascontiguousarray(array)
        cuda = self._session.cuda
        cuda.enter()
        cuda.to_device(target.pointer, source.ctypes.data, source.nbytes)
        cuda.wait()
        return target

    def download(self, buffer: Buffer) -> Array:
        """Copy to the host; of a view only what it shows."""
        if buffer.device == "cpu":
            return np.array(buffer.array())
        values: Array = np.empty(buffer.shape, buffer.dtype)
        cuda = self._session.cuda
        cuda.enter()
        cuda.to_host(values.ctypes.data, buffer.pointer, values.nbytes)
        cuda.wait()
        return values

    def binding(self) -> TrtBinding:
        """A new binding of this engine."""
        return TrtBinding(self)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once from host to host."""
        check_feeds(self.spec, feeds)
        binding = self.binding()
        for name, array in feeds.items():
            binding.bind(name, Buffer.of(np.ascontiguousarray(array)))
        shapes = self._output_shapes({name: feeds[name].shape for name in (tensor.name for tensor in self.spec.inputs)})
        results: dict[str, Array] = {}
        for tensor in self.spec.outputs:
            results[tensor.name] = np.empty(shapes[tensor.name], tensor.dtype)
            binding.bind(tensor.name, Buffer.of(results[tensor.name]))
        binding.run()
        return results

    def _output_shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        with self.lock:
            self._session.cuda.enter()
            recent_errors.clear()
            self._main.set_shapes(self.profile(inputs), inputs)
            return {tensor.name: self._main.shape(tensor.name) for tensor in self.spec.outputs}

    def profile(self, inputs: Mapping[str, Shape]) -> int:
        """The tightest optimisation profile that allows these shapes.

        Raises:
            InferenceError: None does, or the shapes contradict each other.
        """
        dims: dict[str, int] = {}
        for tensor in self.spec.inputs:
            if not tensor.fits(inputs[tensor.name], dims):
                raise InferenceError(
                    f"graph {self.spec.name}, input {tensor.name}: expected {list(tensor.shape)} with {dims}, "
                    f"found {list(inputs[tensor.name])}"
                )
        for index, name in self._profiles:
            ranges = self.spec.profiles[name]
            if all(ranges[dim].min <= size <= ranges[dim].max for dim, size in dims.items()):
                return index if self._engine.num_optimization_profiles > 1 else 0  # all sizes are fixed: one serves
        known = {
            name: {dim: f"{sizes.min}..{sizes.max}" for dim, sizes in ranges.items()}
            for name, ranges in self.spec.profiles.items()
        }
        raise InferenceError(
            f"graph {self.spec.name}: expected sizes that a profile of its engine allows, {known}, found {dims}; "
            "give shorter input, or export again with larger ranges and build again"
        )

    def execute(self, call: Call, tensors: Mapping[str, Bound]) -> None:
        """Run one call to its end."""
        self._session.cuda.enter()
        recent_errors.clear()
        for spec in self.spec.inputs:
            tensors[spec.name].fill()
        self._launch(call, tensors)
        self._session.cuda.wait()
        for spec in self.spec.outputs:
            tensors[spec.name].fetch()

    def _launch(self, call: Call, tensors: Mapping[str, Bound]) -> None:
        """Replay the call if it was captured, capture it if it comes again, else run it as it is."""
        if self._main.use_scratch():  # graphs hold the old address
            self._replays.clear()
        key = call.key()
        captured = self._replays.find(key)
        if captured is not None:
            captured[1].launch()
            return
        capture = self._replays.wants(key) and self._main.capturable()
        slot = Context(self._session, self._engine, self.spec.name) if capture else self._main
        slot.prepare(call)
        # Also before a capture: the first call after new shapes does work that must not be part of the graph.
        self._enqueue(slot, tensors)
        if capture:
            if slot.capturable():
                self._capture(slot, call, tensors)
            self._session.cuda.wait()  # a context that is not kept may go only when its work is done

    def _capture(self, slot: Context, call: Call, tensors: Mapping[str, Bound]) -> None:
        try:
            graph = self._session.cuda.capture(lambda: self._enqueue(slot, tensors))
        except InferenceError as error:
            _log.warning("graph %s is run without CUDA graphs from now on: %s", self.spec.name, error)
            self._replays = Replays(0)
            return
        _log.debug("graph %s: captured a call of profile %d", self.spec.name, call.profile)
        self._replays.keep(call.key(), (slot, graph))

    def _enqueue(self, slot: Context, tensors: Mapping[str, Bound]) -> None:
        """Copies in, the engine, copies out."""
        for spec in self.spec.inputs:
            tensors[spec.name].push(self._session.cuda)
        slot.enqueue()
        for spec in self.spec.outputs:
            tensors[spec.name].pull(self._session.cuda)

    def close(self) -> None:
        """Give back the engine's memory; bindings of it cannot be run afterwards."""
        with self.lock:
            self._session.cuda.enter()
            self._replays.clear()
            del self._main, self._engine
            self.staging.clear()


class TrtBinding:
    """Bound tensors of one call; see `engines.backend.Binding`."""

    def __init__(self, owner: TrtEngine) -> None:
        self._engine, self._spec = owner, owner.spec
        self._known = {tensor.name: tensor for tensor in (*owner.spec.inputs, *owner.spec.outputs)}
        self._buffers: dict[str, Buffer] = {}
        self._plan: tuple[int, Call, dict[str, Bound]] | None = None

    def bind(self, name: str, buffer: Buffer) -> None:
        """Bind a buffer of the host or the device; it is kept alive as long as it is bound.

        Raises:
            InferenceError: The graph has no such tensor, or it has another dtype.
        """
        tensor = self._known.get(name)
        if tensor is None:
            raise InferenceError(f"graph {self._spec.name}: expected one of {sorted(self._known)}, found {name!r}")
        if buffer.dtype != np.dtype(tensor.dtype):
            raise InferenceError(
                f"graph {self._spec.name}, {name}: expected a buffer of {tensor.dtype}, found {buffer.dtype}"
            )
        self._buffers[name] = buffer
        self._plan = None

    def run(self) -> None:
        """Run on what is bound."""
        with self._engine.lock:
            if self._plan is None or self._plan[0] != self._engine.staging.moves:
                self._plan = self._make_plan()
            self._engine.execute(*self._plan[1:])

    def _make_plan(self) -> tuple[int, Call, dict[str, Bound]]:
        missing = sorted(set(self._known) - set(self._buffers))
        if missing:
            raise InferenceError(f"graph {self._spec.name} failed: nothing is bound to {', '.join(missing[:8])}")
        inputs = {tensor.name: self._buffers[tensor.name].shape for tensor in self._spec.inputs}
        outputs = {tensor.name: self._buffers[tensor.name].shape for tensor in self._spec.outputs}
        profile = self._engine.profile(inputs)
        staging = self._engine.staging
        tensors = {name: staging.bound(name, self._buffers[name]) for name in self._known}
        call = Call(profile, inputs, outputs, {name: tensor.address for name, tensor in tensors.items()})
        return staging.moves, call, tensors


def _by_tightness(spec: GraphSpec) -> list[tuple[int, str]]:
    """Profiles with their index, the one that allows least first: an engine is fastest in the narrowest that fits."""

    def freedom(name: str) -> int:
        return int(np.prod([sizes.max - sizes.min + 1 for sizes in spec.profiles[name].values()], dtype=np.float64))

    return sorted(enumerate(spec.profiles), key=lambda item: freedom(item[1]))

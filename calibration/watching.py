"""Engines that show the activations inside their graphs while a bundle speaks.

In: an FP32 bundle and accumulators. Out: a `WatchingLoader` whose engines run the portable graphs on the CPU and add up
every watched value of every call. What is in memory is one call's activations. Does not decide what is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.calibration.accumulate import TensorAccumulator
from voxedge.calibration.instrument import Watched, instrument
from voxedge.calibration.statistics import Key
from voxedge.engines.backend import Array, Binding, Buffer, Engine, check_feeds
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InferenceError
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort import load_onnxruntime, physical_cores

Accumulators = dict[Key, TensorAccumulator]


class WatchingLoader(GraphLoader):
    """Gives engines that are watched."""

    def __init__(self, bundle: Bundle, accumulators: Accumulators, threads: int | None = None) -> None:
        """Prepare to run on the CPU.

        Args:
            bundle: An FP32 bundle.
            accumulators: Filled while the bundle speaks; missing ones are added.
            threads: CPU threads; None for the physical cores.

        Raises:
            BackendUnavailableError: ONNX Runtime is not installed.
        """
        super().__init__(bundle, LoadOptions(backend="cpu", threads=threads))
        self._accumulators, self._threads = accumulators, threads or physical_cores()

    def load(self, name: str) -> Engine:
        """The watched engine of a portable graph, loaded at the first call.

        Raises:
            BundleError: The bundle has no such graph, or ONNX Runtime cannot load it.
        """
        if name not in self._engines:
            self._engines[name] = _WatchedEngine(self.bundle, name, self._accumulators, self._threads)
        return self._engines[name]


class _WatchedEngine:
    """An engine on the CPU; see `engines.backend.Engine`."""

    device = "cpu"

    def __init__(self, bundle: Bundle, name: str, accumulators: Accumulators, threads: int) -> None:
        self.spec: GraphSpec = bundle.manifest.graph(name)
        model, watched = instrument(bundle.graph_path(self.spec))
        runtime = load_onnxruntime("cpu", self.spec.min_onnxruntime)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # lengths vary from call to call
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # most time goes into statistics
        folder = str(bundle.data_path(self.spec).parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own types, which have no common base
            raise BundleError(f"graph {name}: expected one that ONNX Runtime can load, it says: {error}") from error
        self._accumulators = [(value, _accumulator(accumulators, (name, value.name), value)) for value in watched]

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        return Buffer.of(np.zeros(shape, dtype))

    def upload(self, array: Array, buffer: Buffer | None = None) -> Buffer:
        if buffer is None:
            return Buffer.of(np.array(array, order="C"))
        np.copyto(buffer.array(), array)
        return buffer

    def download(self, buffer: Buffer) -> Array:
        values: Array = buffer.array().copy()
        return values

    def binding(self) -> Binding:
        return _WatchedBinding(self)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.spec, feeds)
        names = [output.name for output in self._session.get_outputs()]
        try:
            results: dict[str, Any] = dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # as above
            raise InferenceError(f"graph {self.spec.name} failed: {error}") from error
        for value, accumulator in self._accumulators:
            seen = feeds[value.name] if value.name in feeds else results[value.name]
            try:
                accumulator.add(seen.reshape(*seen.shape[:-2], -1) if value.heads else seen)
            except InferenceError as error:
                raise InferenceError(f"graph {self.spec.name}, {value.name}: {error}") from error
        return {tensor.name: results[tensor.name] for tensor in self.spec.outputs}

    def close(self) -> None:
        self._session = None


class _WatchedBinding:
    """A binding; see `engines.backend.Binding`."""

    def __init__(self, engine: _WatchedEngine) -> None:
        self._engine = engine
        self._bound: dict[str, Buffer] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        self._bound[name] = buffer

    def run(self) -> None:
        spec = self._engine.spec
        results = self._engine.run({tensor.name: self._bound[tensor.name].array() for tensor in spec.inputs})
        for name, array in results.items():
            np.copyto(self._bound[name].array(), array)


def _accumulator(accumulators: Accumulators, key: Key, value: Watched) -> TensorAccumulator:
    return accumulators.setdefault(key, TensorAccumulator(value.axis))

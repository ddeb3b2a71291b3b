"""Run a bundle's graphs on recorded calls, on any backend.

In: a bundle, a backend, calls as the portable flavour takes them. Out: its outputs. One engine is in memory at a time.
Beyond the CPU only the portable graphs are run: TensorRT takes no others, and the caches of a recorded call are on the
host, which the fused graphs of ONNX Runtime cannot extend in place from a GPU. Does not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from voxedge.calibration.cache_scales import has_int8_cache, stored_scales
from voxedge.calibration.replay import Feeds, replay
from voxedge.engines.backend import Array, Engine
from voxedge.engines.bundle import Bundle
from voxedge.engines.loader import Backend, GraphLoader, LoadOptions
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort import OrtEngine, OrtOptions, load_onnxruntime

Outputs = list[dict[str, Array]]
"""Of each call, by name."""


class GraphRunner:
    """Runs graphs of one bundle on one backend."""

    def __init__(self, bundle: Bundle, backend: Backend = "cpu") -> None:
        """Find the backend.

        Raises:
            BackendUnavailableError: It is not there.
            EngineMismatchError: TensorRT was asked for, and a graph has no engine that fits.
        """
        self._bundle, self.backend = bundle, backend
        self._loader: GraphLoader | None = None
        if backend == "cuda":
            load_onnxruntime("cuda")
        if backend in ("tensorrt", "tensorrt_rtx"):
            self._loader = GraphLoader(bundle, LoadOptions(backend, "staged"))
            self._loader.require(*(graph.name for graph in bundle.manifest.graphs if graph.flavour == "portable"))

    def __enter__(self) -> GraphRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the backend back."""
        if self._loader is not None:
            self._loader.close()

    def specs(self, name: str) -> list[GraphSpec]:
        """The flavours of a graph that this backend can run on recorded calls, the portable one first."""
        found = [graph for graph in self._bundle.manifest.graphs if graph.name == name]
        found = [graph for graph in found if self.backend == "cpu" or graph.flavour == "portable"]
        return sorted(found, key=lambda graph: graph.flavour != "portable")

    def run(self, spec: GraphSpec, calls: Sequence[Feeds]) -> Outputs:
        """Load one graph, run all calls, let go of it.

        Raises:
            BundleError: The graph cannot be loaded.
            InferenceError: A call fails.
            InputError: The calls belong to another graph.
        """
        if self._loader is None:
            path = self._bundle.graph_path(spec)
            return run_calls(path, spec, calls, "cuda" if self.backend == "cuda" else "cpu")
        try:
            return _replay_all(self._loader.load(spec.name), self._bundle.graph_path(spec), calls)
        finally:
            self._loader.release(spec.name)


def run_calls(path: Path, spec: GraphSpec, calls: Sequence[Feeds], device: str = "cpu") -> Outputs:
    """Load one graph on ONNX Runtime, run all calls, let go of it.

    Args:
        path: The .onnx file.
        spec: What it takes and gives.
        calls: What it is given.
        device: `cpu` or `cuda`.

    Raises:
        BundleError: The graph cannot be loaded.
        InferenceError: A call fails.
        InputError: The calls belong to another graph.
    """
    engine = OrtEngine(path, spec, OrtOptions(device="cuda" if device == "cuda" else "cpu"))
    try:
        return _replay_all(engine, path, calls)
    finally:
        engine.close()


def _replay_all(engine: Engine, path: Path, calls: Sequence[Feeds]) -> Outputs:
    scales = stored_scales(path) if has_int8_cache(engine.spec) else None
    return [replay(engine, feeds, scales) for feeds in calls]

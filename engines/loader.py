"""Which backend runs a bundle's graphs, and which graphs are in memory.

In: a bundle and what the user asked for. Out: engines by graph name. Asking for a backend and not getting it is an
error; only `auto` chooses, and it says what it chose. Does not run anything.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voxedge.engines.backend import Engine
from voxedge.engines.bundle import ENGINES_FOLDER, Bundle
from voxedge.engines.errors import BackendUnavailableError, EngineMismatchError
from voxedge.engines.manifest import GraphSpec, Manifest
from voxedge.engines.memory import give_back_memory
from voxedge.engines.ort import OrtEngine, OrtOptions, load_onnxruntime
from voxedge.engines.session_cache import SessionCache
from voxedge.engines.stamps import EngineFlavour

if TYPE_CHECKING:
    from voxedge.engines.trt.loading import EngineSource

logger = logging.getLogger(__name__)

Backend = Literal["cpu", "cuda", "tensorrt", "tensorrt_rtx"]
BackendName = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt_rtx"]
MemoryPlan = Literal["auto", "resident", "staged"]

RESIDENT_SHARE = 0.6
"""Weights may take this part of the free memory before `auto` stages them; activations and caches need the rest."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user asked for."""

    backend: BackendName = "auto"
    memory: MemoryPlan = "auto"
    """`staged` holds only the graphs of the stage that is running."""
    threads: int | None = None
    """CPU threads; None means the physical cores."""
    session_cache: bool = True
    """Keep graphs packed for this processor in the user's cache folder, see `engines.session_cache`."""
    codec: Path | None = None
    """Bundle of the codec, for a system that has none of its own."""


class GraphLoader:
    """Loads graphs when they are first needed, and lets go of them when a stage ends."""

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        """Choose the backend; no graph is loaded yet.

        Raises:
            BackendUnavailableError: The backend that was asked for is not there.
        """
        self.bundle, self.options = bundle, options
        self._source = _engine_source(bundle, options.backend)
        self.backend: Backend = choose_backend(options.backend) if self._source is None else self._source.flavour
        self._options = OrtOptions(device="cuda" if self.backend == "cuda" else "cpu", threads=options.threads)
        self.staged = options.memory == "staged" or (options.memory == "auto" and self._too_large())
        self._sessions = SessionCache() if options.session_cache else None
        self._engines: dict[str, Engine] = {}

    def _too_large(self) -> bool:
        if self._source is not None:
            return self._source.engine_bytes() > RESIDENT_SHARE * self._source.free_bytes()
        return _too_large(self.bundle, self.backend)

    def has(self, name: str) -> bool:
        """Whether the bundle has a graph of this name."""
        return any(graph.name == name for graph in self.bundle.manifest.graphs)

    def require(self, *names: str) -> None:
        """Check that these graphs can be run, before the first of them is.

        Raises:
            EngineMismatchError: An engine is missing or stale; all of them are named.
        """
        if self._source is not None:
            self._source.require(names)

    def load(self, name: str) -> Engine:
        """The engine of a graph, loaded at the first call.

        Raises:
            BundleError: The bundle has no such graph, or its file is damaged.
            EngineMismatchError: TensorRT was asked for, and the graph has no engine that fits.
        """
        if name not in self._engines and self._source is not None:
            self._engines[name] = self._source.load(name)
        if name not in self._engines:
            spec = choose_graph(self.bundle.manifest, name, self.backend)
            logger.info("loading %s (%s, %s) on %s", name, spec.flavour, spec.precision, self.backend)
            self._engines[name] = self._open(spec)
        return self._engines[name]

    def _open(self, spec: GraphSpec) -> Engine:
        if self._sessions is None:
            return OrtEngine(self.bundle.graph_path(spec), spec, self._options)
        return self._sessions.open(self.bundle, spec, self._options)

    def release(self, *names: str) -> None:
        """Unload graphs when memory is staged; callers must have dropped every binding of theirs."""
        if self.staged:
            self._unload(names)

    def close(self) -> None:
        """Unload everything."""
        self._unload(tuple(self._engines))
        if self._source is not None:
            self._source.close()

    def _unload(self, names: tuple[str, ...]) -> None:
        for name in names:
            engine = self._engines.pop(name, None)
            if engine is not None:
                engine.close()
        give_back_memory()


def choose_graph(manifest: Manifest, name: str, backend: Backend) -> GraphSpec:
    """The flavour of a graph that ONNX Runtime runs: its own where the device has the fused attention, else portable.

    CUDA has it for FP16 alone. Others it leaves to the CPU, and whole caches would go there and back at every step
    (H100, ONNX Runtime 1.31). Graphs that share a cache have it in one number format, so they get one flavour.

    Raises:
        BundleError: There is no such graph.
    """
    fused = manifest.graph(name, "ort")
    caches = {tensor.dtype for tensor in fused.inputs if tensor.name.startswith("past.")}
    if backend == "cuda" and fused.flavour == "ort" and caches != {"float16"}:
        return manifest.graph(name, "portable")
    return fused


def _engine_source(bundle: Bundle, name: BackendName) -> EngineSource | None:
    """TensorRT where it was asked for, or where `auto` finds that all of a bundle's engines fit this machine."""
    if name in ("cpu", "cuda"):
        return None
    from voxedge.engines.trt.api import TARGETS  # it is not needed on a CPU
    from voxedge.engines.trt.loading import EngineSource

    if name == "tensorrt" or name == "tensorrt_rtx":
        return EngineSource(bundle, name)
    for flavour, target in TARGETS.items():
        if bundle.path(f"{ENGINES_FOLDER}/{target}").is_dir():
            source = _fitting_source(bundle, flavour)
            if source is not None:
                return source
    return None


def _fitting_source(bundle: Bundle, flavour: EngineFlavour) -> EngineSource | None:
    from voxedge.engines.trt.loading import EngineSource

    try:
        source = EngineSource(bundle, flavour)
    except BackendUnavailableError as error:
        logger.info("backend auto: not %s (%s)", flavour, error)
        return None
    try:
        source.require(graph.name for graph in source.graphs())
    except EngineMismatchError as error:
        logger.warning("backend auto: not %s: %s", flavour, error)
        source.close()
        return None
    logger.info("backend auto: %s", flavour)
    return source


def choose_backend(name: BackendName) -> Literal["cpu", "cuda"]:
    """The device that ONNX Runtime runs on.

    Raises:
        BackendUnavailableError: What was asked for cannot run here.
    """
    if name in ("cpu", "cuda"):
        load_onnxruntime(name)
        return "cuda" if name == "cuda" else "cpu"
    try:
        load_onnxruntime("cuda")
    except BackendUnavailableError as error:
        load_onnxruntime("cpu")
        logger.info("backend auto: cpu (%s)", error)
        return "cpu"
    logger.info("backend auto: cuda")
    return "cuda"


def available_bytes() -> int | None:
    """Memory that can be taken without swapping; None where the system does not say."""
    source = Path("/proc/meminfo")
    if not source.is_file():
        return None
    for line in source.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _too_large(bundle: Bundle, backend: str) -> bool:
    available = available_bytes()
    if backend != "cpu" or available is None:
        return False
    weights = {graph.data for graph in bundle.manifest.graphs}
    needed = sum(bundle.manifest.files[path].size for path in weights)
    return needed > RESIDENT_SHARE * available

"""Which backend runs a bundle's graphs, and which graphs are in memory.

In: a bundle and what the user asked for. Out: engines by graph name. Asking for a backend and not getting it is an
error; only `auto` chooses, and it says what it chose. Does not run anything.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voxedge.engines.backend import Engine
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError
from voxedge.engines.ort import OrtEngine, OrtOptions, load_onnxruntime

logger = logging.getLogger(__name__)

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


class GraphLoader:
    """Loads graphs when they are first needed, and lets go of them when a stage ends."""

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        """Choose the backend; no graph is loaded yet.

        Raises:
            BackendUnavailableError: The backend that was asked for is not there.
        """
        self.bundle = bundle
        self.backend = choose_backend(options.backend)
        self.staged = options.memory == "staged" or (options.memory == "auto" and _too_large(bundle, self.backend))
        self._options = OrtOptions(device=self.backend, threads=options.threads)
        self._engines: dict[str, Engine] = {}

    def has(self, name: str) -> bool:
        """Whether the bundle has a graph of this name."""
        return any(graph.name == name for graph in self.bundle.manifest.graphs)

    def load(self, name: str) -> Engine:
        """The engine of a graph, loaded at the first call.

        Raises:
            BundleError: The bundle has no such graph, or its file is damaged.
        """
        if name not in self._engines:
            spec = self.bundle.manifest.graph(name, "ort")
            logger.info("loading %s (%s, %s) on %s", name, spec.flavour, spec.precision, self.backend)
            self._engines[name] = OrtEngine(self.bundle.graph_path(spec), spec, self._options)
        return self._engines[name]

    def release(self, *names: str) -> None:
        """Unload graphs when memory is staged; callers must have dropped every binding of theirs."""
        if self.staged:
            self._unload(names)

    def close(self) -> None:
        """Unload everything."""
        self._unload(tuple(self._engines))

    def _unload(self, names: tuple[str, ...]) -> None:
        for name in names:
            engine = self._engines.pop(name, None)
            if engine is not None:
                engine.close()
        give_back_memory()


def choose_backend(name: BackendName) -> Literal["cpu", "cuda"]:
    """The backend that runs.

    Raises:
        BackendUnavailableError: What was asked for cannot run here.
    """
    if name in ("tensorrt", "tensorrt_rtx"):
        raise BackendUnavailableError(
            f"expected a backend that this version can speak with, found {name}: `voxedge build` compiles its engines, "
            "running them is not there yet; use --backend cpu or cuda"
        )
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


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps up to a gigabyte of a closed session otherwise."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


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

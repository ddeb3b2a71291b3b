"""A bundle's engines on this machine: compared with what is needed here, then opened.

In: a bundle and which TensorRT. Out: `TrtEngine`s, or an `EngineMismatchError` that names every engine that is missing
or stale, why, and the command that builds it. Nothing is deserialised before its stamp was compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, EngineMismatchError
from voxedge.engines.gpu import available_memory_bytes
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.stamps import EngineFlavour, build_command, find_differences, read_stamp
from voxedge.engines.trt.api import TARGETS, load
from voxedge.engines.trt.builder import engine_path
from voxedge.engines.trt.cuda import open_cuda
from voxedge.engines.trt.host import find_host
from voxedge.engines.trt.runner import DEFAULT_OPTIONS, TrtEngine, TrtOptions
from voxedge.engines.trt.session import Session

_log = logging.getLogger(__name__)


class EngineSource:
    """Opens the engines of one bundle."""

    def __init__(self, bundle: Bundle, flavour: EngineFlavour, options: TrtOptions = DEFAULT_OPTIONS) -> None:
        """Find the library and the device; no engine is opened yet.

        Raises:
            BackendUnavailableError: The library, the driver or the device is not there.
        """
        self.flavour = flavour
        self._bundle, self._options = bundle, options
        self._target = TARGETS[flavour]
        try:
            library = load(flavour)
            cuda = open_cuda()
            self._host = find_host(library)
        except BackendUnavailableError as error:
            raise BackendUnavailableError(
                f"{flavour} cannot run here: {error}; or ask for --backend cpu, which needs neither"
            ) from error
        self._session = Session(library, cuda)

    def graphs(self) -> tuple[GraphSpec, ...]:
        """The graphs that can have an engine."""
        return tuple(graph for graph in self._bundle.manifest.graphs if graph.flavour == "portable")

    def differences(self, names: Iterable[str]) -> list[str]:
        """Why engines cannot be used, one sentence for each; empty when all of these graphs can be run."""
        found = []
        for name in names:
            graph = self._bundle.manifest.graph(name)
            reasons = find_differences(self._path(graph), self._host.stamp(self._bundle, graph, {}))
            found += [f"{name}: {'; '.join(reasons)}"] if reasons else []
        return found

    def require(self, names: Iterable[str]) -> None:
        """Refuse to go on unless all of these graphs can be run.

        Raises:
            EngineMismatchError: One or more are missing, damaged or built for something else.
        """
        found = self.differences(names)
        if found:
            listed = "".join(f"\n  {line}" for line in found)
            raise EngineMismatchError(
                f"expected engines of {self._host.library.flavour} {self._host.library.version} for this device, "
                f"found none that fits for:{listed}\nType: {build_command(self._bundle.root, self._target)}"
            )

    def load(self, name: str) -> TrtEngine:
        """Open the engine of a graph.

        Raises:
            EngineMismatchError: It is missing, damaged or built for something else.
            InferenceError: There is no room for it.
        """
        self.require([name])
        graph = self._bundle.manifest.graph(name)
        path = self._path(graph)
        record = read_stamp(path)
        stripped = record is not None and record.stamp.options.get("weights") == "stripped"
        weights = self._bundle.graph_path(graph) if stripped else None
        _log.info("opening %s (%s) on %s", path.name, graph.precision, self._host.library.flavour)
        return TrtEngine(self._session, path, graph, self._options, weights)

    def _path(self, graph: GraphSpec) -> Path:
        return engine_path(self._bundle, graph, self._target)

    def engine_bytes(self) -> int:
        """Size of all engine files that are there."""
        paths = (self._path(graph) for graph in self.graphs())
        return sum(path.stat().st_size for path in paths if path.is_file())

    def free_bytes(self) -> int:
        """Memory that engines can take."""
        cuda = self._session.cuda
        if cuda.gpu.integrated:
            return available_memory_bytes() or cuda.free_bytes()
        return cuda.free_bytes()

    def close(self) -> None:
        """Give the device back; engines must have been closed."""
        self._session.close()

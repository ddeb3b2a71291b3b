"""Keep what the graphs of a bundle were really given while it spoke.

In: a bundle that speaks through a `RecordingLoader`. Out: a `Recording` with the inputs of a few calls of every graph,
in a form that does not depend on the flavour, so that another flavour or precision can be given the same.
Engines stay as they are: they and their bindings are wrapped. Works on the CPU, where a bound buffer can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy.typing as npt

from voxedge.calibration.replay import portable_feeds
from voxedge.engines.backend import Array, Binding, Buffer, Engine
from voxedge.engines.bundle import Bundle
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.engines.manifest import GraphSpec

Feeds = Mapping[str, Array]


class Recording:
    """Inputs of calls 0, 1, 2, 4, 8, ... of every graph, at most `limit` of each.

    Doubling steps reach far into an utterance, to long pasts and low noise levels, with little memory.
    """

    def __init__(self, limit: int = 6) -> None:
        self._limit = limit
        self._seen: dict[str, int] = {}
        self._calls: dict[str, list[Feeds]] = {}

    def calls(self, graph: str) -> tuple[Feeds, ...]:
        """What was kept of a graph's calls, in their order; the inputs are those of its portable flavour."""
        return tuple(self._calls.get(graph, ()))

    def add(self, graph: str, feeds: Feeds) -> None:
        """Keep one call; the arrays must not change any more."""
        self._calls.setdefault(graph, []).append(feeds)

    def extend(self, other: Recording) -> None:
        """Keep what another recording has, too."""
        for graph, calls in other._calls.items():
            self._calls.setdefault(graph, []).extend(calls)

    def change(self, graph: str, change: Callable[[Feeds], Feeds]) -> None:
        """Put other calls of a graph in the place of those that were kept."""
        self._calls[graph] = [change(feeds) for feeds in self.calls(graph)]

    def wants(self, graph: str) -> bool:
        """Count a call of a graph and say whether to keep it."""
        number = self._seen.get(graph, 0)
        self._seen[graph] = number + 1
        return number & (number - 1) == 0 and len(self.calls(graph)) < self._limit


class RecordingLoader(GraphLoader):
    """Gives engines that record what they are given."""

    recording: Recording
    """Where to; another one may be put in its place before a graph is loaded again."""

    def __init__(self, bundle: Bundle, recording: Recording, codec: Path | None = None) -> None:
        """Prepare to run on the CPU.

        Args:
            bundle: Whose graphs are recorded.
            recording: Where to.
            codec: Bundle of the codec, for a system without one of its own; None for the one beside it.

        Raises:
            BackendUnavailableError: ONNX Runtime is not installed.
        """
        super().__init__(bundle, LoadOptions(backend="cpu", codec=codec))
        self.recording = recording

    def load(self, name: str) -> Engine:
        """The recorded engine of a graph; errors as for `GraphLoader.load`."""
        return _RecordedEngine(super().load(name), self.recording)


class _RecordedEngine:
    """An engine; see `engines.backend.Engine`."""

    def __init__(self, engine: Engine, recording: Recording) -> None:
        self._engine, self._recording = engine, recording

    @property
    def spec(self) -> GraphSpec:
        return self._engine.spec

    @property
    def device(self) -> str:
        return self._engine.device

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        return self._engine.allocate(shape, dtype)

    def upload(self, array: Array, buffer: Buffer | None = None) -> Buffer:
        return self._engine.upload(array, buffer)

    def download(self, buffer: Buffer) -> Array:
        return self._engine.download(buffer)

    def binding(self) -> Binding:
        return _RecordedBinding(self._engine, self._recording)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        if self._recording.wants(self.spec.name):
            self._recording.add(self.spec.name, portable_feeds(self.spec, feeds))
        return self._engine.run(feeds)

    def close(self) -> None:
        self._engine.close()


class _RecordedBinding:
    """A binding; see `engines.backend.Binding`."""

    def __init__(self, engine: Engine, recording: Recording) -> None:
        self._spec, self._recording = engine.spec, recording
        self._binding = engine.binding()
        self._bound: dict[str, Buffer] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        self._binding.bind(name, buffer)
        self._bound[name] = buffer

    def run(self) -> None:
        name = self._spec.name
        if self._recording.wants(name):  # before the run, which writes into the caches
            given = {tensor.name: self._bound[tensor.name].array() for tensor in self._spec.inputs}
            self._recording.add(name, portable_feeds(self._spec, given))
        self._binding.run()

"""Several sequences of one MOSS-TTS in step: their next rows are one call, so that weights are read once for all.

In: how graphs are loaded, and how many sequences. Out: a `MossModel` for each of them, to be used by a thread of its
own. A call that all can share waits until every sequence that still runs has come to one; prompts are read alone. Each
sequence has rows of its own in one cache and is as long as it is: nothing is padded. Needs the graph of ONNX Runtime's
fused attention, which takes a length for each row. Draws nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Buffer, Engine
from voxedge.engines.errors import ConfigError
from voxedge.runtime.decoder import CacheShape, KvCache
from voxedge.runtime.frame_step import FrameStep
from voxedge.runtime.systems.moss_grid import Grid, TableRows
from voxedge.runtime.systems.moss_model import BACKBONE, EMBEDDINGS, FRAME, LOCAL_TEXT, TEXT_HEAD, Float, MossModel
from voxedge.runtime.systems.moss_settings import MossSettings

Kind = Literal["step", "text", "frame", "embed"]
Arrays = dict[str, npt.NDArray[Any]]

_RULES = ("temperature", "top_p", "top_k")  # inputs of a frame graph that all rows of a call share


@dataclass(slots=True, eq=False)
class _Call:
    """What one sequence waits for."""

    lane: int
    kind: Kind
    given: Arrays
    """Rows of a batch of one."""
    made: Arrays | None = None
    error: BaseException | None = None

    @property
    def company(self) -> tuple[Any, ...]:
        """Calls with the same value can be one."""
        rules = [self.given[name].tobytes() for name in _RULES if name in self.given]
        return (self.kind, *rules)


class Lockstep:
    """The meeting place of the sequences."""

    def __init__(self, settings: MossSettings, load: Callable[[str], Engine], lanes: int) -> None:
        """Load the backbone.

        Args:
            settings: Of the model.
            load: Gives the engine of a graph by its name.
            lanes: How many sequences.

        Raises:
            ConfigError: The backbone's graph cannot take sequences of several lengths.
        """
        self._settings, self._load = settings, load
        self._backbone = load(BACKBONE)
        self._shape = CacheShape.of(self._backbone.spec)
        if self._shape.flavour != "ort":
            raise ConfigError(
                f"expected a graph that takes sequences of several lengths, found the {self._shape.flavour} one, which "
                "has one length for all (ONNX Runtime's needs heads whose width is a multiple of 16); speak one text "
                "after the other with together=1"
            )
        self._turn = threading.Condition()
        self._running, self._waiting = lanes, list[_Call]()
        self._cache = KvCache(self._backbone, self._shape, 1, lanes)
        self.models = [LaneModel(settings, load, self, lane) for lane in range(lanes)]
        self._step = _Step(self._backbone, self._cache, lanes)

    def call(self, lane: int, kind: Kind, given: Arrays) -> Arrays:
        """Wait for the others, then be run with those that want the same."""
        call = _Call(lane, kind, given)
        with self._turn:
            self._waiting.append(call)
            self._meet()
            self._turn.wait_for(lambda: call.made is not None or call.error is not None)
        if call.error is not None:
            raise call.error
        assert call.made is not None  # noqa: S101 - one of both is there
        return call.made

    def leave(self) -> None:
        """One sequence has ended; the others no longer wait for it."""
        with self._turn:
            self._running -= 1
            self._meet()

    def part(self, lane: int) -> KvCache:
        """Of the cache, for one sequence."""
        return self._cache.lane(lane)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work on the cache while nobody else does."""
        with self._turn:
            yield

    def open(self, lane: int, positions: int) -> KvCache:
        """Rows of the cache for a new sequence of up to `positions` rows.

        Raises:
            InputError: The graphs cannot address so many positions.
        """
        with self._turn:
            needed = positions + 1  # a sequence that only looks on writes behind its end
            if self._cache.capacity < needed:
                self._grow(needed)
            view = self._cache.lane(lane)
            self.models[lane].rows = view
            return view

    def _grow(self, positions: int) -> None:
        """A longer cache with what the old one holds; all others wait meanwhile, or have not come yet."""
        old, engine = self._cache, self._backbone
        self._cache = KvCache(engine, self._shape, positions, len(self.models))
        for name, buffer in self._cache.buffers.items():
            values = engine.download(buffer)
            values[:, :, : old.capacity] = engine.download(old.buffers[name])  # [B, G, M, D]
            engine.upload(values, buffer)
        for model in self.models:
            model.rows = self._cache.lane(model.lane, model.rows.length)
        self._step = _Step(engine, self._cache, len(self.models))

    def _meet(self) -> None:
        """Run what is waited for when nobody is missing."""
        if not self._waiting or len(self._waiting) < self._running:
            return
        groups: dict[tuple[Any, ...], list[_Call]] = {}
        for call in sorted(self._waiting, key=lambda call: call.lane):
            groups.setdefault(call.company, []).append(call)
        self._waiting = []
        for calls in groups.values():
            try:
                self._run(calls)
            except Exception as error:  # whoever waits must hear of it
                for call in calls:
                    call.error = error
        self._turn.notify_all()

    def _run(self, calls: Sequence[_Call]) -> None:
        kind = calls[0].kind
        if kind == "step":
            self._step.run(calls, [model.rows for model in self.models])
            return
        names = {"frame": FRAME, "embed": EMBEDDINGS, "text": TEXT_HEAD}
        if kind == "text" and self._settings.kind != "delay":
            names["text"] = LOCAL_TEXT
        given = {
            name: array if name in _RULES else np.concatenate([call.given[name] for call in calls])
            for name, array in calls[0].given.items()
        }
        made = self._load(names[kind]).run(given)
        for place, call in enumerate(calls):
            call.made = {name: array[place : place + 1] for name, array in made.items()}


class _Step:
    """The backbone's call for one new row of each sequence, bound to the whole cache."""

    def __init__(self, engine: Engine, cache: KvCache, lanes: int) -> None:
        self._binding = engine.binding()
        spec = engine.spec
        heads = [tensor for tensor in spec.outputs if not tensor.name.startswith("present.")]
        self._made = {tensor.name: np.zeros(tensor.sizes({"batch": lanes}), np.float32) for tensor in heads}  # [B, C]
        self._embeds = np.zeros((lanes, 1, int(spec.inputs[0].shape[2])), np.float32)
        self._lengths, self._total = np.zeros(lanes, np.int32), np.zeros(1, np.int32)
        small = {
            spec.inputs[0].name: self._embeds,
            "logits_at": np.zeros(lanes, np.int32),
            "lengths": self._lengths,
            "total": self._total,
            **self._made,
        }
        for name, array in small.items():
            self._binding.bind(name, Buffer.of(array))
        for name, buffer in cache.buffers.items():
            self._binding.bind(f"past.{name}", buffer)
            self._binding.bind(f"present.{name}", buffer)

    def run(self, calls: Sequence[_Call], rows: Sequence[KvCache]) -> None:
        """Append a row to the sequences that ask for it; the others' next row is written over later."""
        for lane, row in enumerate(rows):
            self._lengths[lane] = row.length
        self._total[0] = int(self._lengths.max()) + 1
        for call in calls:
            self._embeds[call.lane, 0] = call.given["embeds"][0]
        self._binding.run()
        for call in calls:
            rows[call.lane].length += 1
            call.made = {name: array[call.lane : call.lane + 1].copy() for name, array in self._made.items()}


class LaneModel(MossModel):
    """The model of one sequence among several."""

    def __init__(self, settings: MossSettings, load: Callable[[str], Engine], lockstep: Lockstep, lane: int) -> None:
        super().__init__(settings, load)
        self.lane = lane
        self.rows = lockstep.part(lane)
        self._lockstep = lockstep
        self._made: Arrays = {}

    def start(self, positions: int, channels: int | None = None) -> None:
        """Begin a sequence; see `MossModel.start`."""
        self._lockstep.open(self.lane, positions)
        self._table = TableRows(self.settings, channels)

    def embed(self, grid: Grid) -> Float:
        """Embeddings [S, d] of rows; a single one is made with those of the others."""
        if len(grid) > 1:
            return super().embed(grid)
        given = {"ids": np.ascontiguousarray(grid[:, :1]), "rows": self._table.of(grid)[None]}
        embeds: Float = self._lockstep.call(self.lane, "embed", given)["embeds"][0]
        return embeds

    def append(self, embeds: Float) -> Float:
        """Run embeddings [S, d]; a prompt alone, a single row with those of the others."""
        if len(embeds) > 1:
            with self._lockstep.alone():
                self._backbone.forward(embeds, self.rows)
                self._made = {name: array.copy() for name, array in self._backbone.heads.items()}
        else:
            self._made = self._lockstep.call(self.lane, "step", {"embeds": embeds})
        last: Float = next(iter(self._made.values()))[0]
        return last

    @property
    def state(self) -> Float:
        """The backbone's state [d] behind the last row."""
        state: Float = self._made["state"][0]
        return state

    def text_logits(self) -> Float:
        """Logits [V] of the text channel behind the last row."""
        logits: Float = self._lockstep.call(self.lane, "text", {"state": self._made["state"]})["logits"][0]
        return logits

    @property
    def frame(self) -> FrameStep:
        """The frame step of a local model."""
        if self._frame is None:
            self._frame = _LaneFrame(self._load(FRAME), self._lockstep, self.lane)
        return self._frame


class _LaneFrame(FrameStep):
    """A frame step that is run with those of the others."""

    def __init__(self, engine: Engine, lockstep: Lockstep, lane: int) -> None:
        super().__init__(engine)
        self._lockstep, self._lane = lockstep, lane

    def run(self) -> None:
        """Make one frame of what is in `given`."""
        made = self._lockstep.call(self._lane, "frame", dict(self.given))
        for name, array in made.items():
            np.copyto(self.made[name], array)

"""The graphs of one MOSS-TTS model over one cache: rows in, states and logits out.

In: rows of a grid. Out: the backbone's state, its logits, and those of the text channel. Loads graphs when they are
first needed; draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Engine
from voxedge.engines.errors import BundleError
from voxedge.runtime.decoder import Decoder, KvCache
from voxedge.runtime.frame_step import FrameStep
from voxedge.runtime.systems.moss_grid import Grid, TableRows
from voxedge.runtime.systems.moss_settings import MossKind, MossSettings

Float = npt.NDArray[np.float32]

EMBEDDINGS, BACKBONE, TEXT_HEAD, LOCAL_TEXT, FRAME = "embeddings", "backbone", "text_head", "local_text", "local_frame"
GRAPHS: dict[MossKind, tuple[str, ...]] = {
    "delay": (EMBEDDINGS, BACKBONE, TEXT_HEAD),
    "local": (EMBEDDINGS, BACKBONE, LOCAL_TEXT, FRAME),
    "local_v15": (EMBEDDINGS, BACKBONE, FRAME),
}


class MossModel:
    """One loaded model with the cache of one sequence."""

    def __init__(self, settings: MossSettings, load: Callable[[str], Engine]) -> None:
        self.settings = settings
        self._load = load
        self._embeddings = load(EMBEDDINGS)
        self._backbone = Decoder(load(BACKBONE))
        self._block = self._embeddings.spec.profiles["main"]["new"].max
        self._cache: KvCache | None = None
        self._table = TableRows(settings)
        self._frame: FrameStep | None = None

    def start(self, positions: int, channels: int | None = None) -> None:
        """Begin a sequence of up to `positions` rows; the last cache is used again where it is large enough.

        Args:
            positions: Rows of prompt and speech.
            channels: Audio channels that are embedded; None for all.

        Raises:
            InputError: The graphs cannot address so many positions.
        """
        backbone = self._backbone
        if self._cache is None or self._cache.capacity < positions:
            self._cache = KvCache(backbone.engine, backbone.cache_shape, positions)
        self._cache.clear()
        self._table = TableRows(self.settings, channels)

    def embed(self, grid: Grid) -> Float:
        """Embeddings [S, d] of rows, a block at a time."""
        ids, rows = np.ascontiguousarray(grid[:, 0]), self._table.of(grid)
        parts = [
            self._embeddings.run(
                {"ids": ids[None, start : start + self._block], "rows": rows[None, start : start + self._block]}
            )["embeds"][0]
            for start in range(0, len(grid), self._block)
        ]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def embed_text(self, token: int) -> Float:
        """Embedding [d] of a text token without audio."""
        row = np.zeros((1, 1 + self.settings.channels), np.int32)
        rows = TableRows(self.settings, 0).of(row)
        embeds: Float = self._embeddings.run({"ids": np.array([[token]], np.int32), "rows": rows[None]})["embeds"][0, 0]
        return embeds

    def append(self, embeds: Float) -> Float:
        """Run embeddings [S, d]; gives logits or the state behind the last, valid until the next call.

        Raises:
            InputError: The cache is full.
        """
        if self._cache is None:
            raise BundleError("expected a sequence to be started, found none")
        return self._backbone.forward(embeds, self._cache)

    @property
    def state(self) -> Float:
        """The backbone's state [d] behind the last row."""
        return self._backbone.state

    def text_logits(self) -> Float:
        """Logits [V] of the text channel behind the last row."""
        name = TEXT_HEAD if self.settings.kind == "delay" else LOCAL_TEXT
        logits: Float = self._load(name).run({"state": self.state[None]})["logits"][0]
        return logits

    @property
    def frame(self) -> FrameStep:
        """The frame step of a local model."""
        if self._frame is None:
            self._frame = FrameStep(self._load(FRAME))
        return self._frame

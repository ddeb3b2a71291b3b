"""Frames out of rows, as soon as they are whole, without what the model draws beyond the end of its speech.

In: rows one after the other. Out: frames [1, n] of the channels in use. In the delay model frame f is whole with row
f + n - 1; in the local ones every row is a frame.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from voxedge.runtime.audio import FinishReason
from voxedge.runtime.systems.moss_grid import Frames, Grid, Row, undelayed
from voxedge.runtime.systems.moss_settings import MossSettings


class FrameCollector:
    """Collects the frames of one utterance.

    Two things that the references make sound of are left out: the frame that the delay model draws with its first delay
    slot, and the codes in the row by which local v1 stops. Both lie behind the decision to end.
    """

    def __init__(self, settings: MossSettings, channels: int | None = None) -> None:
        """Collect the first channels; None for all."""
        self.finish_reason: FinishReason | None = None
        self._settings = settings
        self._used = settings.channels if channels is None else channels
        self._delay = settings.kind == "delay"
        self._rows: list[Row] = []
        self._frames: list[Frames] = []
        self._prefix = 0

    def start(self, prompt: Grid, prefix: int) -> Iterator[Frames]:
        """Take the prefix of `prefix` frames from the end of a prompt; gives those that are whole already."""
        self._prefix = prefix
        for row in prompt[-prefix:]:
            yield from self.push(row)

    def push(self, row: Row) -> Iterator[Frames]:
        """Take a row; gives the frame that becomes whole, if it is speech."""
        if not self._delay:
            if row[0] != self._settings.ids.audio_end:
                yield self._kept(row[None, 1 : 1 + self._used])
            return
        self._rows.append(row)
        if len(self._rows) < self._settings.channels:
            return
        frame = undelayed(np.array(self._rows)[:, 1:])
        first = self._rows.pop(0)
        if first[0] == self._settings.ids.gen_slot and (frame != self._settings.pad_code).all():
            yield self._kept(frame)

    def _kept(self, frame: Frames) -> Frames:
        self._frames.append(frame)
        return frame

    def spoken(self) -> Frames:
        """All frames so far but those of the prefix, [T, n]."""
        empty = np.zeros((0, self._used), np.int32)
        return np.concatenate([empty, *self._frames[self._prefix :]])

    @property
    def prefix_frames(self) -> int:
        """Frames of the prefix, which come first."""
        return self._prefix

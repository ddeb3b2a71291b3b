"""Rows of MOSS-TTS: one text token and one code of each audio channel, and what is laid out in them.

In: ids and codes. Out: grids [S, 1 + n] INT32, the rows of tables that they address, frames taken out of them again.
Knows no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from voxedge.runtime.systems.moss_settings import MossSettings

Grid = npt.NDArray[np.int32]
"""[S, 1 + n]: text token, then a code or the pad code for each audio channel."""
Row = npt.NDArray[np.int32]
"""[1 + n]: one of a grid."""
Frames = npt.NDArray[np.int32]
"""[T, n]: codes of each frame."""


def text_rows(ids: Sequence[int], channels: int, pad_code: int) -> Grid:
    """Rows of text alone."""
    grid = np.full((len(ids), 1 + channels), pad_code, np.int32)
    grid[:, 0] = ids
    return grid


def delayed(frames: Frames, pad_code: int) -> Frames:
    """Shift channel j down by j rows: [T, n] to [T + n - 1, n], the pad code where there is nothing.

    Example:
        >>> delayed(np.array([[1, 2], [3, 4]], np.int32), 9).tolist()
        [[1, 9], [3, 2], [9, 4]]
    """
    length, channels = frames.shape
    rows = np.full((length + channels - 1, channels), pad_code, np.int32)
    for channel in range(channels):
        rows[channel : channel + length, channel] = frames[:, channel]
    return rows


def undelayed(rows: Frames) -> Frames:
    """Undo `delayed`; of incomplete frames at the end nothing remains: [R, n] to [max(R - n + 1, 0), n]."""
    channels = rows.shape[1]
    length = max(len(rows) - channels + 1, 0)
    return np.stack([rows[channel : channel + length, channel] for channel in range(channels)], 1)


def segments(frames: Frames, pad_code: int) -> list[Frames]:
    """Runs of frames that hold a code in at least one channel."""
    spoken = (frames != pad_code).any(1)
    edges = np.flatnonzero(np.diff(spoken.astype(np.int8), prepend=0, append=0))
    return [frames[start:stop] for start, stop in edges.reshape(-1, 2)]


def left_padded(grids: Sequence[Grid], pad: int, pad_code: int) -> tuple[Grid, npt.NDArray[np.bool_]]:
    """Grids of several lengths as one batch [B, S, 1 + n], padded in front, and where they really are [B, S].

    The runtime speaks one text after the other, which gives the same tokens; this is the form in which batches are
    exchanged with other implementations.
    """
    longest = max(len(grid) for grid in grids)
    batch = np.stack([text_rows([pad] * longest, grids[0].shape[1] - 1, pad_code)] * len(grids))
    mask = np.zeros(batch.shape[:2], np.bool_)
    for row, grid in enumerate(grids):
        batch[row, longest - len(grid) :] = grid
        mask[row, longest - len(grid) :] = True
    return batch, mask


class TableRows:
    """Which row of the stacked audio tables each code is.

    Channel j has `codebooks[j]` rows and one for its pad code; the last row of all is zero, for a channel left out.
    """

    def __init__(self, settings: MossSettings, channels: int | None = None) -> None:
        """Use only the first channels; None for all."""
        sizes = np.array(settings.codebooks, np.int32)
        self._pads = (np.cumsum(sizes + 1) - 1).astype(np.int32)  # [n]
        self._starts = self._pads - sizes
        self._absent = int(self._pads[-1]) + 1
        self._pad_code = settings.pad_code
        self._used = len(sizes) if channels is None else channels

    def of(self, grid: Grid) -> Grid:
        """Rows [S, n] of a grid [S, 1 + n]."""
        codes = grid[:, 1:]
        rows: Grid = np.where(codes == self._pad_code, self._pads, self._starts + codes).astype(np.int32)
        rows[:, self._used :] = self._absent
        return rows

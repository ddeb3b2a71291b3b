"""Keys and values of the last frames of a stream, for graphs that look back a bounded way.

In: an engine whose inputs `past.*` and outputs `new.*` are time-major, [frames, ...], and how many earlier frames it
needs. Out: bindings of one call after the other over memory that never grows. The past is a view of a buffer, the new
rows are written right behind it; when the end is reached, what is still needed moves to the front. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Array, Buffer, Engine
from voxedge.engines.errors import InputError

PAST, NEW = "past.", "new."


class SlidingState:
    """The state of one stream (or of several in step), and the calls that read and extend it."""

    def __init__(self, engine: Engine, context: int, batch: int = 1) -> None:
        """Allocate an empty state.

        Args:
            engine: The graph.
            context: Earlier frames that a call needs; the graph itself hides what is too far from each position.
            batch: Streams that go in step.
        """
        self._engine, self._context = engine, context
        self.max_frames = max(profile["frames"].max for profile in engine.spec.profiles.values())
        self._capacity = context + self.max_frames
        sizes = {"past": self._capacity, "batch": batch}
        self._buffers = {
            spec.name.removeprefix(PAST): engine.allocate(spec.sizes(sizes), np.dtype(spec.dtype))
            for spec in engine.spec.inputs
            if spec.name.startswith(PAST)
        }
        self._binding = engine.binding()
        self._length = 0
        self.frames = 0
        """Frames that were run so far."""

    @property
    def nbytes(self) -> int:
        """Bytes of the state; they do not depend on the length of the stream."""
        return sum(
            int(np.prod(buffer.shape, dtype=np.int64)) * buffer.dtype.itemsize for buffer in self._buffers.values()
        )

    def run(self, frames: int, tensors: Mapping[str, npt.NDArray[np.generic]], context: int | None = None) -> None:
        """Run the next frames of the stream.

        Args:
            frames: How many, from 1 to `max_frames`.
            tensors: All other inputs and outputs by name, as C-contiguous host arrays; outputs are written.
            context: Fewer earlier frames than usual, for comparisons.

        Raises:
            InputError: There are no frames, or more than one call takes.
            InferenceError: The graph failed.
        """
        if not 1 <= frames <= self.max_frames:
            raise InputError(f"expected 1 .. {self.max_frames} frames in one call, found {frames}")
        if self._length + frames > self._capacity:
            self._slide()
        start = max(0, self._length - (self._context if context is None else context))
        for name, buffer in self._buffers.items():
            self._binding.bind(PAST + name, buffer.rows(start, self._length))
            self._binding.bind(NEW + name, buffer.rows(self._length, self._length + frames))
        for name, array in tensors.items():
            self._binding.bind(name, Buffer.of(array))
        self._binding.run()
        self._length += frames
        self.frames += frames

    def _slide(self) -> None:
        """Move the last `context` frames to the front."""
        kept = min(self._context, self._length)
        for buffer in self._buffers.values():
            moved: Array = np.zeros(buffer.shape, buffer.dtype)
            moved[:kept] = self._engine.download(buffer.rows(self._length - kept, self._length))
            self._engine.upload(moved, buffer)
        self._length = kept

"""Which ids of a vocabulary may be drawn, and which were drawn lately.

In: sizes, masks, ids. Out: the logits of the ids that count, packed densely; the distinct ids of a window.
Does not know: sampling rules, tokenizers.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError, InferenceError

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Domain:
    """The ids that may be drawn, packed densely so that every rule works on them alone."""

    def __init__(self, size: int, ends: frozenset[int], allowed: slice | npt.NDArray[np.bool_] | None) -> None:
        if ends and not 0 <= min(ends) <= max(ends) < size:
            raise ConfigError(f"expected end ids of 0 .. {size - 1} (the logits' length less one), got {sorted(ends)}")
        mask = np.zeros(size, dtype=np.bool_)
        if isinstance(allowed, np.ndarray) and allowed.shape != (size,):
            raise ConfigError(f"expected a mask of {size} allowed ids, one per logit, got shape {allowed.shape}")
        mask[slice(None) if allowed is None else allowed] = True
        if not (mask.any() and np.delete(mask, list(ends)).any()):
            raise ConfigError("expected at least one allowed id besides the end, found none")
        mask[list(ends)] = True
        self.ids: Ids = np.flatnonzero(mask)
        self.ends: Ids = np.searchsorted(self.ids, sorted(ends)).astype(np.int64)
        self._size = size
        self._scores: Logits = np.empty(len(self.ids), dtype=np.float32)
        self.scratch: Logits = np.empty(len(self.ids), dtype=np.float32)
        first, last = int(self.ids[0]), int(self.ids[-1])
        self._run = slice(first, last + 1) if last - first + 1 == len(self.ids) else None
        self._place = np.full(size, -1, dtype=np.int64)
        self._place[self.ids] = np.arange(len(self.ids))

    def gather(self, logits: Logits) -> Logits:
        """Scores of the domain, [len(ids)]; the same memory at each call."""
        if len(logits) != self._size:
            raise InferenceError(f"expected {self._size} logits as in the first step, found {len(logits)}")
        if self._run is None:
            np.take(logits, self.ids, out=self._scores, mode="clip")
        else:
            self._scores[:] = logits[self._run]
        return self._scores

    def places(self, ids: Ids) -> Ids:
        """Indices of those ids that are in the domain."""
        places = self._place[ids[(ids >= 0) & (ids < self._size)]]
        return places[places >= 0]


class History:
    """Distinct ids among the last tokens."""

    def __init__(self, window: int) -> None:  # 0 keeps all
        self._tokens: deque[int] = deque()
        self._window = window
        self._counts: dict[int, int] = {}
        self._ids: Ids | None = None

    def push(self, token: int) -> None:
        """Add the newest token; the oldest leaves a full window."""
        count = self._counts.get(token, 0)
        self._counts[token] = count + 1
        if count == 0:
            self._ids = None
        if not self._window:
            return
        self._tokens.append(token)
        if len(self._tokens) > self._window:
            old = self._tokens.popleft()
            self._counts[old] -= 1
            if self._counts[old] == 0:
                del self._counts[old]
                self._ids = None

    def ids(self) -> Ids:
        """The distinct ids, in no particular order."""
        if self._ids is None:
            self._ids = np.fromiter(self._counts, dtype=np.int64, count=len(self._counts))
        return self._ids

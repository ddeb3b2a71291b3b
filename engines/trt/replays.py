"""Which repeated calls are worth a captured graph, and which graphs are kept.

In: keys of calls, as they come. Out: what was kept for a key, and whether to keep something now. Knows nothing of CUDA.

A call is captured when its key comes a second time: a solver step then repeats for a whole window, and a language
model's step repeats when another utterance reaches the same past in the same cache. Steps come in cycles (past 40, 41,
42, ...) that may be longer than the store, where a least-recently-used store would always drop what comes next; so a
full store takes nothing new unless something in it was not used for long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

SEEN_LIMIT = 4096
"""Keys that are remembered while they wait for their second time."""
PATIENCE = 4096
"""Calls after which something unused makes room."""


class Replays(Generic[T]):
    """A bounded store of captured graphs by key."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._calls = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable) -> T | None:
        """Count a call and give what was kept for it."""
        self._calls += 1
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept[key] = (found[0], self._calls)
        self._kept.move_to_end(key)
        return found[0]

    def wants(self, key: Hashable) -> bool:
        """Whether this call, which nothing was found for, is to be captured: it came before and there is room."""
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > SEEN_LIMIT:
                self._seen.popitem(last=False)
            return False
        return self._has_room()

    def _has_room(self) -> bool:
        if self._limit == 0:
            return False
        if len(self._kept) < self._limit:
            return True
        oldest = next(iter(self._kept))
        if self._calls - self._kept[oldest][1] < PATIENCE:
            return False
        del self._kept[oldest]
        return True

    def keep(self, key: Hashable, value: T) -> None:
        """Keep what was captured for a key that `wants` accepted."""
        self._kept[key] = (value, self._calls)

    def clear(self) -> None:
        """Drop everything, for instance because memory that the graphs point to has moved."""
        self._kept.clear()

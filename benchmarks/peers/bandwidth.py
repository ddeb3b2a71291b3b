"""Read bandwidth of the memory, measured beside the engines it judges.

In: `load` with a number of threads. Out: bytes per second of the fastest pass over memory far larger than the caches.
Reads only: decoding a language model is one long read of its weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from protocol import Logits, Reply, Request, serve

_BYTES = 1 << 29
"""Per run over all threads; sixteen times a 32 MB cache."""
_SLICE_ELEMENTS = 1 << 16
"""A slice at a time (256 KiB): numpy works from its start to its end without temporary arrays."""
_PASSES = 3


def _read_max(values: Logits) -> None:
    for start in range(0, len(values), _SLICE_ELEMENTS):
        np.max(values[start : start + _SLICE_ELEMENTS])


def _read_dot(values: Logits) -> None:
    for start in range(0, len(values), _SLICE_ELEMENTS):
        part = values[start : start + _SLICE_ELEMENTS]
        np.dot(part, part)


class _Probe:
    """One array per thread, read by two kernels; the faster one is the memory's speed."""

    def __init__(self) -> None:
        self._parts: list[Logits] = []

    def load(self, request: Request) -> Reply:
        threads = int(request["threads"])
        self._parts = [np.ones(_BYTES // 4 // threads, np.float32) for _ in range(threads)]
        return {"load_s": 0.0, "versions": {"numpy": np.__version__}}

    def measure(self, _request: Request) -> Reply:
        with ThreadPoolExecutor(len(self._parts)) as pool:
            best = min(self._pass_s(pool, kernel) for kernel in (_read_max, _read_dot) for _ in range(_PASSES))
        return {"bytes_per_s": sum(part.nbytes for part in self._parts) / best}

    def _pass_s(self, pool: ThreadPoolExecutor, kernel: Callable[[Logits], None]) -> float:
        started = time.perf_counter()
        list(pool.map(kernel, self._parts))
        return time.perf_counter() - started


if __name__ == "__main__":
    probe = _Probe()
    serve({"load": probe.load, "bandwidth": probe.measure})

"""The line protocol between the benchmark driver and one resident engine process.

In: one JSON object per line on stdin, with an `op`. Out: one JSON object per line on the real stdout, with `ok`.
Whatever a library prints goes to stderr. Knows no engine and needs numpy alone, since each worker runs in the Python
environment of its own peer. Runs on Python 3.10.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Request = dict[str, Any]
Reply = dict[str, Any]
Logits = npt.NDArray[np.float32]
Handle: TypeAlias = Any
"""An object of a library that comes without types."""


def token_ids(count: int, rows: int, start: int = 0) -> list[int]:
    """Fixed ids in `[0, rows)`: the same prompt for every engine."""
    return [(7919 * (start + index) + 1) % rows for index in range(count)]


class LmEngine(ABC):
    """One language model with its cache, in the peer's best form."""

    rows: int
    """Rows of embedding and head."""
    prefill_method = "prefilled"
    """How a context of a given length comes about; printed with the results."""

    @abstractmethod
    def length(self) -> int:
        """Tokens in the cache."""

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Forget every token from `length` on."""

    @abstractmethod
    def prefill(self, ids: list[int]) -> Logits:
        """Append tokens to the cache; returns the last position's logits, [rows]."""

    @abstractmethod
    def step(self, token: int) -> Logits:
        """Append one token; returns its logits on the host, [rows]."""

    def versions(self) -> dict[str, str]:
        """Library versions and settings worth printing."""
        return {}

    def overhead_s(self, steps: int) -> dict[str, list[float]]:
        """Seconds of every step outside the runtime library's own run call, by part; empty where it cannot be told."""
        return {}


class _Session:
    """Holds the loaded engine and answers the driver's requests."""

    def __init__(self, load: Callable[[Request], LmEngine], prepare: Callable[[Request], Reply]) -> None:
        self._load = load
        self._engine: LmEngine | None = None
        self.handlers: dict[str, Callable[[Request], Reply]] = {
            "prepare": prepare,
            "load": self._on_load,
            "context": self._on_context,
            "decode": self._on_decode,
            "prefill": self._on_prefill,
            "logits": self._on_logits,
            "overhead": self._on_overhead,
        }

    @property
    def engine(self) -> LmEngine:
        if self._engine is None:
            raise RuntimeError("expected `load` before any other request")
        return self._engine

    def _on_load(self, request: Request) -> Reply:
        started = time.perf_counter()
        self._engine = self._load(request)
        elapsed = time.perf_counter() - started
        return {"load_s": elapsed, "versions": self.engine.versions(), "context": self.engine.prefill_method}

    def _on_context(self, request: Request) -> Reply:
        """Bring the cache to `length` tokens by really processing what is missing."""
        length = int(request["length"])
        started = time.perf_counter()
        self.engine.rewind(min(length, self.engine.length()))
        missing = length - self.engine.length()
        if missing:
            self.engine.prefill(token_ids(missing, self.engine.rows, self.engine.length()))
        return {"seconds": time.perf_counter() - started, "length": self.engine.length()}

    def _on_decode(self, request: Request) -> Reply:
        """Greedy steps on top of `length` tokens; the choice of the next id is part of a step."""
        engine, token, times = self.engine, 1, []
        engine.rewind(int(request["length"]))
        for _ in range(int(request["steps"])):
            started = time.perf_counter()
            token = int(engine.step(token).argmax())
            times.append(time.perf_counter() - started)
        return {"step_s": times}

    def _on_prefill(self, request: Request) -> Reply:
        self.engine.rewind(0)
        ids = token_ids(int(request["tokens"]), self.engine.rows)
        started = time.perf_counter()
        self.engine.prefill(ids)
        return {"seconds": time.perf_counter() - started}

    def _on_logits(self, request: Request) -> Reply:
        """Logits after a fixed prompt and two steps, to see that every engine runs the same model."""
        ids = token_ids(int(request["tokens"]), self.engine.rows)
        self.engine.rewind(0)
        self.engine.prefill(ids[:-2])
        self.engine.step(ids[-2])
        logits = np.ascontiguousarray(self.engine.step(ids[-1]), dtype=np.float32)
        self.engine.rewind(0)
        return {"logits": base64.b64encode(logits.tobytes()).decode()}

    def _on_overhead(self, request: Request) -> Reply:
        self.engine.rewind(int(request["length"]))
        return {"overhead_s": self.engine.overhead_s(int(request["steps"]))}


def _answer(handlers: dict[str, Callable[[Request], Reply]], request: Request) -> Reply:
    try:
        return {"ok": True, **handlers[request["op"]](request)}
    except ImportError as error:
        return {"ok": False, "missing": error.name or str(error), "error": str(error)}
    except Exception as error:  # the driver prints it beside the engine's name and goes on with the others
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def serve(handlers: dict[str, Callable[[Request], Reply]]) -> None:
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # C libraries print to descriptor 1 too
    for line in sys.stdin:
        replies.write(json.dumps(_answer(handlers, json.loads(line))) + "\n")


def serve_engine(load: Callable[[Request], LmEngine], prepare: Callable[[Request], Reply]) -> None:
    """Serve one language model engine; `load` and `prepare` import the peer's library, so that its absence is told."""
    serve(_Session(load, prepare).handlers)

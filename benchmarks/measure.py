"""Interleaved visits to resident engines: A B C, A B C, ... in one run, so that drifts of the machine hit all alike.

In: entries of the roster and a plan. Out: one `Figure` per engine, thread count and phase. The first round warms up and
is dropped; the median of the others counts. Prints progress, formats nothing.
"""

from __future__ import annotations

import base64
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import LoadMeter, wait_for_quiet
from roster import Entry
from shapes import LmShape
from workers import NotInstalledError, Worker, WorkerError

BANDWIDTH = "bandwidth"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run measures."""

    shape: LmShape
    """Sizes of the model."""
    checkpoint: Path
    """Random checkpoint that every engine's model comes from."""
    work: Path
    """Where converted models and logs are."""
    pythons: tuple[str, str]
    """Interpreters of our environment and of the peers'."""
    contexts: tuple[int, ...]
    """Tokens in the cache before the timed steps."""
    prefill: int
    """Tokens of the timed prefill."""
    steps: int
    """Decode steps of a visit."""
    rounds: int
    """Visits per engine and phase, the dropped first one included."""
    quiet_cores: float
    """Load of others above which a visit waits, in cores."""
    patience_s: float
    """Longest wait for a quiet moment."""

    @property
    def capacity(self) -> int:
        """Cache size asked from every engine: the longest phase, rounded up to 256."""
        longest = max(*self.contexts, self.prefill) + self.steps + 64
        return -(-longest // 256) * 256

    def python(self, entry: Entry) -> str:
        """Interpreter of one entry."""
        return self.pythons[0] if entry.own else self.pythons[1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One engine in one phase."""

    engine: str
    """Name in the roster."""
    threads: int
    """Threads the engine may use."""
    phase: str
    """`decode` or `prefill`."""
    context: int
    """Tokens in the cache before a decode step, or tokens of the prefill."""
    ms: float
    """Median over rounds of the median step, or of the whole prefill; lower is better."""
    rounds_ms: tuple[float, ...]
    """The rounds behind it, the first one dropped."""
    foreign_cores: float
    """Median load of everything but this engine during its visits."""
    bandwidth_gb_s: float
    """Read bandwidth of the memory in the same phase."""
    roofline: float
    """Share of that bandwidth a decode step used, 0 for prefill."""


class Lineup:
    """All engines that load, resident at one thread count."""

    def __init__(self, plan: Plan, entries: list[Entry], threads: int) -> None:
        self.plan, self.threads = plan, threads
        self.entries: list[Entry] = []
        self.failures: dict[str, str] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, Worker] = {}
        probe = Worker(plan.pythons[0], BANDWIDTH, threads, plan.work / "bandwidth.log")
        probe.ask("load", threads=threads)
        self.workers[BANDWIDTH] = probe
        for entry in entries:
            self._load(entry)

    def _load(self, entry: Entry) -> None:
        worker = Worker(self.plan.python(entry), entry.worker, self.threads, self.plan.work / f"{entry.worker}.log")
        try:
            self.facts[entry.name] = worker.ask("load", **request(self.plan, entry, self.threads))
        except WorkerError as error:
            self.failures[entry.name] = str(error)
            worker.close()
            return
        self.workers[entry.name] = worker
        self.entries.append(entry)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()

    def _drop(self, entry: Entry, error: WorkerError) -> None:
        self.failures[entry.name] = str(error)
        self.entries.remove(entry)
        self.workers.pop(entry.name).close()

    def logits(self, tokens: int) -> dict[str, Any]:
        """Every engine's logits after the same ids, [rows] each."""
        found = {}
        for entry in list(self.entries):
            try:
                text = self.workers[entry.name].ask("logits", tokens=tokens)["logits"]
            except WorkerError as error:
                self._drop(entry, error)
                continue
            found[entry.name] = np.frombuffer(base64.b64decode(text), np.float32)
        return found

    def overhead_us(self, context: int, steps: int) -> dict[str, float]:
        """Median microseconds per step outside the runtime library, for engines that can tell."""
        found: dict[str, float] = {}
        for entry in self.entries:
            parts = self.workers[entry.name].ask("overhead", length=context, steps=steps)["overhead_s"]
            found |= {f"{entry.name}, {part}": statistics.median(times) * 1e6 for part, times in parts.items()}
        return found

    def decode(self, context: int) -> list[Figure]:
        """Decode steps on top of `context` tokens, which every engine has really prefilled."""
        started = time.perf_counter()
        for entry in list(self.entries):
            try:
                self.workers[entry.name].ask("context", length=context)
            except WorkerError as error:
                self._drop(entry, error)
        _say(f"{self.threads} threads: all engines at {context} tokens after {time.perf_counter() - started:.0f} s")

        def visit(worker: Worker) -> float:
            times = worker.ask("decode", length=context, steps=self.plan.steps)["step_s"]
            return float(statistics.median(times)) * 1e3

        return self._rounds("decode", context, visit)

    def prefill(self) -> list[Figure]:
        """Prefill of an empty cache."""

        def visit(worker: Worker) -> float:
            return float(worker.ask("prefill", tokens=self.plan.prefill)["seconds"]) * 1e3

        return self._rounds("prefill", self.plan.prefill, visit)

    def _rounds(self, phase: str, context: int, visit: Callable[[Worker], float]) -> list[Figure]:
        times: dict[str, list[float]] = {}
        loads: dict[str, list[float]] = {}
        bandwidths = []
        for number in range(self.plan.rounds):
            bandwidths.append(self.workers[BANDWIDTH].ask("bandwidth")["bytes_per_s"])
            for entry in list(self.entries):
                worker = self.workers[entry.name]
                wait_for_quiet(self.plan.quiet_cores, self.plan.patience_s)
                meter = LoadMeter([worker.pid])
                try:
                    ms = visit(worker)
                except WorkerError as error:
                    self._drop(entry, error)
                    continue
                times.setdefault(entry.name, []).append(ms)
                loads.setdefault(entry.name, []).append(meter.foreign_cores())
            _say(f"{self.threads} threads: {phase} {context}, round {number + 1} of {self.plan.rounds}")
        bandwidth = statistics.median(bandwidths)
        return [
            self._figure(entry, phase, context, times[entry.name][1:], loads[entry.name][1:], bandwidth)
            for entry in self.entries
        ]

    def _figure(
        self, entry: Entry, phase: str, context: int, times: list[float], loads: list[float], bandwidth: float
    ) -> Figure:
        ms = statistics.median(times)
        read = entry.step_bytes(self.plan.shape, context + self.plan.steps / 2)
        roofline = read / bandwidth / (ms / 1e3) if phase == "decode" else 0.0
        foreign = statistics.median(loads)
        return Figure(entry.name, self.threads, phase, context, ms, tuple(times), foreign, bandwidth / 1e9, roofline)


def request(plan: Plan, entry: Entry, threads: int) -> dict[str, Any]:
    """Fields of a `prepare` or `load` request."""
    return {
        "checkpoint": str(plan.checkpoint),
        "work": str(plan.work),
        "threads": threads,
        "capacity": plan.capacity,
        "options": entry.options,
    }


def prepare(plan: Plan, entries: list[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """Convert the checkpoint for every entry, one process at a time; returns who is ready, and why others are not."""
    ready, failures = [], {}
    for entry in entries:
        _say(f"preparing {entry.name}")
        try:
            worker = Worker(plan.python(entry), entry.worker, 2, plan.work / f"{entry.worker}.log")
            try:
                worker.ask("prepare", **request(plan, entry, 2))
            finally:
                worker.close()
        except NotInstalledError as error:
            failures[entry.name] = str(error)
        except WorkerError as error:
            failures[entry.name] = f"failed: {error}"
        else:
            ready.append(entry)
    return ready, failures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

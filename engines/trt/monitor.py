"""What a running build says, and how it is stopped.

In: TensorRT's callbacks. Out: one number from 0 to 1 that never falls, log records, and a build that ends soon after
Ctrl-C. Does not start builds.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from voxedge.engines.trt.api import Library

T = TypeVar("T")

_VERBOSE = 5  # below logging.DEBUG: thousands of lines for each layer
_POLL_S = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far the build of one graph is."""

    graph: str
    """The graph's name."""
    phase: str
    """What the builder is doing, in its own words."""
    fraction: float
    """From 0 to 1; never falls; 1 exactly once, after the engine file is written."""


ProgressCallback = Callable[[BuildProgress], None]


class ProgressTree:
    """Turns TensorRT's nested phases into one fraction; a phase counts as a part of its parent's current step."""

    def __init__(self) -> None:
        self._total: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._parent: dict[str, str | None] = {}
        self._best = 0.0
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> float:
        """A phase of `steps` steps begins."""
        with self._lock:
            self._total[phase], self._done[phase], self._parent[phase] = max(1, steps), 0, parent
            return self._update()

    def step(self, phase: str, step: int) -> float:
        """Step `step`, counted from 0, is complete."""
        with self._lock:
            self._done[phase] = max(self._done.get(phase, 0), step + 1)
            return self._update()

    def finish(self, phase: str) -> float:
        """A phase ends; it may have been shorter than it said."""
        with self._lock:
            if self._parent.get(phase) is None:
                self._done[phase] = self._total.get(phase, 1)
                return self._update()
            for table in (self._total, self._done, self._parent):
                table.pop(phase, None)
            return self._update()

    def _update(self) -> float:
        roots = [phase for phase, parent in self._parent.items() if parent not in self._parent]
        whole = sum(self._fraction(phase) for phase in roots) / max(1, len(roots))
        # 1 is kept for the written engine file.
        self._best = max(self._best, min(whole, 1.0) * 0.99)
        return self._best

    def _fraction(self, phase: str) -> float:
        children = [child for child, parent in self._parent.items() if parent == phase]
        inner = max((self._fraction(child) for child in children), default=0.0)
        total = self._total.get(phase, 1)
        return min(total, self._done.get(phase, 0) + inner) / total


class BuildWatch:
    """Carries progress and errors out of TensorRT's callbacks, and the wish to stop into them.

    No exception may pass through TensorRT, so one that is raised by the progress callback is kept, stops the build
    at its next step, and is raised again by `run`.
    """

    def __init__(self, graph: str, on_progress: ProgressCallback | None) -> None:
        self.errors: list[str] = []
        self._graph = graph
        self._on_progress = on_progress
        self._tree = ProgressTree()
        self._stopped = threading.Event()
        self._interrupted = False
        self._failure: BaseException | None = None

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread of its own, so that Ctrl-C is heard while TensorRT computes.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the build was stopped at its next step.
        """
        results: list[T] = []
        # Not Thread.join: in Python 3.10 and 3.11 an interrupted join takes the thread for finished (bpo-45274).
        done = threading.Event()

        def target() -> None:
            try:
                results.append(work())
            except BaseException as error:  # raised again below, in the caller's thread
                self._failure = self._failure or error
            finally:
                done.set()

        thread = threading.Thread(target=target, name="voxedge-build", daemon=True)
        _running.append(self)
        try:
            with _deferred_interrupts(self._interrupt):
                thread.start()
                while not done.wait(_POLL_S):
                    pass
        finally:
            _running.remove(self)
        if self._interrupted:
            raise KeyboardInterrupt
        if self._failure is not None:
            raise self._failure
        return results[0]

    def _interrupt(self) -> None:
        self._interrupted = True
        self._stopped.set()
        _log.warning("stopping the build of %s; press Ctrl-C again to leave at once", self._graph)

    def report(self, phase: str, fraction: float) -> None:
        """Tell the progress callback; keeps what it raises."""
        if self._on_progress is None or self._stopped.is_set():
            return
        try:
            self._on_progress(BuildProgress(self._graph, phase, fraction))
        except BaseException as error:  # raised again by `run`
            self._failure = error
            self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether the build shall end at its next step."""
        return self._stopped.is_set()

    def progress_monitor(self, library: Library) -> Any:  # noqa: ANN401 - a class of the imported library
        """An IProgressMonitor that reports to this watch."""
        trt, watch, tree = library.module, self, self._tree

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                watch.report(phase_name, tree.start(phase_name, parent_phase, num_steps))

            def phase_finish(self, phase_name: str) -> None:
                watch.report(phase_name, tree.finish(phase_name))

            def step_complete(self, phase_name: str, step: int) -> bool:
                watch.report(phase_name, tree.step(phase_name, step))
                return not watch.stopped

        return Monitor()


@contextmanager
def _deferred_interrupts(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` at the first Ctrl-C instead of raising at whatever line Python is; a second one raises.

    A handler of the application, and one that ignores Ctrl-C, stays in place.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def handle(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_logger(library: Library) -> Any:  # noqa: ANN401
    """The process's one ILogger of a library, which writes to `logging` and hands errors to the running builds.

    There is one because TensorRT keeps a pointer to the first logger that it was given.
    """
    if library.flavour not in _loggers:
        _loggers[library.flavour] = _make_logger(library)
    return _loggers[library.flavour]


def _make_logger(library: Library) -> Any:  # noqa: ANN401
    trt = library.module
    levels = {
        int(trt.ILogger.INTERNAL_ERROR): logging.ERROR,
        int(trt.ILogger.ERROR): logging.ERROR,
        int(trt.ILogger.WARNING): logging.WARNING,
        int(trt.ILogger.INFO): logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            level = levels.get(int(severity), _VERBOSE)
            if level == logging.ERROR:
                recent_errors.append(msg.strip())
                for watch in tuple(_running):
                    watch.errors.append(msg.strip())
                # A build that is being stopped complains about just that.
                level = logging.DEBUG if any(watch.stopped for watch in tuple(_running)) else level
            _log.log(level, "%s: %s", library.flavour, msg.strip())

    return Logger()


recent_errors: deque[str] = deque(maxlen=5)
"""What TensorRT complained about last, in this process; a run that fails clears it first and reads it then."""

_loggers: dict[str, Any] = {}
_running: list[BuildWatch] = []

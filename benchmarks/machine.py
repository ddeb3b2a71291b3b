"""What the machine is and what it is doing: processor, memory, load of others, memory of a process tree.

In: the /proc file system of Linux. Out: plain records for reports. Measures no model.
"""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts that a figure is meaningless without."""

    processor: str
    """Model name as the kernel gives it."""
    features: str
    """Instruction sets that decide the speed of matrix products."""
    logical_cores: int
    """Processors the kernel schedules on."""
    cache: str
    """Largest cache of the first processor."""
    memory_gb: float
    """Physical memory in 10^9 bytes."""
    kernel: str
    """Operating system and version."""
    python: str
    """Version of the interpreter that drives the run."""
    packages: dict[str, str]
    """Versions of the packages of this environment that matter."""


def _cpu_field(*names: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return "unknown"


def _largest_cache() -> str:
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return folders[-1].read_text().strip() if folders else "unknown"


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    return {name: found[name] for name in packages if name in found}


def describe(packages: Iterable[str]) -> Machine:
    """The machine and the versions of `packages` in this interpreter."""
    flags = _cpu_field("flags", "Features").split()
    return Machine(
        processor=_cpu_field("model name", "Model"),
        features=" ".join(name for name in _FEATURES if name in flags),
        logical_cores=os.cpu_count() or 1,
        cache=_largest_cache(),
        memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_installed(packages),
    )


class LoadMeter:
    """Processor time that belongs to nobody in a given set of processes."""

    def __init__(self, own: Iterable[int]) -> None:
        self._own = [os.getpid(), *own]
        self._start = self._sample()

    def _sample(self) -> tuple[float, float, float]:
        times = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy_s = (sum(times) - times[3] - times[4]) * _TICK_S  # all but idle and waiting for input and output
        return time.perf_counter(), busy_s, sum(_process_s(pid) for pid in self._own)

    def foreign_cores(self) -> float:
        """Average number of cores that others kept busy since the meter was made."""
        before, after = self._start, self._sample()
        elapsed, busy, own = (late - early for early, late in zip(before, after, strict=True))
        return max(0.0, (busy - own) / max(elapsed, 1e-3))


def _process_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S  # user and system time


def wait_for_quiet(limit_cores: float, patience_s: float) -> float:
    """Wait until others use less than `limit_cores`; returns the load that was left when patience ended."""
    deadline = time.perf_counter() + patience_s
    while True:
        meter = LoadMeter(())
        time.sleep(0.25)
        foreign = meter.foreign_cores()
        if foreign < limit_cores or time.perf_counter() > deadline:
            return foreign


@dataclass(frozen=True, slots=True)
class MemoryPeaks:
    """Peak memory of one process tree, in bytes."""

    rss: int
    """Peak of the tree's resident memory, sampled; includes pages of mapped files."""
    high_water: int
    """Largest VmHWM of one process: the kernel's own peak, which sampling cannot miss."""
    anonymous: int
    """Peak of RssAnon: memory that cannot be given back to the page cache."""
    file: int
    """Peak of RssFile: clean pages of mapped files, shared and reclaimable."""

    def megabytes(self) -> dict[str, float]:
        """The peaks in 10^6 bytes."""
        return {name: round(value / 1e6, 1) for name, value in asdict(self).items()}


class MemorySampler:
    """Follows a process and its children until they end."""

    def __init__(self, process: subprocess.Popen[str], interval_s: float = 0.02) -> None:
        self._process, self._interval_s = process, interval_s
        self._peaks = dict.fromkeys(("rss", "high_water", "anonymous", "file"), 0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        tick, pids = 0, [self._process.pid]
        while self._process.poll() is None:
            if tick % 10 == 0:
                pids = [self._process.pid, *_children(self._process.pid)]
            self._add([_status(pid) for pid in pids])
            tick += 1
            time.sleep(self._interval_s)

    def _add(self, rows: list[dict[str, int]]) -> None:
        sums = {field: sum(row.get(field, 0) for row in rows) for field in ("VmRSS", "RssAnon", "RssFile")}
        now = {
            "rss": sums["VmRSS"],
            "anonymous": sums["RssAnon"],
            "file": sums["RssFile"],
            "high_water": max(row.get("VmHWM", 0) for row in rows),
        }
        self._peaks = {name: max(value, now[name]) for name, value in self._peaks.items()}

    def finish(self) -> MemoryPeaks:
        """Wait for the process; returns its peaks."""
        self._thread.join()
        return MemoryPeaks(**self._peaks)


def _children(pid: int) -> list[int]:
    """All descendants of a process."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = [pid]
    for parent in found:  # grows while it is walked
        found += [child for child, above in parents.items() if above == parent]
    return found[1:]


def _parent(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _status(pid: int) -> dict[str, int]:
    """Memory lines of /proc/PID/status in bytes; empty once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    rows = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}

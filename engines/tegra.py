"""What a Jetson says about its power and its memory.

In: the system's files, and NVIDIA's `nvpmodel` where the files do not say. Out: plain values; empty, None or 0 where
nothing is known. Needs no rights and changes nothing.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from voxedge.engines.files import read_text

_NVPMODEL = "usr/sbin/nvpmodel"
_TIMEOUT_S = 5.0


def power_mode(root: Path = Path("/")) -> str:
    """Name of the mode that nvpmodel set, such as `25W`; `mode 2` where only its number is known; empty if nothing.

    The files come first: the tool needs more rights than they do on some releases.
    """
    number = re.search(r"pmode:(\d{1,4})", read_text(root / "var/lib/nvpmodel/status"))
    if not number:
        return _asked(root)
    pattern = rf"POWER_MODEL\s+ID={int(number[1])}\s+NAME=([\w.+-]{{1,40}})"
    for path in (root / "etc/nvpmodel.conf", *_only(root / "etc/nvpmodel")):
        name = re.search(pattern, read_text(path))
        if name:
            return name[1]
    return f"mode {int(number[1])}"


def _only(folder: Path) -> list[Path]:
    """The configuration in a folder, if there is one alone: with several, the board decides which is meant."""
    found = sorted(folder.glob("*.conf"))
    return found if len(found) == 1 else []


def _asked(root: Path) -> str:
    """What `nvpmodel -q` says: `NV Power Mode: 25W` and the number in the next line."""
    tool = root / _NVPMODEL
    if not tool.is_file():
        return ""
    try:
        done = subprocess.run([str(tool), "-q"], capture_output=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"NV Power Mode:\s*([\w.+-]{1,40})", done.stdout[:4096].decode("utf-8", errors="replace"))
    return found[1] if found else ""


def clocks_fixed(root: Path = Path("/")) -> bool | None:
    """Whether the first processor core cannot clock down, as `jetson_clocks` leaves it; None if it does not say."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    low, high = (read_text(folder / f"scaling_{end}_freq").strip() for end in ("min", "max"))
    return low == high if low and high else None


def zram_bytes(root: Path = Path("/")) -> int:
    """Size of all swap devices that are compressed memory (the file lists kibibytes)."""
    rows = [line.split() for line in read_text(root / "proc/swaps").splitlines()]
    sizes = [row[2] for row in rows if len(row) > 2 and "zram" in row[0]]
    return sum(int(size) * 1024 for size in sizes if re.fullmatch(r"[0-9]{1,12}", size))

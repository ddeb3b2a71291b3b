"""Which of NVIDIA's shared libraries are on this machine, and whether a package that needs them loads.

In: the folders where CUDA, TensorRT and pip put them. Out: file names, or the reason why a package does not load. Loads
nothing into this process.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

LIBRARIES: Mapping[str, str] = MappingProxyType(
    {
        "CUDA driver": "libcuda.so.1",
        "CUDA runtime": "libcudart.so.1*",
        "cuBLAS": "libcublas.so.1*",
        "cuDNN": "libcudnn.so.9*",
        "TensorRT": "libnvinfer.so.1*",
        "TensorRT parser": "libnvonnxparser.so.1*",
    }
)
"""What is looked for, by name for people."""

_FOLDERS = (
    "usr/lib/{arch}-linux-gnu",
    "usr/lib/{arch}-linux-gnu/nvidia",
    "usr/lib/{arch}-linux-gnu/tegra",
    "usr/lib64",
    "usr/local/cuda/lib64",
    "usr/local/cuda/targets/*/lib",
    "usr/local/cuda-*/lib64",
    "usr/local/cuda-*/targets/*/lib",
    "usr/local/nvidia/lib64",
)
_ARCHES = ("aarch64", "x86_64")
_TIMEOUT_S = 60.0


def find_libraries(root: Path = Path("/"), packages: Path | None = None) -> dict[str, str]:
    """Where the libraries are; those that are absent are left out.

    Args:
        root: Where the system's files are.
        packages: Python's folder of installed packages; None for this environment's own.
    """
    installed = Path(sysconfig.get_path("purelib")) if packages is None else packages
    folders = [root / folder.format(arch=arch) for folder in _FOLDERS for arch in _ARCHES]
    patterns = [*(str(folder) for folder in folders), *(str(installed / name) for name in ("nvidia/*/lib", "*_libs"))]
    found = {}
    for name, pattern in LIBRARIES.items():
        hits = [path for folder in patterns for path in _glob(f"{folder}/{pattern}")]
        if hits:
            found[name] = str(hits[0])
    return found


def _glob(pattern: str) -> list[Path]:
    path = Path(pattern)
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def import_error(module: str) -> str:
    """Why a module does not load, in one line; empty if it does. A process of its own tries, so a crash is an answer.

    Args:
        module: Name of an installed module.
    """
    code = f"import importlib; importlib.import_module({module!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return f"could not be tried: {error}"[:300]
    if done.returncode == 0:
        return ""
    lines = done.stderr[-4096:].decode("utf-8", errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"it ended with code {done.returncode}")[:300]

"""What this machine is.

In: the machine's own files, its driver and its installed packages. Out: a `DeviceReport`. Imports nothing heavy (ONNX
Runtime alone, for its providers), changes nothing, needs no rights, and believes no file: sizes are limited, and what
cannot be read counts as absent. What to do about it is in `engines.advice`.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from voxedge.engines.files import read_text
from voxedge.engines.gpu import (
    Gpu,
    available_memory_bytes,
    find_gpus,
    free_device_bytes,
    free_swap_bytes,
    read_l4t,
    total_memory_bytes,
)
from voxedge.engines.libraries import find_libraries, import_error
from voxedge.engines.tegra import clocks_fixed, power_mode, zram_bytes

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
"""Distributions that decide what voxedge can run on."""

_ARM_PARTS = {"0xd42": "Cortex-A78AE", "0xd83": "Neoverse-V3AE"}  # Orin, Thor
_NVIDIA_VENDOR = "0x10de"
_TENSORRTS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Facts about one machine."""

    cpu: str
    """Model of the processor."""
    cores: int
    """Logical cores that this process may use."""
    system: str
    """Operating system, such as `linux`."""
    arch: str
    """Processor architecture, such as `aarch64`."""
    memory_total_bytes: int | None
    """Host memory; on Jetson shared with the GPU."""
    memory_available_bytes: int | None
    """Of that, what can be used without swapping."""
    swap_free_bytes: int
    """Free swap space; 0 where there is none."""
    gpus: tuple[Gpu, ...]
    """CUDA devices that the driver shows."""
    gpu_free_bytes: int | None
    """Free memory of the first of them; None where there is none, or where it is the host's."""
    nvidia_hardware: bool
    """Whether an NVIDIA device is built in, driver or not."""
    driver: str
    """Version of NVIDIA's kernel driver; empty where there is none."""
    l4t: str
    """Jetson Linux release; empty elsewhere."""
    jetson_model: str
    """Name of the Jetson; empty elsewhere."""
    power_mode: str
    """Name of the Jetson's power mode; empty elsewhere."""
    clocks_fixed: bool | None
    """Whether a Jetson's processor clocks are fixed at their highest (`jetson_clocks`); None where it does not say."""
    zram_bytes: int
    """Swap that is compressed memory, which a Jetson has by default; 0 where there is none."""
    python: str
    """Version of Python."""
    virtual_environment: bool
    """Whether this Python runs in one."""
    packages: Mapping[str, str]
    """Versions of the installed ones of `PACKAGES`."""
    providers: tuple[str, ...]
    """Execution providers of ONNX Runtime."""
    provider_error: str
    """Why ONNX Runtime does not load; empty if it does or is not installed."""
    system_tensorrt: bool
    """Whether the system's Python has TensorRT's bindings."""
    libraries: Mapping[str, str]
    """CUDA's and TensorRT's shared libraries that were found: name -> file."""
    import_errors: Mapping[str, str]
    """Why an installed TensorRT does not load, by package; only looked at where that was asked for."""


def gather(root: Path = Path("/"), driver: Any = None, probe: bool = False) -> DeviceReport:  # noqa: ANN401
    """Look at this machine.

    Args:
        root: Where the system's files are.
        driver: NVIDIA's driver library; None opens the installed one.
        probe: Also let a process of its own load each installed TensorRT, which takes a second or two.
    """
    providers, provider_error = _providers()
    gpus, l4t, packages = find_gpus(driver), read_l4t(root), _packages()
    separate = bool(gpus) and not gpus[0].integrated
    return DeviceReport(
        cpu=_cpu_model(root),
        cores=len(os.sched_getaffinity(0)),
        system=platform.system().lower(),
        arch=platform.machine(),
        memory_total_bytes=total_memory_bytes(root),
        memory_available_bytes=available_memory_bytes(root),
        swap_free_bytes=free_swap_bytes(root),
        gpus=gpus,
        gpu_free_bytes=free_device_bytes(gpus[0], driver) if separate else None,
        nvidia_hardware=_has_nvidia(root),
        driver=_driver_version(root),
        l4t=l4t,
        jetson_model=read_text(root / "proc/device-tree/model").strip("\0\n ")[:200] if l4t else "",
        power_mode=power_mode(root) if l4t else "",
        clocks_fixed=clocks_fixed(root) if l4t else None,
        zram_bytes=zram_bytes(root) if l4t else 0,
        python=platform.python_version(),
        virtual_environment=sys.prefix != sys.base_prefix,
        packages=packages,
        providers=providers,
        provider_error=provider_error,
        system_tensorrt=any(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py")),
        libraries=find_libraries(root),
        import_errors=_import_errors(packages) if probe else {},
    )


def _import_errors(packages: Mapping[str, str]) -> dict[str, str]:
    found = {name: import_error(module) for name, module in _TENSORRTS.items() if name in packages}
    return {name: error for name, error in found.items() if error}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _providers() -> tuple[tuple[str, ...], str]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return (), ""
    except (ImportError, OSError) as error:
        return (), str(error).splitlines()[0]
    return tuple(onnxruntime.get_available_providers()), ""


def _cpu_model(root: Path) -> str:
    text = read_text(root / "proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    part = re.search(r"^CPU part\s*:\s*(\w+)$", text, re.MULTILINE)
    if named:
        return named[1].strip()
    return _ARM_PARTS.get(part[1], f"ARM part {part[1]}") if part else "unknown"


def _has_nvidia(root: Path) -> bool:
    return any(read_text(path).strip() == _NVIDIA_VENDOR for path in root.glob("sys/bus/pci/devices/*/vendor"))


def _driver_version(root: Path) -> str:
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", read_text(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""

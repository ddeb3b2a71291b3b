"""What this machine is, and what to type where something does not work.

In: the machine's own files, its driver and its installed packages. Out: a `DeviceReport`, and `Advice` with exact
commands. Imports nothing heavy (ONNX Runtime alone, for its providers), changes nothing, needs no rights.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from voxedge.engines.files import format_bytes
from voxedge.engines.gpu import Gpu, available_memory_bytes, find_gpus, read_l4t, total_memory_bytes
from voxedge.engines.jetpack import JETPACKS, find_jetpack

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
"""Distributions that decide what voxedge can run on."""

_ARM_PARTS = {"0xd42": "Cortex-A78AE", "0xd83": "Neoverse-V3AE"}  # Orin, Thor
_NVIDIA_VENDOR = "0x10de"
_LITTLE_MEMORY_BYTES = 2_000_000_000
_OLDEST_RTX = 75
_VENV = "python3 -m venv --system-site-packages .venv && .venv/bin/pip install voxedge"


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
    gpus: tuple[Gpu, ...]
    """CUDA devices that the driver shows."""
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


@dataclass(frozen=True, slots=True)
class Advice:
    """One topic, and how to mend it."""

    topic: str
    """What it is about."""
    ok: bool
    """Whether it works, or is not needed here."""
    found: str
    """What was found."""
    mend: str = ""
    """What to type; empty where it is ok."""


def gather(root: Path = Path("/"), driver: Any = None) -> DeviceReport:  # noqa: ANN401 - a ctypes library
    """Look at this machine.

    Args:
        root: Where the system's files are.
        driver: NVIDIA's driver library; None opens the installed one.
    """
    providers, provider_error = _providers()
    return DeviceReport(
        cpu=_cpu_model(root),
        cores=len(os.sched_getaffinity(0)),
        system=platform.system().lower(),
        arch=platform.machine(),
        memory_total_bytes=total_memory_bytes(root),
        memory_available_bytes=available_memory_bytes(root),
        gpus=find_gpus(driver),
        nvidia_hardware=_has_nvidia(root),
        driver=_driver_version(root),
        l4t=read_l4t(root),
        jetson_model=_read(root / "proc/device-tree/model").strip("\0\n ") if read_l4t(root) else "",
        power_mode=_power_mode(root),
        python=platform.python_version(),
        virtual_environment=sys.prefix != sys.base_prefix,
        packages=_packages(),
        providers=providers,
        provider_error=provider_error,
        system_tensorrt=any(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py")),
    )


def advise(report: DeviceReport) -> list[Advice]:
    """What works, and for the rest the command that mends it; in the order of the work."""
    return [
        _advise_python(report),
        _advise_memory(report),
        _advise_onnxruntime(report),
        *_advise_gpu(report),
        *(_advise_jetson(report) if report.l4t else _advise_desktop(report)),
    ]


def _advise_python(report: DeviceReport) -> Advice:
    version = tuple(int(part) for part in report.python.split(".")[:2])
    jetpack = find_jetpack(report.l4t)
    if version < (3, 10):
        return Advice(
            "python", False, report.python, "install Python 3.10 or newer, and make the environment anew with it"
        )
    if jetpack is not None and jetpack.supported and report.python.split(".")[:2] != jetpack.python.split("."):
        found = f"{report.python}; TensorRT's bindings of JetPack {jetpack.name} are for {jetpack.python}"
        return Advice("python", False, found, _VENV.replace("python3", f"/usr/bin/python{jetpack.python}"))
    return Advice("python", True, report.python)


def _advise_memory(report: DeviceReport) -> Advice:
    total, available = report.memory_total_bytes, report.memory_available_bytes
    if total is None or available is None:
        return Advice("memory", True, "unknown")
    found = f"{format_bytes(available)} of {format_bytes(total)} available"
    if available >= _LITTLE_MEMORY_BYTES:
        return Advice("memory", True, found)
    headless = (
        "sudo systemctl isolate multi-user.target (no desktop), or " if report.l4t else "close other programs, or "
    )
    swap = "sudo fallocate -l 8G /swap && sudo chmod 600 /swap && sudo mkswap /swap && sudo swapon /swap"
    return Advice("memory", False, found, headless + swap)


def _advise_onnxruntime(report: DeviceReport) -> Advice:
    installed = [f"{name} {report.packages[name]}" for name in PACKAGES[:2] if name in report.packages]
    found = ", ".join(installed) or "not installed"
    if len(installed) == 2:
        wanted = "voxedge[ort-gpu]" if report.gpus and report.arch == "x86_64" else "voxedge[ort]"
        mend = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install '{wanted}'"
        return Advice("onnxruntime", False, f"{found}: they overwrite each other's files", mend)
    if report.provider_error:
        mend = "pip install --force-reinstall --no-deps onnxruntime"
        return Advice("onnxruntime", False, f"{found}; it does not load: {report.provider_error}", mend)
    if not report.providers:
        return Advice("onnxruntime", False, found, "pip install 'voxedge[ort]'")
    return Advice("onnxruntime", True, f"{found or 'installed'} ({', '.join(report.providers)})")


def _advise_gpu(report: DeviceReport) -> Iterator[Advice]:
    for gpu in report.gpus:
        version = f", driver {report.driver}" if report.driver else ""
        capability = f"{gpu.compute_capability // 10}.{gpu.compute_capability % 10}"
        found = (
            f"{gpu.name}, compute capability {capability}, {format_bytes(gpu.total_bytes)}{version}, CUDA {gpu.cuda}"
        )
        yield Advice("gpu", True, found)
    if report.gpus:
        return
    if report.l4t:
        yield Advice(
            "gpu", False, "the driver shows no device", "sudo usermod -aG video,render $USER, then log in again"
        )
    elif report.nvidia_hardware:
        found = f"an NVIDIA device, but the driver {report.driver or '(not loaded)'} does not show it"
        yield Advice("gpu", False, found, "sudo ubuntu-drivers install, then reboot; in a container add --gpus all")
    else:
        yield Advice("gpu", True, "no NVIDIA GPU: speech runs on the CPU")


def _advise_jetson(report: DeviceReport) -> Iterator[Advice]:
    jetpack = find_jetpack(report.l4t)
    name = f"{report.jetson_model or 'Jetson'}, Jetson Linux {report.l4t}"
    if jetpack is not None and jetpack.supported:
        yield Advice("jetpack", True, f"{name}: JetPack {jetpack.name}, CUDA {jetpack.cuda}")
    elif jetpack is None and int(report.l4t.split(".")[0]) > JETPACKS[-1].l4t[0]:
        yield Advice("jetpack", True, f"{name}: newer than what voxedge was written for")
    else:
        found = f"{name}: JetPack {jetpack.name if jetpack else 'older than 6.1'}, whose TensorRT is too old"
        yield Advice("jetpack", False, found, "flash JetPack 6.2 or newer (Orin), 7.1 or newer (Thor) with SDK Manager")
    yield _advise_jetson_tensorrt(report)
    if report.power_mode:
        fast = report.power_mode.upper().startswith("MAXN")
        mend = "sudo nvpmodel -p --verbose (lists the modes), sudo nvpmodel -m NUMBER of MAXN, sudo jetson_clocks"
        yield Advice("power mode", fast, report.power_mode, "" if fast else mend)


def _advise_jetson_tensorrt(report: DeviceReport) -> Advice:
    if "tensorrt" in report.packages:
        return Advice("tensorrt", True, report.packages["tensorrt"])
    if report.system_tensorrt and report.virtual_environment:
        return Advice("tensorrt", False, "in the system's Python, not visible in this virtual environment", _VENV)
    return Advice("tensorrt", False, "not installed", "sudo apt update && sudo apt install nvidia-jetpack")


def _advise_desktop(report: DeviceReport) -> Iterator[Advice]:
    if report.arch != "x86_64":
        return
    version = report.packages.get("tensorrt-rtx")
    usable = any(gpu.compute_capability >= _OLDEST_RTX for gpu in report.gpus)
    if version:
        yield Advice("tensorrt-rtx", True, version)
    else:
        found = "not installed" if usable else "not installed; only needed to build engines for other machines"
        yield Advice("tensorrt-rtx", not usable, found, "pip install 'voxedge[rtx]'" if usable else "")
    if "tensorrt" in report.packages:
        yield Advice("tensorrt", True, report.packages["tensorrt"])
    if report.gpus and report.providers and "CUDAExecutionProvider" not in report.providers:
        mend = "pip uninstall -y onnxruntime && pip install 'voxedge[ort-gpu]'"
        yield Advice("onnxruntime on the GPU", False, "no CUDAExecutionProvider", mend)


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
    text = _read(root / "proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    part = re.search(r"^CPU part\s*:\s*(\w+)$", text, re.MULTILINE)
    if named:
        return named[1].strip()
    return _ARM_PARTS.get(part[1], f"ARM part {part[1]}") if part else "unknown"


def _has_nvidia(root: Path) -> bool:
    return any(_read(path).strip() == _NVIDIA_VENDOR for path in root.glob("sys/bus/pci/devices/*/vendor"))


def _driver_version(root: Path) -> str:
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _read(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def _power_mode(root: Path) -> str:
    """Name of the mode that nvpmodel set; its own tool needs more rights on some releases than its files do."""
    number = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if not number:
        return ""
    pattern = rf"POWER_MODEL\s+ID={int(number[1])}\s+NAME=(\S+)"
    name = re.search(pattern, _read(root / "etc/nvpmodel.conf"))
    return name[1] if name else f"mode {int(number[1])}"


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""

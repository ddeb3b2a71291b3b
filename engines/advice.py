"""What to type where something does not work on this machine.

In: a `DeviceReport`. Out: `Advice`, one for each topic, in the order of the work; whatever is not as it should be has
an exact command. Looks at nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from voxedge.engines.device import PACKAGES, DeviceReport
from voxedge.engines.files import format_bytes
from voxedge.engines.jetpack import JETPACKS, find_jetpack
from voxedge.engines.trt.api import RTX_DEVICES

_LITTLE_MEMORY_BYTES = 2_000_000_000
_SMALL_BOARD_BYTES = 10_000_000_000
_TENSORRT_LIBRARIES = ("TensorRT", "TensorRT parser")
_VENV = "python3 -m venv --system-site-packages .venv && .venv/bin/pip install voxedge"


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
        memory = format_bytes(gpu.total_bytes)
        found = f"{gpu.name}, compute capability {gpu.capability}, {memory}{version}, CUDA {gpu.cuda}"
        yield Advice("gpu", True, found)
    if report.gpu_free_bytes is not None:
        yield _advise_gpu_memory(report.gpu_free_bytes)
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


def _advise_gpu_memory(free_bytes: int) -> Advice:
    found = f"{format_bytes(free_bytes)} free"
    if free_bytes >= _LITTLE_MEMORY_BYTES:
        return Advice("gpu memory", True, found)
    return Advice(
        "gpu memory", False, found, "nvidia-smi (lists the programs that hold it); close some, or --memory staged"
    )


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
    yield _advise_jetson_libraries(report)
    yield from _advise_jetson_speed(report)
    total = report.memory_total_bytes
    if report.zram_bytes and total is not None and total < _SMALL_BOARD_BYTES:
        found = f"{format_bytes(report.zram_bytes)} of zram, which takes memory that models need"
        yield Advice("zram", False, found, "sudo systemctl disable --now nvzramconfig, and swap on a disk instead")


def _advise_jetson_speed(report: DeviceReport) -> Iterator[Advice]:
    modes = "sudo nvpmodel -p --verbose (lists the modes), sudo nvpmodel -m NUMBER of MAXN"
    if report.power_mode:
        fast = report.power_mode.upper().startswith("MAXN")
        yield Advice("power mode", fast, report.power_mode, "" if fast else modes)
    else:
        yield Advice("power mode", False, "unknown", "sudo nvpmodel -q")
    if report.clocks_fixed is not None:
        fixed = report.clocks_fixed
        yield Advice(
            "clocks", fixed, "fixed" if fixed else "they follow the load", "" if fixed else "sudo jetson_clocks"
        )


def _advise_jetson_tensorrt(report: DeviceReport) -> Advice:
    error = report.import_errors.get("tensorrt")
    if error:
        mend = "sudo apt install --reinstall nvidia-jetpack python3-libnvinfer"
        return Advice("tensorrt", False, f"{report.packages['tensorrt']}; it does not load: {error}", mend)
    if "tensorrt" in report.packages:
        return Advice("tensorrt", True, report.packages["tensorrt"])
    if report.system_tensorrt and report.virtual_environment:
        return Advice("tensorrt", False, "in the system's Python, not visible in this virtual environment", _VENV)
    return Advice("tensorrt", False, "not installed", "sudo apt update && sudo apt install nvidia-jetpack")


def _advise_jetson_libraries(report: DeviceReport) -> Advice:
    missing = [name for name in ("CUDA driver", "CUDA runtime", *_TENSORRT_LIBRARIES) if name not in report.libraries]
    if not missing:
        return Advice("libraries", True, "CUDA and TensorRT")
    found = f"no {', no '.join(missing)}"
    return Advice("libraries", False, found, "sudo apt update && sudo apt install nvidia-jetpack")


def _advise_desktop(report: DeviceReport) -> Iterator[Advice]:
    if report.arch != "x86_64":
        return
    yield _advise_rtx(report)
    if "tensorrt" in report.packages:
        yield _advise_loads(report, "tensorrt", "pip install --force-reinstall tensorrt")
    if report.gpus and report.providers:
        yield _advise_cuda_provider(report)


def _advise_rtx(report: DeviceReport) -> Advice:
    usable = any(gpu.compute_capability in RTX_DEVICES for gpu in report.gpus)
    found = "not installed"
    if "tensorrt-rtx" in report.packages:
        loads = _advise_loads(report, "tensorrt-rtx", "pip install --force-reinstall --no-deps tensorrt-rtx")
        if usable or not report.gpus or not loads.ok:
            return loads
        found = loads.found
    elif usable:
        return Advice("tensorrt-rtx", False, found, "pip install 'voxedge[rtx]'")
    if report.gpus:
        found += (
            f"; it does not support this GPU's compute capability {report.gpus[0].capability}, use --target trt or "
            "--backend cuda"
        )
    return Advice("tensorrt-rtx", True, f"{found}; only needed to build engines for other machines")


def _advise_loads(report: DeviceReport, package: str, mend: str) -> Advice:
    version, error = report.packages[package], report.import_errors.get(package)
    if error:
        return Advice(package, False, f"{version}; it does not load: {error}", mend)
    return Advice(package, True, version)


def _advise_cuda_provider(report: DeviceReport) -> Advice:
    if "CUDAExecutionProvider" not in report.providers:
        mend = "pip uninstall -y onnxruntime && pip install 'voxedge[ort-gpu]'"
        return Advice("onnxruntime on the GPU", False, "no CUDAExecutionProvider", mend)
    missing = [name for name in ("cuBLAS", "cuDNN") if name not in report.libraries]
    if missing:
        found = f"no {', no '.join(missing)}, which its CUDAExecutionProvider needs"
        return Advice("onnxruntime on the GPU", False, found, "pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return Advice("onnxruntime on the GPU", True, "CUDAExecutionProvider, cuBLAS and cuDNN")

"""Which NVIDIA device is here, asked of the driver itself.

In: the driver's library. Out: `Gpu` records and the Jetson release; nothing where there is none. Imports no CUDA
package, creates no context unless free memory is asked for, and does not decide what a device is good for.
"""

from __future__ import annotations

import ctypes
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxedge.engines.files import read_text

# Values of CUdevice_attribute in cuda.h; they have not changed since CUDA 5.
_INTEGRATED = 18
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_L4T_LINE = re.compile(r"#\s*R([0-9]{1,4})\s*\(release\),\s*REVISION:\s*([0-9]{1,4}(?:\.[0-9]{1,4}){0,3})")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    index: int
    """Its number among the visible devices."""
    name: str
    """What the driver calls it, such as `Orin`."""
    compute_capability: int
    """Ten times the compute capability: 87 for 8.7, 120 for 12.0."""
    total_bytes: int
    """Its memory; on Jetson the memory that CPU and GPU share."""
    integrated: bool
    """Whether it shares the CPU's memory."""
    cuda: str
    """Newest CUDA version that the driver supports, such as `12.6`."""

    @property
    def capability(self) -> str:
        """The compute capability as NVIDIA writes it, such as `8.7`."""
        return f"{self.compute_capability // 10}.{self.compute_capability % 10}"


def open_driver(library: str = "libcuda.so.1") -> Any:  # noqa: ANN401 - ctypes libraries have no static type
    """The driver's library, or None where no driver is installed."""
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        _log.debug("no NVIDIA driver: %s", error)
        return None


def find_gpus(driver: Any = None) -> tuple[Gpu, ...]:  # noqa: ANN401
    """Every visible CUDA device; empty where there is no driver or no device.

    Args:
        driver: The driver's library; None opens the installed one.
    """
    driver = driver if driver is not None else open_driver()
    if driver is None or driver.cuInit(0) != 0:
        return ()
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_describe(driver, index, cuda) for index in range(count.value))


def free_device_bytes(gpu: Gpu, driver: Any = None) -> int:  # noqa: ANN401
    """Free memory of the device in bytes; its total memory where the driver does not tell. Creates a context."""
    driver = driver if driver is not None else open_driver()
    context, popped = ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    if driver is None or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), gpu.index) != 0:
        return gpu.total_bytes
    try:
        driver.cuCtxPushCurrent_v2(context)
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) != 0
        driver.cuCtxPopCurrent_v2(ctypes.byref(popped))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(gpu.index)
    return gpu.total_bytes if failed else free.value


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Host memory that can be used without swapping (MemAvailable), in bytes; None where the system does not tell."""
    return _meminfo(root).get("MemAvailable")


def free_swap_bytes(root: Path = Path("/")) -> int:
    """Free swap space in bytes; 0 where there is none."""
    return _meminfo(root).get("SwapFree", 0)


def total_memory_bytes(root: Path = Path("/")) -> int | None:
    """Host memory in bytes; None where the system does not tell."""
    return _meminfo(root).get("MemTotal")


def read_l4t(root: Path = Path("/")) -> str:
    """The Jetson Linux release, such as `36.4.3`; empty on anything that is no Jetson."""
    found = _L4T_LINE.search(read_text(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else ""


def _describe(driver: Any, index: int, cuda: str) -> Gpu:  # noqa: ANN401
    device, name, total = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    capability = 10 * attribute(_CAPABILITY_MAJOR) + attribute(_CAPABILITY_MINOR)
    label = name.value.decode("utf-8", errors="replace")
    return Gpu(index, label, capability, total.value, bool(attribute(_INTEGRATED)), cuda)


def _meminfo(root: Path) -> dict[str, int]:
    lines = read_text(root / "proc/meminfo").splitlines()
    pairs = (line.replace("kB", "").split(":", 1) for line in lines if ":" in line)
    return {key: int(value) * 1024 for key, value in pairs if re.fullmatch(r"\s*[0-9]{1,15}\s*", value)}

"""Facts about machines that are not here: fake roots and a fake driver; every mend is an exact command."""

# ruff: noqa: ANN401, D102 - a double of a C library
from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from voxedge.engines import device, gpu, tegra
from voxedge.engines.advice import Advice, advise
from voxedge.engines.device import DeviceReport, gather
from voxedge.engines.jetpack import JETPACKS, find_jetpack
from voxedge.engines.libraries import import_error

ORIN = gpu.Gpu(0, "Orin", 87, 7_990_000_000, True, "12.6")
RTX = gpu.Gpu(0, "NVIDIA GeForce RTX 4090", 89, 24_000_000_000, False, "13.0")


class FakeDriver:
    """libcuda with given devices: name, (major, minor), bytes, integrated."""

    def __init__(self, *devices: tuple[str, tuple[int, int], int, int]) -> None:
        self.devices = devices
        self.retained = 0

    def cuInit(self, flags: int) -> int:
        return flags

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.devices)
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        name.value = self.devices[handle.value][0].encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, handle: ctypes.c_int) -> int:
        total._obj.value = self.devices[handle.value][2]
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, handle: ctypes.c_int) -> int:
        _, (major, minor), _, integrated = self.devices[handle.value]
        value._obj.value = {75: major, 76: minor, 18: integrated}[number]
        return 0

    def cuDevicePrimaryCtxRetain(self, _context: Any, _index: int) -> int:
        self.retained += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, _index: int) -> int:
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, _context: Any) -> int:
        return 0

    def cuCtxPopCurrent_v2(self, _context: Any) -> int:
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 5_000_000_000, self.devices[0][2]
        return 0


def put(root: Path, relative: str, text: str) -> None:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    put(
        tmp_path,
        "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    )
    put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    put(
        tmp_path, "proc/meminfo", "MemTotal:        7802444 kB\nMemAvailable:    1500000 kB\nHugePages_Total:       0\n"
    )
    put(tmp_path, "proc/cpuinfo", "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd42\n")
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0001 fmode:quiet")
    put(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\nX\n< POWER_MODEL ID=1 NAME=25W >\n")
    put(tmp_path, "usr/lib/python3.10/dist-packages/tensorrt/__init__.py", "")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "729600\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1728000\n")
    put(
        tmp_path,
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/zram0 partition 650200 0 5\n/dev/zram1 partition 650200 0 5\n",
    )
    for name in ("tegra/libcuda.so.1", "libnvinfer.so.10", "libnvonnxparser.so.10"):
        put(tmp_path, f"usr/lib/aarch64-linux-gnu/{name}", "")
    put(tmp_path, "usr/local/cuda-12.6/targets/aarch64-linux/lib/libcudart.so.12", "")
    return tmp_path


@pytest.fixture
def desktop(tmp_path: Path) -> DeviceReport:
    report = gather(tmp_path, FakeDriver())
    return dataclasses.replace(
        report,
        arch="x86_64",
        python="3.12.3",
        memory_total_bytes=64 << 30,
        memory_available_bytes=50 << 30,
        gpus=(RTX,),
        packages={"onnxruntime-gpu": "1.22.0", "tensorrt-rtx": "1.7.1"},
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        provider_error="",
        virtual_environment=True,
        gpu_free_bytes=20_000_000_000,
        libraries={"cuBLAS": "libcublas.so.12", "cuDNN": "libcudnn.so.9"},
    )


def topics(report: DeviceReport) -> dict[str, Advice]:
    found = advise(report)
    assert all(bool(advice.mend) != advice.ok for advice in found)
    return {advice.topic: advice for advice in found}


def test_driver() -> None:
    driver = FakeDriver(("Orin", (8, 7), 7_990_000_000, 1), ("RTX 5090", (12, 0), 32_000_000_000, 0))
    first, second = gpu.find_gpus(driver)
    assert first == ORIN
    assert (second.index, second.compute_capability, second.integrated) == (1, 120, False)
    assert gpu.free_device_bytes(first, driver) == 5_000_000_000
    assert driver.retained == 0
    assert gpu.find_gpus(FakeDriver()) == ()
    assert gpu.open_driver("libnothing.so.1") is None


def test_gather_on_a_jetson(jetson: Path) -> None:
    report = gather(jetson, FakeDriver(("Orin", (8, 7), 7_990_000_000, 1)))
    assert report.gpus == (ORIN,)
    assert report.l4t == "36.4.3"
    assert report.jetson_model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert report.power_mode == "25W"
    assert report.cpu == "Cortex-A78AE"
    assert report.memory_total_bytes == 7802444 * 1024
    assert report.memory_available_bytes == 1500000 * 1024
    assert report.system_tensorrt
    assert report.clocks_fixed is False
    assert report.zram_bytes == 2 * 650200 * 1024
    assert {"CUDA driver", "CUDA runtime", "TensorRT", "TensorRT parser"} <= set(report.libraries)
    assert report.libraries["TensorRT"] == str(jetson / "usr/lib/aarch64-linux-gnu/libnvinfer.so.10")
    assert report.gpu_free_bytes is None  # it is the host's


def test_gather_on_a_desktop(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\n")
    put(
        tmp_path,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n",
    )
    put(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    report = gather(tmp_path, FakeDriver())
    assert (report.cpu, report.driver, report.nvidia_hardware) == ("AMD Ryzen 9 7950X", "550.54.15", True)
    assert (report.l4t, report.jetson_model, report.power_mode) == ("", "", "")
    assert (report.memory_total_bytes, report.memory_available_bytes) == (None, None)


def test_open_kernel_module(tmp_path: Path) -> None:
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
    put(tmp_path, "proc/driver/nvidia/version", line)
    assert gather(tmp_path, FakeDriver()).driver == "570.86.15"


def test_everything_fine(desktop: DeviceReport) -> None:
    assert all(advice.ok for advice in topics(desktop).values())


def test_jetson_advice(jetson: Path) -> None:
    report = dataclasses.replace(
        gather(jetson, FakeDriver()),
        gpus=(ORIN,),
        python="3.10.12",
        packages={},
        providers=(),
        virtual_environment=True,
    )
    found = topics(report)
    assert found["jetpack"].ok
    assert "JetPack 6.2, CUDA 12.6" in found["jetpack"].found
    assert found["tensorrt"].mend.startswith("python3 -m venv --system-site-packages")
    assert found["onnxruntime"].mend == "pip install 'voxedge[ort]'"
    assert "nvpmodel" in found["power mode"].mend
    assert "multi-user.target" in found["memory"].mend
    assert "tensorrt-rtx" not in found  # x86-64 only
    other = topics(dataclasses.replace(report, python="3.12.1", power_mode="MAXN_SUPER", system_tensorrt=False))
    assert other["python"].mend.startswith("/usr/bin/python3.10 -m venv --system-site-packages")
    assert other["power mode"].ok
    assert other["tensorrt"].mend == "sudo apt update && sudo apt install nvidia-jetpack"
    assert topics(dataclasses.replace(report, packages={"tensorrt": "10.3.0"}))["tensorrt"].ok
    assert "usermod" in topics(dataclasses.replace(report, gpus=()))["gpu"].mend
    assert found["libraries"].ok
    assert found["clocks"].mend == "sudo jetson_clocks"
    assert "nvzramconfig" in found["zram"].mend
    bare = dataclasses.replace(report, libraries={"CUDA driver": ""}, clocks_fixed=True, zram_bytes=0, power_mode="")
    other = topics(bare)
    assert other["libraries"].found == "no CUDA runtime, no TensorRT, no TensorRT parser"
    assert other["libraries"].mend == "sudo apt update && sudo apt install nvidia-jetpack"
    assert other["clocks"].ok
    assert "zram" not in other
    assert other["power mode"].mend == "sudo nvpmodel -q"
    error = {"tensorrt": "ImportError: libnvinfer.so.10: cannot open shared object file"}
    broken = topics(dataclasses.replace(report, packages={"tensorrt": "10.3.0"}, import_errors=error))["tensorrt"]
    assert "does not load: ImportError" in broken.found
    assert "python3-libnvinfer" in broken.mend


@pytest.mark.parametrize(("l4t", "ok"), [("35.6.1", False), ("36.3.0", False), ("35.1", False), ("40.1", True)])
def test_other_jetpacks(jetson: Path, l4t: str, ok: bool) -> None:
    report = dataclasses.replace(gather(jetson, FakeDriver()), l4t=l4t)
    assert topics(report)["jetpack"].ok == ok


def test_both_onnxruntimes(desktop: DeviceReport) -> None:
    both = {"onnxruntime": "1.23.0", "onnxruntime-gpu": "1.22.0"}
    advice = topics(dataclasses.replace(desktop, packages=both))["onnxruntime"]
    assert advice.mend == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'voxedge[ort-gpu]'"
    cpu = topics(dataclasses.replace(desktop, packages=both, gpus=()))["onnxruntime"]
    assert cpu.mend.endswith("pip install 'voxedge[ort]'")


def test_desktop_advice(desktop: DeviceReport) -> None:
    plain = dataclasses.replace(desktop, packages={"onnxruntime": "1.23.0"}, providers=("CPUExecutionProvider",))
    found = topics(plain)
    assert found["tensorrt-rtx"].mend == "pip install 'voxedge[rtx]'"
    assert "voxedge[ort-gpu]" in found["onnxruntime on the GPU"].mend
    broken = topics(dataclasses.replace(plain, providers=(), provider_error="libcudart.so.12: cannot open"))
    assert "libcudart.so.12" in broken["onnxruntime"].found
    hidden = topics(dataclasses.replace(desktop, gpus=(), nvidia_hardware=True))
    assert "ubuntu-drivers" in hidden["gpu"].mend
    none = topics(dataclasses.replace(desktop, gpus=(), packages={"onnxruntime": "1.23.0"}))
    assert none["gpu"].ok
    assert none["tensorrt-rtx"].ok
    hopper = gpu.Gpu(0, "NVIDIA H100 80GB HBM3", 90, 85_000_000_000, False, "13.0")
    for report in (dataclasses.replace(desktop, gpus=(hopper,)), dataclasses.replace(plain, gpus=(hopper,))):
        found = topics(report)["tensorrt-rtx"].found
        assert "does not support this GPU's compute capability 9.0, use --target trt or --backend cuda" in found
    assert not topics(dataclasses.replace(desktop, python="3.9.18"))["python"].ok
    assert not topics(dataclasses.replace(desktop, memory_available_bytes=1 << 30))["memory"].ok


def test_desktop_libraries_and_memory(desktop: DeviceReport) -> None:
    found = topics(dataclasses.replace(desktop, libraries={"cuBLAS": "x"}, gpu_free_bytes=500_000_000))
    assert found["onnxruntime on the GPU"].mend == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    assert found["gpu memory"].mend.startswith("nvidia-smi")
    broken = topics(dataclasses.replace(desktop, import_errors={"tensorrt-rtx": "ImportError: no libcudart"}))
    assert broken["tensorrt-rtx"].mend == "pip install --force-reinstall --no-deps tensorrt-rtx"


@pytest.mark.parametrize(
    ("status", "conf", "expected"),
    [
        ("", "", ""),
        ("pmode:0002 fmode:quiet", "", "mode 2"),
        ("pmode:" + "9" * 5000, "", "mode 9999"),
        ("pmode:0001", "< POWER_MODEL ID=1 NAME=MAXN_SUPER >", "MAXN_SUPER"),
        ("pmode:0001", "< POWER_MODEL ID=1 NAME=\x1b[31m >", "mode 1"),
        ("\0\xff" * 100, "x" * 100, ""),
    ],
)
def test_power_modes(tmp_path: Path, status: str, conf: str, expected: str) -> None:
    put(tmp_path, "var/lib/nvpmodel/status", status)
    put(tmp_path, "etc/nvpmodel/nvpmodel_p3767_0003_super.conf", conf)
    assert tegra.power_mode(tmp_path) == expected
    put(tmp_path, "etc/nvpmodel/nvpmodel_p3767_0001.conf", conf)  # nobody knows which of the two is this board's
    assert tegra.power_mode(tmp_path) == ("mode 1" if expected == "MAXN_SUPER" else expected)


def test_the_power_mode_is_asked_for_where_no_file_tells(tmp_path: Path) -> None:
    put(
        tmp_path,
        "usr/sbin/nvpmodel",
        '#!/bin/sh\n[ "$1" = -q ] && printf "NV Fan Mode:quiet\\nNV Power Mode: 15W\\n0\\n"\n',
    )
    assert tegra.power_mode(tmp_path) == ""  # it may not be run
    (tmp_path / "usr/sbin/nvpmodel").chmod(0o755)
    assert tegra.power_mode(tmp_path) == "15W"


def test_files_that_lie_or_hang(jetson: Path) -> None:
    """Endless numbers, binary rubbish, pipes and folders in place of files: nothing raises and nothing waits."""
    put(jetson, "proc/meminfo", f"MemTotal: {'9' * 5000} kB\nMemAvailable: \u00b2 kB\nSwapFree: -3 kB\nMemFree: 1 kB\n")
    put(jetson, "proc/swaps", f"/dev/zram0 partition {'9' * 5000} 0 5\nshort\n")
    put(jetson, "etc/nv_tegra_release", f"# R{'3' * 5000} (release), REVISION: {'4.' * 5000}")
    for name in ("proc/cpuinfo", "var/lib/nvpmodel/status"):
        (jetson / name).unlink()
    os.mkfifo(jetson / "proc/cpuinfo")
    (jetson / "var/lib/nvpmodel/status").mkdir()
    report = gather(jetson, FakeDriver())
    assert (report.memory_total_bytes, report.memory_available_bytes, report.swap_free_bytes) == (None, None, 0)
    assert (report.l4t, report.cpu, tegra.power_mode(jetson), tegra.zram_bytes(jetson)) == ("", "unknown", "", 0)
    advise(report)


def test_a_module_that_crashes_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "crashing.py", "import os; os.abort()")
    put(tmp_path, "failing.py", "raise ImportError('libnvinfer.so.10: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert import_error("json") == ""
    assert import_error("failing") == "ImportError: libnvinfer.so.10: cannot open"
    assert "code -6" in import_error("crashing")


def test_jetpack_table() -> None:
    assert [row.l4t for row in JETPACKS] == sorted(row.l4t for row in JETPACKS)
    names = {
        l4t: getattr(find_jetpack(l4t), "name", None) for l4t in ("36.4.0", "36.4.3", "36.5", "38.4.1", "39.2", "")
    }
    assert names == {"36.4.0": "6.1", "36.4.3": "6.2", "36.5": "6.2.1", "38.4.1": "7.1", "39.2": "7.2", "": None}


def test_this_machine_without_heavy_imports() -> None:
    code = (
        "import sys; from voxedge.engines.device import gather; from voxedge.engines.advice import advise\n"
        "advise(gather()); print(*sys.modules)"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "tensorrt", "tensorrt_rtx", "transformers"} & set(names)
    assert device.gather().cores >= 1

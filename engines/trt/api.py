"""TensorRT's two Python packages behind one door.

In: which flavour. Out: a `Library` with the imported module, its version and what it can do. The bindings of TensorRT
10.3 to 11.4 and of TensorRT-RTX 1.x agree in everything that voxedge uses but for what `ONLY_IN` names. Does not build
and does not run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from voxedge.engines.errors import BackendUnavailableError
from voxedge.engines.gpu import read_l4t
from voxedge.engines.stamps import EngineFlavour

Target = Literal["rtx", "trt"]

FLAVOURS: Mapping[Target, EngineFlavour] = MappingProxyType({"rtx": "tensorrt_rtx", "trt": "tensorrt"})
"""The library that serves a build target."""
TARGETS: Mapping[EngineFlavour, Target] = MappingProxyType({flavour: target for target, flavour in FLAVOURS.items()})
"""The build target that a library serves."""
OLDEST: Mapping[EngineFlavour, tuple[int, int]] = MappingProxyType({"tensorrt": (10, 3), "tensorrt_rtx": (1, 1)})
"""Oldest version whose names were checked (JetPack 6.1 has 10.3)."""
RTX_DEVICES = (75, 80, 86, 89, 120, 121)
"""Compute capabilities that TensorRT-RTX 1.7 knows, for where none is installed; one that is says it itself."""
ONLY_IN: Mapping[str, EngineFlavour] = MappingProxyType(
    {
        "ComputeCapability": "tensorrt_rtx",
        "IBuilderConfig.num_compute_capabilities": "tensorrt_rtx",
        "IBuilderConfig.set_compute_capability": "tensorrt_rtx",
    }
)
"""Names that one flavour alone has; every other name used here exists in all supported versions."""


@dataclass(frozen=True, slots=True)
class Library:
    """An imported TensorRT."""

    flavour: EngineFlavour
    """Which of the two it is."""
    module: Any
    """The Python module, `tensorrt` or `tensorrt_rtx`."""
    version: str
    """Its full version, such as `10.3.0.30`."""

    @property
    def cross_builds(self) -> bool:
        """Whether it compiles for devices that are not here (ahead of time, by compute capability)."""
        return self.flavour == "tensorrt_rtx"

    @property
    def has_timing_cache(self) -> bool:
        """Whether a timing cache speeds up later builds; TensorRT-RTX keeps the calls as no-ops since 1.2."""
        return self.flavour == "tensorrt"

    def network_flags(self) -> int:
        """Flags of a strongly typed network; TensorRT 11 and TensorRT-RTX know no other kind, and accept the flag."""
        trt = self.module
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def devices(self) -> tuple[int, ...]:
        """Compute capabilities that it can compile for without the device, ascending; empty if none."""
        if not self.cross_builds:
            return ()
        names = dir(self.module.ComputeCapability)
        return tuple(sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name)))


def load(flavour: EngineFlavour, root: Path = Path("/")) -> Library:
    """Import TensorRT.

    Args:
        flavour: `tensorrt` or `tensorrt_rtx`.
        root: Where to look for the Jetson release that the advice depends on.

    Raises:
        BackendUnavailableError: It is not installed, cannot be loaded, or is too old; the message has the command.
    """
    try:
        module = importlib.import_module(flavour)
        version = str(module.__version__)
    except (ImportError, OSError, AttributeError) as error:
        raise BackendUnavailableError(
            f"expected the Python package {flavour}, found: {error}. {install_command(flavour, root)}"
        ) from error
    if parse_version(version)[:2] < OLDEST[flavour]:
        oldest = ".".join(map(str, OLDEST[flavour]))
        raise BackendUnavailableError(
            f"expected {flavour} {oldest} or newer, found {version}. {install_command(flavour, root)}"
        )
    return Library(flavour, module, version)


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    Example:
        >>> parse_version("10.3.0.30+cuda12")
        (10, 3, 0, 30)
    """
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def install_command(flavour: EngineFlavour, root: Path = Path("/")) -> str:
    """What to type to get the library, on this kind of machine."""
    if flavour == "tensorrt_rtx":
        return "Type: pip install 'voxedge[rtx]' (x86-64 only; a Jetson uses `--target trt`)"
    if read_l4t(root):
        return (
            "On a Jetson (JetPack 6.1 or newer) type: sudo apt install nvidia-jetpack && "
            "python3 -m venv --system-site-packages .venv && .venv/bin/pip install voxedge"
        )
    return "Type: pip install tensorrt"

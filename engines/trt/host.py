"""Where engines are built and for what: library, devices, operating system.

In: an imported library and the devices that were asked for. Out: a `BuildHost`, from which every stamp comes, the one
of a finished engine and the one that is wanted before one is opened. Does not build.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, ConfigError
from voxedge.engines.files import user_cache_folder
from voxedge.engines.gpu import Gpu, available_memory_bytes, find_gpus, free_device_bytes, read_l4t
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.stamps import EngineStamp
from voxedge.engines.trt.api import Library


@dataclass(frozen=True, slots=True)
class BuildHost:
    """A library on a machine, and the devices that engines are for."""

    library: Library
    """What compiles or runs them."""
    compute_capabilities: tuple[int, ...]
    """The devices, such as (87,)."""
    gpu: Gpu | None
    """The device in this machine that is meant; None when compiling for others."""
    system: str
    """Operating system, such as `linux`."""
    arch: str
    """Processor architecture, such as `aarch64`."""
    l4t: str
    """Jetson Linux release; empty elsewhere."""

    def stamp(self, bundle: Bundle, graph: GraphSpec, options: Mapping[str, str]) -> EngineStamp:
        """The stamp that an engine of `graph` has when it is built here now, or must have to be opened here."""
        return EngineStamp(
            graph_sha256=bundle.manifest.files[graph.path].sha256,
            data_sha256=bundle.manifest.files[graph.data].sha256,
            flavour=self.library.flavour,
            version=self.library.version,
            compute_capabilities=self.compute_capabilities,
            os=self.system,
            arch=self.arch,
            l4t=self.l4t,
            profiles=graph.profiles,
            precision=graph.precision,
            options=options,
            voxedge_version=_own_version(),
        )

    def free_bytes(self, reserved_bytes: int) -> int:
        """Device memory that a workspace may come from, in bytes.

        Args:
            reserved_bytes: What the build itself needs of the host's memory; on Jetson both come from one pool.
        """
        if self.gpu is None:
            return 0
        if self.gpu.integrated:
            return max(0, (available_memory_bytes() or self.gpu.total_bytes) - reserved_bytes)
        return free_device_bytes(self.gpu)


def find_host(library: Library, compute_capabilities: tuple[int, ...] = ()) -> BuildHost:
    """Describe this machine for building or running engines.

    Args:
        library: The imported library.
        compute_capabilities: Devices to compile for ahead of time; empty for the device in this machine.

    Raises:
        ConfigError: The library cannot compile for one of them.
        BackendUnavailableError: None were named and there is no GPU here, or one that the library has no kernels for.
    """
    place = platform.system().lower(), platform.machine()
    if not compute_capabilities:
        gpu = _local_gpu(library)
        supported = library.devices()
        if library.cross_builds and gpu.compute_capability not in supported:
            raise unsupported(library, gpu, f"it has kernels for {', '.join(f'SM{device}' for device in supported)}")
        return BuildHost(library, (gpu.compute_capability,), gpu, *place, read_l4t())
    unknown = sorted(set(compute_capabilities) - set(library.devices()))
    if unknown:
        raise ConfigError(
            f"{library.flavour} {library.version} compiles for {', '.join(map(str, library.devices()))}; "
            f"found --sm {','.join(map(str, unknown))}. Leave --sm out on the device itself"
        )
    return BuildHost(library, tuple(sorted(set(compute_capabilities))), None, *place, read_l4t())


def unsupported(library: Library, gpu: Gpu, reason: str) -> BackendUnavailableError:
    """The error for a device that engines of this library never run on, so that no build would help."""
    return BackendUnavailableError(
        f"{library.flavour} {library.version} does not support this GPU's compute capability {gpu.capability} "
        f"({gpu.name}; {reason}): use --target trt with --backend tensorrt, or --backend cuda"
    )


def timing_cache_path(host: BuildHost) -> Path:
    """Where measured kernel times are kept: one file for each device and library version."""
    return user_cache_folder() / f"timing-{host.library.version}-sm{host.compute_capabilities[0]}.cache"


def _local_gpu(library: Library) -> Gpu:
    found = find_gpus()
    if not found:
        advice = (
            f"name the devices to compile for: --sm {','.join(map(str, library.devices()))}"
            if library.cross_builds
            else "run this on the device"
        )
        raise BackendUnavailableError(
            f"expected an NVIDIA GPU to build for, found none (`nvidia-smi` shows what the driver says); {advice}"
        )
    return found[0]


def _own_version() -> str:
    try:
        return metadata.version("voxedge")
    except metadata.PackageNotFoundError:
        return ""

"""How engines are built: what the user chose, checked, and told to TensorRT.

In: a `BuildConfig`. Out: a configured IBuilderConfig, and the options that an engine's stamp keeps. Does not parse or
build.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from voxedge.engines.errors import BackendUnavailableError, BuildError, ConfigError
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.trt.api import Library, Target, parse_version
from voxedge.engines.trt.host import BuildHost

WeightsMode = Literal["embedded", "refittable", "stripped", "streamed"]
Compatibility = Literal["none", "same-capability", "ampere+"]

BLOCKWISE_OPSET = 21
"""First opset in which DequantizeLinear has blocks (ONNX operators, DequantizeLinear-21)."""
BLOCKWISE_SINCE = (10, 9)
"""First TensorRT whose parser reads that opset; the one of JetPack 6 (10.3) stops at 20."""

_MIN_WORKSPACE_BYTES = 64 << 20
_LEVELS: Mapping[Compatibility, str] = MappingProxyType(
    {"same-capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
)


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """How engines are built."""

    target: Target = "rtx"
    """`rtx`: TensorRT for RTX, desktop GPUs. `trt`: TensorRT, Jetson and data-centre GPUs."""
    compute_capabilities: tuple[int, ...] = ()
    """Devices to compile for, such as (89, 120), `rtx` only; empty for the device in this machine."""
    workspace_bytes: int | None = None
    """Scratch memory that a layer may use at most; None takes half of what is free when the build starts."""
    optimization_level: int = 3
    """From 0 to 5; higher builds longer for a faster engine."""
    timing_cache: Path | None = None
    """Measured kernel times, shared by all builds on a device; None uses the user's cache folder."""
    weights: WeightsMode = "embedded"
    """`refittable` weights can be replaced in the engine; a `stripped` engine takes them from the bundle's graph when
    it is opened; `streamed` weights that do not fit on the device come over from the host in every run."""
    compatibility: Compatibility = "none"
    """Other GPUs that an engine of `trt` shall run on too, which costs speed; not on Jetson."""

    def __post_init__(self) -> None:
        if self.compute_capabilities and self.target != "rtx":
            raise ConfigError(
                "TensorRT compiles for the device that it runs on only; expected no --sm with --target trt, found "
                f"{self.compute_capabilities}: run `voxedge build` on the device, or use --target rtx"
            )
        if self.compatibility != "none" and self.target != "trt":
            raise ConfigError(
                f"expected --compatibility {self.compatibility} with --target trt; TensorRT-RTX takes the devices "
                "by name: --sm 86,89,120"
            )
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"expected an optimisation level from 0 to 5, found {self.optimization_level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 0:
            raise ConfigError(f"expected a workspace of 0 bytes or more, found {self.workspace_bytes}")

    def stamp_options(self) -> dict[str, str]:
        """What of this shapes an engine, as strings."""
        workspace = "auto" if self.workspace_bytes is None else str(self.workspace_bytes)
        return {
            "workspace_bytes": workspace,
            "optimization_level": str(self.optimization_level),
            "weights": self.weights,
            "compatibility": self.compatibility,
        }


def check_config(config: BuildConfig, host: BuildHost) -> None:
    """Refuse what this library or this machine cannot do, before anything is parsed.

    Raises:
        ConfigError: The library has no such option, or it is not for Jetson.
        BackendUnavailableError: It needs the device to be in this machine.
    """
    level = _LEVELS.get(config.compatibility)
    if level and host.l4t:
        raise ConfigError(
            f"expected no --compatibility on a Jetson, found {config.compatibility}: TensorRT has it for desktop and "
            "data-centre GPUs only; build on each kind of device"
        )
    if level and not hasattr(host.library.module.HardwareCompatibilityLevel, level):
        raise ConfigError(
            f"expected TensorRT 10.13 or newer for --compatibility {config.compatibility}, found "
            f"{host.library.version}; use ampere+, or leave it out"
        )
    if config.weights in ("refittable", "stripped") and host.gpu is None:
        # TensorRT-RTX 1.7 runs kernels for these two while it builds, and fails with "CHECK(status == CUDA_SUCCESS)".
        raise BackendUnavailableError(
            f"{config.weights} engines can be built on the device only; leave --sm out there, or embed the weights"
        )


def check_parser(library: Library, graph: GraphSpec) -> None:
    """Refuse blockwise weight-only graphs where the library's parser does not read their opset.

    Raises:
        BuildError: With the graph's name and what to do instead.
    """
    too_old = library.flavour == "tensorrt" and parse_version(library.version)[:2] < BLOCKWISE_SINCE
    if too_old and graph.opset >= BLOCKWISE_OPSET:
        newest, since = BLOCKWISE_OPSET - 1, ".".join(map(str, BLOCKWISE_SINCE))
        raise BuildError(
            f"graph {graph.name} ({graph.precision}): expected opset {newest} or lower, found {graph.opset}, whose "
            f"weights in blocks TensorRT {library.version} cannot read ({since} can: JetPack 7). "
            "Type: voxedge export CHECKPOINT -o BUNDLE --precision int8-weight (one scale for each channel; or int8, "
            "fp16), and build that"
        )


def configure(host: BuildHost, builder_config: Any, config: BuildConfig, needed_bytes: int) -> None:  # noqa: ANN401
    """Set an IBuilderConfig.

    Args:
        host: What builds, and for which devices.
        builder_config: TensorRT's object.
        config: What was chosen; `check_config` has accepted it.
        needed_bytes: Host memory that the build itself takes; on Jetson it is not there for a workspace.

    Raises:
        BuildError: The library cannot compile for a device.
    """
    trt = host.library.module
    builder_config.builder_optimization_level = config.optimization_level
    # So that `voxedge info --layers` can show what was fused; it changes no kernel.
    builder_config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default, and gives FP32 products the 11 bits of FP16; an FP32 island is there because those are too few.
    builder_config.clear_flag(trt.BuilderFlag.TF32)
    workspace = config.workspace_bytes
    if workspace is None and host.gpu is not None:
        workspace = max(_MIN_WORKSPACE_BYTES, host.free_bytes(needed_bytes) // 2)
    if workspace is not None:
        builder_config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    weights_flags = {
        "refittable": trt.BuilderFlag.REFIT,
        "stripped": trt.BuilderFlag.STRIP_PLAN,
        "streamed": trt.BuilderFlag.WEIGHT_STREAMING,
    }
    if config.weights in weights_flags:
        builder_config.set_flag(weights_flags[config.weights])
    if config.compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[config.compatibility])
        builder_config.hardware_compatibility_level = level
    if host.library.cross_builds:
        builder_config.num_compute_capabilities = len(host.compute_capabilities)
        for index, capability in enumerate(host.compute_capabilities):
            device = getattr(trt.ComputeCapability, f"SM{capability}", trt.ComputeCapability.CURRENT)
            if not builder_config.set_compute_capability(device, index):
                raise BuildError(f"{host.library.flavour} {host.library.version} cannot compile for SM{capability}")

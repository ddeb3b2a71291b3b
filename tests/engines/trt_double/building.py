"""The double's parser and builder: an ONNX graph becomes a plan that holds it.

In: ONNX files with external data. Out: bytes with a header (version, devices, profiles, flags) and the model.
"""

# ruff: noqa: ANN401, D101, D102 - a double of bindings without static types
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trt_double.surface import Guarded

MAGIC = b"TensorRT double\n"
TIMING_MAGIC = b"timing cache of the double\n"
NEWEST_OPSET = {"10.3": 20, "10.13": 24, "11.4": 24, "rtx-1.7": 24}
"""That each parser reads."""
DTYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}


class ILogger:
    """To be derived from; messages go to `log`."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.ready = True


class IProgressMonitor(ILogger):
    """To be derived from."""


class IHostMemory(bytes):
    """Bytes that the library owns."""

    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor(Guarded):
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        dims = value.type.tensor_type.shape.dim
        self.name = value.name
        self.dtype = self._trt.DataType[DTYPES[value.type.tensor_type.elem_type]]
        self.shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
        self.is_shape_tensor = False


class INetworkDefinition(Guarded):
    def __init__(self, logger: ILogger, flags: int) -> None:
        self._logger, self._flags, self._model = logger, flags, onnx.ModelProto()

    num_inputs = property(lambda self: len(self._model.graph.input))
    num_outputs = property(lambda self: len(self._model.graph.output))

    def get_input(self, index: int) -> Any:
        return self._trt.ITensor(self._model.graph.input[index])

    def get_output(self, index: int) -> Any:
        return self._trt.ITensor(self._model.graph.output[index])


class ParserError(Guarded):
    def __init__(self, text: str, node: str = "", operator: str = "") -> None:
        self._said = text, node, operator

    def desc(self) -> str:
        return self._said[0]

    def node_name(self) -> str:
        return self._said[1]

    def node_operator(self) -> str:
        return self._said[2]


class OnnxParser(Guarded):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert logger.ready
        self._network, self._errors = network, []  # type: ignore[var-annotated]

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        try:
            model = onnx.load(path)
        except Exception as error:  # onnx raises many kinds
            self._errors.append(self._trt.ParserError(str(error)))
            return False
        opset = next(item.version for item in model.opset_import if not item.domain)
        if opset > NEWEST_OPSET[self._trt._version]:
            self._errors.append(self._trt.ParserError(f"opset {opset} is not supported"))
        self._errors += [
            self._trt.ParserError("unknown operator", node.name, node.op_type)
            for node in model.graph.node
            if node.domain
        ]
        self._network._model.CopyFrom(model)
        return not self._errors


class IOptimizationProfile(Guarded):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *bounds: Any) -> None:
        self._shapes[name] = [tuple(bound) for bound in bounds]


class ITimingCache(Guarded):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(TIMING_MAGIC + self._content)


class IBuilderConfig(Guarded):
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._flags: set[int] = {int(self._trt.BuilderFlag.TF32)}  # the only one that is on by default
        self._profiles: list[IOptimizationProfile] = []
        self._devices: dict[int, Any] = {}
        self._pools: dict[int, int] = {}
        self.builder_optimization_level = 3
        self.progress_monitor = None
        self.hardware_compatibility_level = self._trt.HardwareCompatibilityLevel.NONE
        self.profiling_verbosity = self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        if "num_compute_capabilities" in self._members:
            self.num_compute_capabilities = 0

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[int(pool)] = size

    def set_flag(self, flag: Any) -> None:
        self._flags.add(int(flag))

    def get_flag(self, flag: Any) -> bool:
        return int(flag) in self._flags

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(int(flag))

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if any(
            not low <= best <= high
            for bounds in profile._shapes.values()
            for low, best, high in zip(*bounds, strict=True)
        ):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        if content and not bytes(content).startswith(TIMING_MAGIC):
            self._logger.log(ILogger.ERROR, "Failed to deserialize timing cache")
            return None
        return self._trt.ITimingCache(bytes(content).removeprefix(TIMING_MAGIC))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        cache._content += b"."
        return True

    def set_compute_capability(self, device: Any, index: int) -> bool:
        self._devices[index] = device
        return index < self.num_compute_capabilities


class Builder(Guarded):
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        return self._trt.INetworkDefinition(self._logger, flags)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        problem = self._problem(network, config)
        if problem:
            self._logger.log(ILogger.ERROR, problem)
            return None
        if not self._tell(config.progress_monitor):
            self._logger.log(ILogger.ERROR, "the build was cancelled")
            return None
        flags = self._trt.BuilderFlag
        stripped = config.get_flag(flags.STRIP_PLAN)
        header = {
            "version": self._trt.__version__,
            "devices": self._devices(config),
            "profiles": [profile._shapes for profile in config._profiles] or [{}],
            "stripped": stripped,
            "refittable": stripped or config.get_flag(flags.REFIT),
            "tf32": config.get_flag(flags.TF32),
            "streaming": config.get_flag(flags.WEIGHT_STREAMING),
            "compatibility": config.hardware_compatibility_level.name,
        }
        model = without_weights(network._model) if stripped else network._model
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + model.SerializeToString())

    def _problem(self, network: INetworkDefinition, config: IBuilderConfig) -> str:
        if not network._flags & 1 << self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            return "expected a strongly typed network"
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        dynamic = {tensor.name for tensor in inputs if -1 in tensor.shape}
        if dynamic and not config._profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        for profile in config._profiles:
            if dynamic - set(profile._shapes):
                return f"no range for {sorted(dynamic - set(profile._shapes))}"
        workspace = config._pools.get(int(self._trt.MemoryPoolType.WORKSPACE))
        return "OutOfMemory: no workspace" if workspace == 0 else ""

    def _devices(self, config: IBuilderConfig) -> list[int]:
        """Those that were named, such as SM89; else the one in the machine."""
        named = [device.name for device in config._devices.values() if device.name != "CURRENT"]
        return [int(name[2:]) for name in named] or [self._trt._cuda.capability]

    def _tell(self, monitor: Any) -> bool:
        if monitor is None:
            return True
        assert monitor.ready
        monitor.phase_start("Building", None, 3)
        going = all([monitor.step_complete("Building", step) for step in range(3)])
        monitor.phase_finish("Building")
        return going


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float initializers are zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return copy


def read_plan(data: bytes) -> tuple[dict[str, Any], onnx.ModelProto] | None:
    """Header and model of a plan; None where it is none."""
    if not data.startswith(MAGIC):
        return None
    header, _, model = data.removeprefix(MAGIC).partition(b"\n")
    return json.loads(header), onnx.ModelProto.FromString(model)


def read_model(path: str) -> onnx.ModelProto:
    """An ONNX file with its external data."""
    return onnx.load(str(Path(path)))

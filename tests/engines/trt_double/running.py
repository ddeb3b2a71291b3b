"""The double's runtime: plans are opened and executed with ONNX Runtime's CPU provider at raw addresses.

It is stricter than TensorRT where TensorRT says "undefined": a captured graph whose context was changed afterwards, and
a capture right after new shapes, raise.
"""

# ruff: noqa: ANN401, D101, D102 - a double of bindings without static types
from __future__ import annotations

import json
import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from trt_double.building import DTYPES, ILogger, read_model, read_plan
from trt_double.surface import Guarded

SCRATCH_BYTES = 4096
ADDRESS_ALIGNMENT = 256


class UndefinedBehaviour(Exception):
    """Something that TensorRT's documentation calls undefined."""


class Runtime(Guarded):
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        self._logger = logger

    def deserialize_cuda_engine(self, data: Any) -> Any:
        plan = read_plan(bytes(data))
        problem = "the plan is damaged" if plan is None else self._problem(plan[0])
        if plan is None or problem:
            code = 6 if problem.startswith("API Usage") else 1
            self._logger.log(ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code {code}: {problem}")
            return None
        return self._trt.ICudaEngine(self._logger, *plan)

    def _problem(self, header: dict[str, Any]) -> str:
        if header["version"] != self._trt.__version__:
            return f"safeVersionRead == safeSerializationVersion failed ({header['version']})"
        capability = self._trt._cuda.capability
        kernels = getattr(self._trt, "ComputeCapability", None)  # TensorRT-RTX alone has it
        if kernels is not None and not hasattr(kernels, f"SM{capability}"):
            number = f"{capability // 10}.{capability % 10}"
            return (  # in 1.7.1's own words on an H100
                f"API Usage Error (The engine cannot run on this GPU, which has compute capability {number}. Supported "
                "compute capabilities: None. TensorRT-RTX does not support this compute capability, so the engine "
                "cannot be rebuilt for it.)"
            )
        if capability not in header["devices"]:
            return f"the engine is for SM {header['devices']}"
        if self._trt._cuda.used + 2 * SCRATCH_BYTES > self._trt._cuda.total:
            return "OutOfMemory: no memory for the weights"
        return ""


class ICudaEngine(Guarded):
    def __init__(self, logger: ILogger, header: dict[str, Any], model: onnx.ModelProto) -> None:
        self._logger, self._header, self._model = logger, header, model
        self._refitted = not header["stripped"]
        self._session: onnxruntime.InferenceSession | None = None
        self._inputs = {value.name: value for value in model.graph.input}
        self._outputs = {value.name: value for value in model.graph.output}
        self._names = [*self._inputs, *self._outputs]
        self._inferred: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        self.weight_streaming_budget_v2 = 0

    num_io_tensors = property(lambda self: len(self._names))
    num_optimization_profiles = property(lambda self: len(self._header["profiles"]))
    refittable = property(lambda self: self._header["refittable"])
    device_memory_size_v2 = property(lambda self: SCRATCH_BYTES)
    streamable_weights_size = property(lambda self: 1000 if self._header["streaming"] else 0)

    def get_weight_streaming_automatic_budget(self) -> int:
        return 600

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return {**self._inputs, **self._outputs}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[DTYPES[self._value(name).type.tensor_type.elem_type]]

    def create_execution_context(self, strategy: Any = None) -> Any:
        if not self._refitted:
            self._logger.log(ILogger.ERROR, "the engine has no weights: refit it first")
            return None
        if self._header["streaming"] and not self.weight_streaming_budget_v2:
            self._logger.log(ILogger.ERROR, "no weight streaming budget")
            return None
        managed = strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._trt.IExecutionContext(self, managed)

    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector(self)

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            data = self._model.SerializeToString()
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))

    def _output_shapes(self, inputs: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        key = tuple(inputs.items())
        if key not in self._inferred:
            known = {}
            for name, shape in inputs.items():
                dims = self._inputs[name].type.tensor_type.shape.dim
                known.update({dim.dim_param: size for dim, size in zip(dims, shape, strict=True) if dim.dim_param})
            self._inferred[key] = self._by_names(known) or self._by_running(inputs)
        return self._inferred[key]

    def _by_names(self, known: dict[str, int]) -> dict[str, tuple[int, ...]] | None:
        found = {}
        for name, value in self._outputs.items():
            dims = value.type.tensor_type.shape.dim
            if any(dim.dim_param and dim.dim_param not in known for dim in dims):
                return None
            found[name] = tuple(known[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims)
        return found

    def _by_running(self, inputs: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        feeds = {name: np.zeros(shape, self._dtype(name)) for name, shape in inputs.items()}
        return {name: array.shape for name, array in self._run(feeds).items()}

    def _dtype(self, name: str) -> np.dtype[Any]:
        return helper.tensor_dtype_to_np_dtype(self._value(name).type.tensor_type.elem_type)


class Refitter(Guarded):
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        assert logger.ready
        self._engine, self._logger = engine, logger
        self._model: onnx.ModelProto | None = None

    def refit_cuda_engine(self) -> bool:
        if self._model is None or not self._engine._header["refittable"]:
            return False
        self._engine._model, self._engine._refitted = self._model, True
        return True


class OnnxParserRefitter(Guarded):
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        assert logger.ready
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        model = read_model(path)
        names = [[node.name for node in given.graph.node] for given in (model, self._refitter._engine._model)]
        if names[0] != names[1]:
            self._refitter._logger.log(ILogger.ERROR, "the weights are of another graph")
            return False
        self._refitter._model = model
        return True


class IExecutionContext(Guarded):
    def __init__(self, engine: ICudaEngine, managed: bool) -> None:
        self._engine, self._managed = engine, managed
        self._scratch: tuple[int, int] | None = None
        self._profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._changes = 0
        self._flushed = False

    def _refuse(self, text: str) -> bool:
        self._engine._logger.log(ILogger.ERROR, f"IExecutionContext: Error Code 3: API Usage Error ({text})")
        return False

    def _change(self) -> None:
        self._changes += 1
        self._flushed = False

    def set_device_memory(self, address: int, size: int) -> None:
        assert self._managed
        assert size >= SCRATCH_BYTES
        assert address % ADDRESS_ALIGNMENT == 0
        self._trt._cuda.view(address, size)
        self._scratch = (address, size)
        self._change()

    active_optimization_profile = property(lambda self: self._profile)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if not 0 <= profile < self._engine.num_optimization_profiles:
            return self._refuse(f"no profile {profile}")
        self._profile = profile
        self._shapes.clear()
        self._change()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self._engine._inputs:
            return self._refuse(f"{name} is no input")
        if self._profile < 0:
            return self._refuse("no optimization profile is selected")
        declared = self._engine._header["profiles"][self._profile].get(name)
        dims = self._engine._inputs[name].type.tensor_type.shape.dim
        low, high = (declared[0], declared[2]) if declared else ([dim.dim_value for dim in dims],) * 2
        if len(shape) != len(low) or any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {tuple(shape)} is not within profile {self._profile}: {low} .. {high}")
        self._shapes[name] = tuple(shape)
        self._change()
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine._inputs:
            return self._shapes[name]
        if self.infer_shapes():
            return (-1,) * len(self._engine._outputs[name].type.tensor_type.shape.dim)
        return self._engine._output_shapes(self._ordered())[name]

    def _ordered(self) -> dict[str, tuple[int, ...]]:
        return {name: self._shapes[name] for name in self._engine._inputs}

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine._names:
            return self._refuse(f"{name} is no tensor of the engine")
        if address % ADDRESS_ALIGNMENT:
            return self._refuse(f"{name}: {address:#x} is not aligned to {ADDRESS_ALIGNMENT} bytes")
        self._addresses[name] = address
        self._changes += 1  # no `_change`: only new shapes need work before a capture
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._flushed

    def execute_async_v3(self, stream: int) -> bool:
        missing = self.infer_shapes()
        unset = [name for name in self._engine._names if not self._addresses.get(name)]
        if self._profile < 0 or missing:
            return self._refuse(f"no profile, or no shape for {missing}")
        if unset:
            return self._refuse(f"Address is not set for tensor {unset[0]}")
        if self._scratch is None and self._managed:
            return self._refuse("no device memory")
        cuda = self._trt._cuda
        if cuda.capturing and not self._flushed:
            raise UndefinedBehaviour("captured right after new shapes: enqueue once before")
        call = _Execution(self, self._ordered(), dict(self._addresses), self._scratch)
        if cuda.capturing:
            call.changes = self._changes
        else:
            self._flushed = True
        call.touch()
        return cuda.enqueue(call) == 0


class _Execution:
    """One enqueued call with the shapes and addresses that it was enqueued with."""

    def __init__(
        self,
        context: IExecutionContext,
        shapes: dict[str, tuple[int, ...]],
        addresses: dict[str, int],
        scratch: tuple[int, int] | None,
    ) -> None:
        self._context = weakref.ref(context)  # enqueued work does not keep it alive
        self.addresses, self.scratch = addresses, scratch
        self.shapes = {**shapes, **context._engine._output_shapes(shapes)}
        self.changes: int | None = None

    @property
    def context(self) -> IExecutionContext:
        found = self._context()
        if found is None:
            raise UndefinedBehaviour("a context was destroyed while its work was enqueued")
        return found

    def view(self, name: str) -> np.ndarray:
        dtype, shape = self.context._engine._dtype(name), self.shapes[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size == 0:
            return np.zeros(shape, dtype)
        return self.context._trt._cuda.view(self.addresses[name], size).view(dtype).reshape(shape)

    def touch(self) -> None:
        """Look at all memory; outside of an allocation this raises."""
        for name in self.shapes:
            self.view(name)

    def __call__(self) -> None:
        if self.changes is not None and self.changes != self.context._changes:
            raise UndefinedBehaviour("a graph was launched whose context was changed after the capture")
        if self.scratch is not None:
            self.context._trt._cuda.view(*self.scratch).fill(0xAB)
        engine = self.context._engine
        results = engine._run({name: self.view(name) for name in engine._inputs})
        for name, array in results.items():
            self.view(name)[...] = array


class EngineInspector(Guarded):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        layers = [
            {
                "Name": node.name,
                "LayerType": node.op_type,
                "Inputs": [{"Name": name, "Format/Datatype": "Row major linear FP32"} for name in node.input],
                "Outputs": [{"Name": name, "Format/Datatype": "Row major linear FP32"} for name in node.output],
            }
            for node in self._engine._model.graph.node
        ]
        if format == self._trt.LayerInformationFormat.JSON:
            return json.dumps({"Layers": layers, "Bindings": self._engine._names})
        return "\n".join(layer["Name"] for layer in layers)

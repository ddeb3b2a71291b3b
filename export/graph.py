"""Trace a storage-free torch module into an ONNX graph with readable names.

In: a function that builds a module, and the specs of its inputs. Out: a `Traced` graph without weights. The module
never has storage (FakeTensor), so tracing an 8B model costs what its number of nodes costs. Does not write weights (see
`export.weights`) and knows no model.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from voxedge.engines.errors import ExportError
from voxedge.engines.manifest import DType, TensorSpec
from voxedge.export.modules.basic import Stored
from voxedge.export.repeat import Stack, repeat_layers
from voxedge.export.simplify import simplify

PORTABLE_OPSET = 20
"""Newest that TensorRT 10.1's parser reads."""

Argument = TensorSpec | Sequence[TensorSpec]

_TORCH_DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, slots=True)
class Traced:
    """A graph whose initialisers have names, types and shapes, but no values yet."""

    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    stored: Mapping[str, Stored]
    """Parameters whose values are not the checkpoint's as they are; the names are complete paths."""


def trace(
    build: Callable[[], nn.Module],
    arguments: Sequence[Argument],
    outputs: Sequence[str],
    minimum: Mapping[str, int] | None = None,
    stack: Stack | Sequence[Stack] = (),
    opset: int = PORTABLE_OPSET,
) -> Traced:
    """Trace what `build` returns.

    Args:
        build: Makes the module; runs under FakeTensor, so that its parameters take no memory.
        arguments: One spec, or one list of specs, for each argument of the module's `forward`.
        outputs: Names of the graph's outputs, in order.
        minimum: Smallest sizes of symbolic dimensions for which the module is defined, where that is not 0.
        stack: Like layers, of which the module has only `stack.traced`; the others are added to the graph. The module's
            inputs and outputs are then those of the traced layers. One stack or several.
        opset: ONNX opset of the default domain.

    Raises:
        ExportError: The module cannot be traced, or gives another number of outputs.
    """
    specs = tuple(_flat(arguments))
    minimum = minimum or {}
    sizes = _example_sizes(specs, minimum)
    with FakeTensorMode(), torch.no_grad(), _quiet():
        try:
            module = build().eval()
            dims = {name: torch.export.Dim(name, min=minimum.get(name)) for name in sizes}
            model = _export(module, arguments, sizes, dims, opset)
        except Exception as error:
            raise ExportError(f"expected a module that torch.export can trace; it says: {error}") from error
        _name_boundary(model, specs, outputs)
        _forget_values(model)
        simplify(model)
    _name_nodes(model)
    stored: Mapping[str, Stored] = _stored(module)
    for each in (stack,) if isinstance(stack, Stack) else stack:
        repeat_layers(model, each)
        stored = _repeated(stored, each)
    given, results = (tuple(map(_spec, values)) for values in (model.graph.inputs, model.graph.outputs))
    return Traced(model, given, results, opset, stored)


def _repeated(stored: Mapping[str, Stored], stack: Stack) -> dict[str, Stored]:
    """Transforms of the parameters of all layers, from those of the last traced one."""
    last = stack.traced - 1
    further = {
        stack.renumbered(name, last, layer): Stored(stack.renumbered(rule.name, last, layer), rule.transform)
        for name, rule in stored.items()
        for layer in range(stack.traced, stack.layers)
    }
    return {**stored, **further}


def _stored(module: nn.Module) -> dict[str, Stored]:
    """Transforms of all parameters below a module, by complete path."""
    found: dict[str, Stored] = {}
    for path, child in module.named_modules():
        prefix = f"{path}." if path else ""
        for leaf, stored in getattr(child, "stored", {}).items():
            found[prefix + leaf] = Stored(prefix + stored.name, stored.transform)
    return found


def _export(
    module: nn.Module, arguments: Sequence[Argument], sizes: dict[str, int], dims: dict[str, Any], opset: int
) -> ir.Model:
    names = [spec.name for spec in _flat(arguments)]
    program = torch.export.export(
        module,
        tuple(_map(argument, lambda spec: _example(spec, sizes)) for argument in arguments),
        dynamic_shapes=tuple(_map(argument, lambda spec: _dynamic(spec, dims)) for argument in arguments),
        strict=False,
    )
    exported = torch.onnx.export(program, optimize=False, opset_version=opset, verbose=False)
    if exported is None:
        raise ExportError(f"expected a graph with the inputs {names}, found none")
    return exported.model


def _map(argument: Argument, function: Callable[[TensorSpec], Any]) -> Any:  # noqa: ANN401 - mirrors the nesting
    return function(argument) if isinstance(argument, TensorSpec) else [function(spec) for spec in argument]


def _flat(arguments: Sequence[Argument]) -> Iterator[TensorSpec]:
    for argument in arguments:
        yield from (argument,) if isinstance(argument, TensorSpec) else argument


def _example_sizes(specs: Sequence[TensorSpec], minimum: Mapping[str, int]) -> dict[str, int]:
    """A size for each symbolic dimension, above 4: torch treats 0 and 1 as constants."""
    names = dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str))
    return {name: (5 + 2 * position) * minimum.get(name, 1) for position, name in enumerate(names)}


def _example(spec: TensorSpec, sizes: dict[str, int]) -> torch.Tensor:
    return torch.zeros(spec.sizes(sizes), dtype=_TORCH_DTYPES[spec.dtype])


def _dynamic(spec: TensorSpec, dims: dict[str, Any]) -> dict[int, Any]:
    return {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back notes of the exporter: packages that voxedge does not use, initialisers without values."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_boundary(model: ir.Model, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> None:
    """Give inputs, outputs and symbolic dimensions the names of their specs."""
    if len(model.graph.outputs) != len(outputs):
        raise ExportError(f"expected the outputs {list(outputs)}, found {len(model.graph.outputs)}")
    symbols: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, specs, strict=True):
        value.name = spec.name
        for found, wanted in zip(value.shape or (), spec.shape, strict=True):
            if isinstance(wanted, str) and isinstance(found, ir.SymbolicDim):
                symbols[str(found.value)] = wanted
            elif isinstance(found, ir.SymbolicDim) or found != wanted:
                raise ExportError(f"input {spec.name}: expected the size {wanted}, the trace made it {found}")
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | str:
    if isinstance(dim, int):
        return dim
    text = str(dim.value)
    for symbol in sorted(symbols, key=len, reverse=True):
        text = text.replace(symbol, symbols[symbol])
    return text


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _forget_values(model: ir.Model) -> None:
    """Initialisers of the module lose their storage-free tensors, which no pass could read."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and isinstance(tensor.raw, torch.Tensor):
            value.const_value = None


def _name_nodes(model: ir.Model) -> None:
    """Call every node and its values by the path of the module that made it: `/layers.3/attn/qkv_proj/MatMul`."""
    seen: Counter[str] = Counter()
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        path = f"{_path(node)}/{node.op_type}"
        node.name = path if not seen[path] else f"{path}_{seen[path]}"
        seen[path] += 1
        for position, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = f"{node.name}:{position}"
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    constants = [value for value in model.graph.initializers.values() if value.const_value is not None]
    for number, value in enumerate(constants):
        value.name = f"constant.{number}"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _path(node: ir.Node) -> str:
    """Module path of a node; one that a rewrite made has none and takes its first reader's."""
    reader: ir.Node | None = node
    while reader is not None and _SCOPES not in reader.metadata_props:
        reader = next((use.node for value in reader.outputs for use in value.uses()), None)
    if reader is None:
        return ""
    path, previous = "", ""
    for scope in ast.literal_eval(reader.metadata_props[_SCOPES])[:-1]:
        if scope and not scope.startswith("_"):
            inside = scope.startswith(f"{previous}.")  # else a module that another one was given to call
            path += "/" + (scope[len(previous) + 1 :] if inside else scope)
            previous = scope
    return path


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None or value.name is None:
        raise ExportError(f"expected a shape and a type for {value.name}")
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, _dtype_name(value.dtype), shape)


def _dtype_name(dtype: ir.DataType) -> DType:
    names: dict[ir.DataType, Literal["float32", "float16", "int32", "int64"]] = {
        ir.DataType.FLOAT: "float32",
        ir.DataType.FLOAT16: "float16",
        ir.DataType.INT32: "int32",
        ir.DataType.INT64: "int64",
    }
    if dtype not in names:
        raise ExportError(f"expected one of {sorted(names.values())} at the boundary of a graph, found {dtype}")
    return names[dtype]

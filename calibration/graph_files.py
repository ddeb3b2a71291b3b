"""Graphs on disk as `onnx_ir` models whose weights stay where they are.

In: .onnx files, and lazily read tensors by the names of their initialisers. Out: models and tensors that read the data
file block by block, or .onnx files over ONE data file that they share. Changes no graph but for names of constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from voxedge.engines.data_file import Progress, Slot, lay_out, write_data
from voxedge.engines.errors import BundleError, ExportError
from voxedge.engines.lazy import ITEM_BYTES, InMemory, LazyTensor, item_bytes
from voxedge.engines.source_files import FileTensor, SourceFile

INLINE_BYTES = 1024
"""Largest tensor that may be inside the graph file."""
CONSTANT = "constant."
"""Begins the names of the others that are no weights."""

Sources = Mapping[str, LazyTensor]
"""Values of initialisers by name, in the initialiser's own shape; floats may be of another width."""


def read_model(path: Path) -> ir.Model:
    """Read a graph without its weights.

    Raises:
        BundleError: The file is no ONNX graph.
    """
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's decode error is not part of its public interface
        raise BundleError(f"{path}: expected an ONNX graph, found {error}; export the checkpoint again") from error


def stored_sources(models: Iterable[ir.Model], data: Path) -> dict[str, LazyTensor]:
    """Where the weights of a bundle's graph are.

    Args:
        models: The graph's flavours, which share the data file.
        data: The data file.

    Returns:
        A tensor for each initialiser in the data file; where two flavours store it in two types, the wider.

    Raises:
        BundleError: An initialiser lies elsewhere, or outside the file.
    """
    file = SourceFile.of(data)
    sources: dict[str, FileTensor] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            found = _stored(tensor, file, name)
            if name not in sources or item_bytes(found.dtype) > item_bytes(sources[name].dtype):
                sources[name] = found
    return dict(sources)


def _stored(tensor: ir.ExternalTensor, file: SourceFile, name: str) -> FileTensor:
    dtype = str(np.dtype(tensor.dtype.numpy()))
    shape = tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]
    place = FileTensor(file, name, shape, dtype, int(tensor.offset or 0))
    known = Path(tensor.location).name == tensor.location == file.path.name
    # A rounded table is whole numbers too; only constants may be.
    known &= dtype in (("float32", "float16") if not name.startswith(CONSTANT) else ITEM_BYTES)
    if not known or place.offset < 0 or place.offset + tensor.nbytes > file.size:
        raise BundleError(
            f"{file.path}: expected the FP32 or FP16 tensor {name} inside it, found {dtype} at byte {place.offset} of "
            f"{tensor.location}; quantise the FP32 or FP16 bundle of the checkpoint"
        )
    return place


def save_models(models: Mapping[Path, ir.Model], sources: Sources, data: Path, progress: Progress) -> None:
    """Write graphs and the data file that they share.

    Args:
        models: By the path of their .onnx file; all in the folder of `data`.
        sources: Values of every initialiser that is not inside the graph.
        data: The file of weights.
        progress: Told about every block read.

    Raises:
        ExportError: An initialiser has no values, or values that its type cannot hold.
        CheckpointError: A source is damaged.
    """
    constants: dict[str, LazyTensor] = {}
    for model in models.values():
        constants.update(_large_constants(model.graph))
    wanted: dict[tuple[str, str], tuple[LazyTensor, str]] = {}
    for model in models.values():
        for name, value in model.graph.initializers.items():
            if is_streamed(value) and name not in sources:
                raise ExportError(f"expected values for {name!r} of the graph, found {len(sources)} others")
            if is_streamed(value) or name in constants:
                wanted[name, dtype_of(value)] = constants.get(name) or sources[name], dtype_of(value)
    slots = lay_out(wanted)
    write_data(data, slots, progress)
    for path, model in models.items():
        inside = {value: value.const_value for value in model.graph.initializers.values() if not is_streamed(value)}
        for name, value in model.graph.initializers.items():
            if is_streamed(value) or name in constants:
                value.const_value = _external(value, slots[name, dtype_of(value)], data)
        ir.save(model, path)
        for value, tensor in inside.items():  # the graph may be saved again, elsewhere
            value.const_value = tensor


def _large_constants(graph: ir.Graph) -> dict[str, LazyTensor]:
    """Constants that belong into the data file, called by their content: flavours number theirs differently."""
    found: dict[str, LazyTensor] = {}
    for value in list(graph.initializers.values()):
        if value.const_value is None or is_streamed(value) or value.const_value.nbytes <= INLINE_BYTES:
            continue
        array = value.const_value.numpy()
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        name = f"{CONSTANT}{digest.hexdigest()[:16]}"
        del graph.initializers[str(value.name)]
        if name in graph.initializers:
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
        else:
            value.name = name
            graph.initializers[name] = value
        found[name] = InMemory(name, array)
    return found


def is_streamed(value: ir.Value) -> bool:
    """Whether an initialiser is a weight; one that was saved before may be saved again with other values."""
    return value.const_value is None or isinstance(value.const_value, ir.ExternalTensor)


def dtype_of(value: ir.Value) -> str:
    """The type that an initialiser is stored in, as `engines.data_file` calls it."""
    if value.dtype is None:
        raise ExportError(f"expected a type for the parameter {value.name}")
    return str(np.dtype(value.dtype.numpy()))


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The fixed shape of an initialiser."""
    if value.shape is None:
        raise ExportError(f"expected a shape for the parameter {value.name}")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def _external(value: ir.Value, slot: Slot, data: Path) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        data.name,
        slot.offset,
        slot.size,
        value.dtype or ir.DataType.FLOAT,
        shape=ir.Shape(slot.source.shape),
        name=value.name or "",
        base_dir=data.parent,
    )

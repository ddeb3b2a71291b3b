"""Stream a checkpoint's tensors into the data file of a traced graph.

In: traced graphs without values (one for each flavour) and lazily read tensors. Out: .onnx files and ONE data file
that they share, every tensor on a 4 KiB boundary so that it can be memory-mapped. What is resident is one block of one
tensor, whatever the size of the model. Does not know models or precisions: the dtype is the traced parameter's.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from voxedge.engines.errors import ExportError
from voxedge.engines.manifest import Flavour
from voxedge.export.checkpoint.tensors import LazyTensor, checked_blocks
from voxedge.export.checkpoint.transforms import Elementwise, Reshaped, Transposed
from voxedge.export.graph import Traced

ALIGNMENT = 4096
"""Page size: an unaligned tensor could not be mapped without a copy."""
BLOCK_BYTES = 8 * 2**20

Progress = Callable[[int], None]
"""Called with the number of bytes just written."""
Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True, slots=True)
class _Slot:
    """Place of one tensor in the data file."""

    source: LazyTensor
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def save_graphs(
    graphs: Mapping[Flavour, Traced], tensors: Tensors, paths: Mapping[Flavour, Path], data: Path, progress: Progress
) -> None:
    """Write the graphs of all flavours and the data file beside them.

    Args:
        graphs: One traced graph for each flavour.
        tensors: The checkpoint's tensors by the names of the module's parameters.
        paths: Where each flavour's .onnx goes; all in the folder of `data`.
        data: The file of weights.
        progress: Told about every block written.

    Raises:
        ExportError: A parameter has no tensor, another shape, or values that its dtype cannot hold.
        CheckpointError: A tensor is damaged.
    """
    slots = _plan(graphs.values(), tensors)
    _write(data, slots.values(), progress)
    for flavour, traced in graphs.items():
        for name, value in traced.model.graph.initializers.items():
            if _is_streamed(value):
                value.const_value = _external(slots[name, _dtype(value)], data, name)
        ir.save(traced.model, paths[flavour])


def data_bytes(graphs: Mapping[Flavour, Traced], tensors: Tensors) -> int:
    """Size that the data file will have."""
    slots = _plan(graphs.values(), tensors).values()
    return max((slot.offset + slot.size for slot in slots), default=0)


def _plan(graphs: Iterable[Traced], tensors: Tensors) -> dict[tuple[str, np.dtype[Any]], _Slot]:
    slots: dict[tuple[str, np.dtype[Any]], _Slot] = {}
    offset = 0
    for traced in graphs:
        for name, value in traced.model.graph.initializers.items():
            key = (name, _dtype(value))
            if not _is_streamed(value) or key in slots:
                continue
            slots[key] = _Slot(_source(traced, name, tensors), key[1], _shape(value), offset)
            _check_shape(name, slots[key])
            offset += -(-slots[key].size // ALIGNMENT) * ALIGNMENT
    return slots


def _is_streamed(value: ir.Value) -> bool:
    """Whether an initialiser is a parameter; one that was saved before may be saved again with other weights."""
    return value.const_value is None or isinstance(value.const_value, ir.ExternalTensor)


def _source(traced: Traced, name: str, tensors: Tensors) -> LazyTensor:
    """The tensor that a parameter's values come from, transformed as the module stores it."""
    stored = traced.stored.get(name)
    wanted = stored.name if stored else name
    if wanted not in tensors:
        raise ExportError(f"expected a tensor {wanted!r} for the graph, found {len(tensors)} others")
    tensor = tensors[wanted]
    if stored is None or stored.transform == "same":
        return tensor
    if stored.transform == "pointwise":
        return Reshaped(tensor, (*tensor.shape, 1))
    if stored.transform == "transpose":
        return Transposed(Reshaped(tensor, tensor.shape[:2]))
    function = np.exp if stored.transform == "exp" else _inverse_exp
    channels = Elementwise(tensor, lambda values: function(values.astype(np.float64)), stored.transform)
    return Reshaped(channels, (1, *tensor.shape, 1))


def _inverse_exp(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (exp(x) + 1e-9): the guard against division by zero of BigVGAN's snake."""
    inverse: npt.NDArray[np.float64] = 1.0 / (np.exp(values) + 1e-9)
    return inverse


def _check_shape(name: str, slot: _Slot) -> None:
    if slot.source.shape != slot.shape:
        raise ExportError(f"{slot.source.name}: expected the shape {slot.shape} for {name}, found {slot.source.shape}")


def _write(path: Path, slots: Collection[_Slot], progress: Progress) -> None:
    with path.open("wb") as file:
        for slot in slots:
            for index, block in checked_blocks(slot.source, BLOCK_BYTES):
                _write_block(file.fileno(), slot, index, _cast(block, slot))
                progress(block.nbytes)
        end = max((slot.offset + slot.size for slot in slots), default=0)
        os.ftruncate(file.fileno(), end)


def _cast(block: npt.NDArray[Any], slot: _Slot) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = block.astype(slot.dtype)
    if slot.dtype == np.float16 and not np.isfinite(cast).all():
        raise ExportError(
            f"{slot.source.name}: expected weights within the range of FP16 (65504), found {np.abs(block).max():.4g}; "
            "export this checkpoint with --precision fp32"
        )
    return cast


def _write_block(descriptor: int, slot: _Slot, index: tuple[slice, ...], block: npt.NDArray[Any]) -> None:
    """Write one block, as few runs as its place in the tensor allows."""
    partial = [axis for axis, part in enumerate(index) if part.stop - part.start != slot.shape[axis]]
    split = partial[-1] if partial else 0
    strides = [math.prod(slot.shape[axis + 1 :]) for axis in range(len(slot.shape))]
    base = sum(part.start * stride for part, stride in zip(index, strides, strict=True))
    for prefix in itertools.product(*(range(size) for size in block.shape[:split])):
        start = base + sum(position * stride for position, stride in zip(prefix, strides, strict=False))
        _write_all(descriptor, np.ascontiguousarray(block[prefix]), slot.offset + start * slot.dtype.itemsize)


def _write_all(descriptor: int, run: npt.NDArray[Any], offset: int) -> None:
    data = run.reshape(-1).view(np.uint8).data
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _external(slot: _Slot, data: Path, name: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        data.name,
        slot.offset,
        slot.size,
        ir.DataType.from_numpy(slot.dtype),
        shape=ir.Shape(slot.shape),
        name=name,
        base_dir=data.parent,
    )


def _dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None:
        raise ExportError(f"expected a type for the parameter {value.name}")
    return np.dtype(value.dtype.numpy())


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None:
        raise ExportError(f"expected a shape for the parameter {value.name}")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]

"""Stream a checkpoint's tensors into the data file of a traced graph.

In: traced graphs without values (one for each flavour) and lazily read tensors. Out: .onnx files and ONE data file
that they share. Does not know models or precisions: the dtype is the traced parameter's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from voxedge.calibration.graph_files import is_streamed, save_models, shape_of
from voxedge.engines.data_file import Progress
from voxedge.engines.errors import ExportError
from voxedge.engines.lazy import LazyTensor
from voxedge.engines.manifest import Flavour
from voxedge.export.checkpoint.rearrange import Reshaped, Transposed
from voxedge.export.checkpoint.transforms import Elementwise
from voxedge.export.graph import Traced

Tensors = Mapping[str, LazyTensor]


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
    models = {paths[flavour]: traced.model for flavour, traced in graphs.items()}
    save_models(models, sources_of(graphs, tensors), data, progress)


def sources_of(graphs: Mapping[Flavour, Traced], tensors: Tensors) -> dict[str, LazyTensor]:
    """Where the values of every parameter come from, in the shape that the graphs want.

    Raises:
        ExportError: A parameter has no tensor, or one of another shape.
    """
    sources: dict[str, LazyTensor] = {}
    for traced in graphs.values():
        for name, value in traced.model.graph.initializers.items():
            if is_streamed(value) and name not in sources:
                sources[name] = _source(traced, name, tensors)
                _check_shape(name, value, sources[name])
    return sources


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


def _check_shape(name: str, value: ir.Value, source: LazyTensor) -> None:
    if source.shape != shape_of(value):
        raise ExportError(f"{source.name}: expected the shape {shape_of(value)} for {name}, found {source.shape}")

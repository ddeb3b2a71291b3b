"""Multiply channels of weights, so that an activation gets another scale and the graph's function stays.

In: an activation of a graph, and a factor for each of its channels. Out: the same graph whose weights in front of the
activation are divided by the factors, or the sentence that there are none that could be. Every flavour reads the same
weights, so one change serves all. Exact but for the rounding of FP32. Does not choose factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from voxedge.calibration.graph_files import is_streamed, shape_of
from voxedge.calibration.quantise.graph import EditedGraph
from voxedge.engines.lazy import Block, LazyTensor

Factors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """A tensor with a factor for each index of one axis; a `LazyTensor`."""

    source: LazyTensor
    axis: int
    factors: Factors
    """One for each index along `axis`."""

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """Stored type of the source."""
        return self.source.dtype

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Products; see `LazyTensor.blocks`."""
        for index, values in self.source.blocks(max_bytes):
            part = self.factors[index[self.axis]]
            shape = [-1 if axis == self.axis else 1 for axis in range(values.ndim)]
            yield index, values.astype(np.float32) * part.reshape(shape)


@dataclass(frozen=True, slots=True)
class Flat:
    """A kernel [O, I, k] as one of two dimensions [O, I, 1, k]; a `LazyTensor`."""

    source: LazyTensor

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """[O, I, 1, k]."""
        return (*self.source.shape[:2], 1, *self.source.shape[2:])

    @property
    def dtype(self) -> str:
        """Stored type of the source."""
        return self.source.dtype

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """The same values; see `LazyTensor.blocks`."""
        for index, values in self.source.blocks(max_bytes):
            yield (*index[:2], slice(0, 1), *index[2:]), values[:, :, None]


def scale_weight(graph: EditedGraph, name: str, axis: int, factors: Factors) -> None:
    """Multiply channels of a weight of all flavours."""
    graph.sources[name] = Scaled(graph.sources[name], axis, factors.astype(np.float32))


Fold = Mapping[str, tuple[int, Factors]]
"""Weight -> axis and factors that it is multiplied by."""


def fold_before(graph: EditedGraph, value: ir.Value, factors: Factors) -> Fold | None:
    """Weights whose change multiplies every channel of an activation.

    A norm's weight, a linear layer with or without bias, the half of one that a gate multiplies: whatever is linear in
    its weights and has no other reader. Attention, snakes, sums of two activations and time-dependent scales are not.

    Args:
        graph: Whose portable flavour is looked at.
        value: An activation of it [..., C].
        factors: [C].

    Returns:
        What to give to `scale_weight`, or None where there is nothing to fold into.
    """
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or value.is_graph_output():
        return None
    if node.op_type == "Cast" and _only_reader(node.inputs[0]) and node.inputs[0] is not None:
        return fold_before(graph, node.inputs[0], factors)  # in FP16 graphs, behind an FP32 island
    if node.op_type == "MatMul":
        return _fold_weights(graph, {node.inputs[1]: 1}, factors)
    if node.op_type == "LayerNormalization":
        return _fold_weights(graph, {weight: 0 for weight in node.inputs[1:3] if weight is not None}, factors)
    if node.op_type == "Split" and _only_reader(node.inputs[0]):
        return _fold_part(graph, node, value, factors)
    if node.op_type == "Mul":
        return _fold_product(graph, node, factors)
    if node.op_type == "Add":
        return _fold_sum(graph, node, factors)
    return None


def _fold_product(graph: EditedGraph, node: ir.Node, factors: Factors) -> Fold | None:
    """One of the two factors is enough."""
    for operand in reversed(node.inputs):
        if operand is None:
            continue
        if operand.is_initializer():
            found = _fold_weights(graph, {operand: 0}, factors)
        else:
            found = fold_before(graph, operand, factors) if _only_reader(operand) else None
        if found is not None:
            return found
    return None


def _fold_sum(graph: EditedGraph, node: ir.Node, factors: Factors) -> Fold | None:
    """A linear layer and its bias."""
    biases = [operand for operand in node.inputs if operand is not None and operand.is_initializer()]
    values = [operand for operand in node.inputs if operand is not None and not operand.is_initializer()]
    if len(biases) != 1 or len(values) != 1 or not _only_reader(values[0]):
        return None
    before = fold_before(graph, values[0], factors)
    bias = _fold_weights(graph, {biases[0]: 0}, factors)
    return None if before is None or bias is None else {**before, **bias}


def _fold_part(graph: EditedGraph, node: ir.Node, value: ir.Value, factors: Factors) -> Fold | None:
    """One output of a Split along the channels; the others keep their factor 1."""
    whole, sizes = node.inputs[0], []
    for output in node.outputs:
        if output.shape is None or not isinstance(output.shape[-1], int):
            return None
        sizes.append(output.shape[-1])
    axis = node.attributes.get("axis")
    rank = len(value.shape or ())
    if whole is None or sum(sizes) < len(factors) or (axis.as_int() if axis else 0) not in (-1, rank - 1):
        return None
    spread = np.ones(sum(sizes), np.float32)
    start = sum(sizes[: list(node.outputs).index(value)])
    spread[start : start + len(factors)] = factors
    return fold_before(graph, whole, spread)


def _fold_weights(graph: EditedGraph, axes: Mapping[ir.Value | None, int], factors: Factors) -> Fold | None:
    """Weights that one node of every flavour reads, and nothing else."""
    found = {}
    for weight, axis in axes.items():
        if weight is None or weight.name not in graph.sources or not is_streamed(weight):
            return None
        readers = [model.graph.initializers.get(weight.name) for model in graph.models.values()]
        alone = all(reader is not None and len(reader.uses()) == 1 for reader in readers)
        if not alone or shape_of(weight)[axis] != len(factors) or (axis == 0 and len(shape_of(weight)) != 1):
            return None
        found[weight.name] = (axis, factors)
    return found


def _only_reader(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()

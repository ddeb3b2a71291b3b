"""SmoothQuant: move the outliers of activations into the weights that multiply them.

In: groups of matrix products that read one activation, its statistics. Out: factors for its channels, folded into what
comes before where that is exact, else an explicit Mul; and the range of the activation afterwards. The strength is
searched for each group on real rows. Only matrix products: a snake does not commute with a factor, so nothing can be
folded between the convolutions of a vocoder, and a Mul there would cost what the integers gain.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2023, eq. 4:
s_j = max|X_j| ** alpha / max|W_j| ** (1 - alpha); X diag(1 / s) and diag(s) W are multiplied instead of X and W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from voxedge.calibration.quantise.graph import FLOAT_TYPES, EditedGraph, add_initialiser, describe, new_node
from voxedge.calibration.quantise.plan import WeightedNode
from voxedge.calibration.quantise.ranges import LEVELS, Histogram, RangeMethod, activation_range
from voxedge.calibration.quantise.scaling import Factors, fold_before, scale_weight
from voxedge.calibration.statistics import TensorStatistics
from voxedge.engines.data_file import BLOCK_BYTES
from voxedge.engines.lazy import InMemory, LazyTensor

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Strengths that are tried, beside none at all; 0 would leave all to the activation, 1 all to the weights."""
WORTH = 0.95
"""A factor is taken where it leaves at most this part of the error of none: a hair's breadth is not worth a Mul."""

_FEWEST_ROWS = 16
"""Rows that a search can be trusted with."""
_UNSEEN = 1.5
"""An activation whose largest value lies this far beyond all rows that were kept has outliers that no search sees."""
_COLUMNS = 256
"""Output channels of a matrix that the search looks at, evenly spaced."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What became of one activation."""

    value: str
    """Name of the activation in the portable graph."""
    alpha: float | None
    """Strength; None where nothing was gained."""
    folded: bool
    """Whether the factors went into weights rather than into a Mul."""
    range: float
    """Of the activation that is quantised."""
    gain_db: float
    """By how much the error of the products fell on the samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Matrix products that read one activation."""

    value: ir.Value
    """The activation, of the portable graph."""
    nodes: Sequence[WeightedNode]
    found: TensorStatistics


@dataclass(frozen=True, slots=True, eq=False)
class GroupWeights:
    """What the search needs of the weights of a group."""

    largest: Matrix
    """[K], over all output channels."""
    columns: Matrix
    """[K, n], some output channels of each matrix."""


def smooth_group(graph: EditedGraph, group: Group, method: RangeMethod) -> Smoothing:
    """Search the strength for one activation and change the graph, all flavours of it.

    Args:
        graph: Rewritten in place; its weights are read once.
        group: The activation and all products that are quantised with it.
        method: How ranges are chosen.
    """
    weights = read_weights([graph.sources[node.weight] for node in group.nodes])
    alpha, limit, gain = _search(group.found, weights, method)
    name = str(group.value.name)
    if alpha is None:
        return Smoothing(name, None, False, limit, 0.0)
    factors = smoothing_factors(group.found.channel_max, weights.largest, alpha)
    return Smoothing(name, alpha, apply_factors(graph, group, factors), limit, gain)


def smoothing_factors(activations: Matrix, weights: Matrix, alpha: float) -> Factors:
    """Factors s [K]; eq. 4 of the paper, at geometric mean 1. Channels without any signal or weight keep 1.

    Args:
        activations: [K], largest |x| of each channel.
        weights: [K], largest |w| of each input channel.
        alpha: Strength.
    """
    live = (activations > 0) & (weights > 0)
    factors = np.ones(len(activations))
    if live.any():
        logs = alpha * np.log(activations[live].astype(float)) - (1 - alpha) * np.log(weights[live].astype(float))
        factors[live] = np.exp(np.clip(logs - logs.mean(), -12.0, 12.0))
    return factors.astype(np.float32)


def read_weights(sources: Sequence[LazyTensor]) -> GroupWeights:
    """One pass over the weights [K, N] of a group."""
    largest = np.zeros(sources[0].shape[0], np.float32)
    chosen = []
    for source in sources:
        inputs, outputs = source.shape
        picked = np.unique(np.linspace(0, outputs - 1, _COLUMNS).astype(np.int64))
        columns = np.empty((inputs, len(picked)), np.float32)
        for (rows, part), values in source.blocks(BLOCK_BYTES):
            np.maximum(largest[rows], np.abs(values).max(axis=1), out=largest[rows])
            inside = (picked >= part.start) & (picked < part.stop)
            columns[rows, inside] = values[:, picked[inside] - part.start]
        chosen.append(columns)
    return GroupWeights(largest, np.concatenate(chosen, axis=1))


@dataclass(frozen=True, slots=True)
class _Choice:
    """A strength and how the range behind it is chosen; no strength is none at all."""

    alpha: float | None
    ranges: RangeMethod


def _search(found: TensorStatistics, weights: GroupWeights, method: RangeMethod) -> tuple[float | None, float, float]:
    """Best strength, the range that belongs to it, and the gain in decibels, on rows that it was not made from.

    The factors of a high strength follow the largest value of every single channel. Speech that was not calibrated on
    has larger ones in some, which are then clipped; only other rows show that.
    """
    none = _Choice(None, method)
    plain_limit = activation_range(Histogram.of(found), method)
    seen = float(np.abs(found.samples).max(initial=0))
    if len(found.samples) < _FEWEST_ROWS or found.largest > _UNSEEN * seen:
        return None, plain_limit, 0.0
    tried = [none, *(_Choice(alpha, ranges) for alpha in ALPHAS for ranges in dict.fromkeys((method, "minmax")))]
    rows = found.samples.astype(np.float32)  # [n, K]
    errors = {
        choice: _held_out(rows[::2], rows[1::2], weights, choice) + _held_out(rows[1::2], rows[::2], weights, choice)
        for choice in tried
    }
    best = min(errors, key=errors.__getitem__)
    if best.alpha is None or errors[best] > WORTH * errors[none]:
        return None, plain_limit, 0.0
    _, limit = _scheme(rows, found.channel_max, weights.largest, best)
    return best.alpha, limit, float(10.0 * np.log10(errors[none] / max(errors[best], 1e-30)))


def _held_out(made: Matrix, tested: Matrix, weights: GroupWeights, choice: _Choice) -> float:
    """Error of the products of rows [n, K] under factors and a range that were made from other rows."""
    factors, limit = _scheme(made, np.abs(made).max(axis=0), weights.largest, choice)
    return _error(tested / factors, weights.columns * factors[:, None], limit, tested @ weights.columns)


def _scheme(rows: Matrix, activations: Matrix, weights: Matrix, choice: _Choice) -> tuple[Factors, float]:
    """Factors [K] and range of a choice, given rows [n, K] and the largest |x| and |w| of each channel [K]."""
    factors = np.ones(len(weights), np.float32)
    if choice.alpha is not None:
        factors = smoothing_factors(activations, weights, choice.alpha)
    largest = float((activations / factors).max())
    return factors, activation_range(Histogram.of_values(rows / factors, largest), choice.ranges)


def _error(rows: Matrix, columns: Matrix, limit: float, true: Matrix) -> float:
    """Squared error of the products of rounded rows and rounded columns."""
    step = np.float32(limit / LEVELS)
    scales = np.maximum(np.abs(columns).max(axis=0) / (LEVELS + 0.5), np.finfo(np.float32).tiny)
    rounded = np.clip(np.rint(rows / step), -LEVELS, LEVELS) @ np.clip(np.rint(columns / scales), -LEVELS, LEVELS)
    return float(np.square(rounded * (step * scales) - true, dtype=np.float64).sum())


def apply_factors(graph: EditedGraph, group: Group, factors: Factors) -> bool:
    """Divide an activation by factors [K] and multiply the weights by them; whether no Mul was needed."""
    inverse = (1.0 / factors.astype(np.float64)).astype(np.float32)
    paths = {node.path for node in group.nodes}
    alone = all(use.node.name in paths and use.idx == 0 for use in group.value.uses())
    fold = fold_before(graph, group.value, inverse) if alone else None
    for weight in dict.fromkeys(node.weight for node in group.nodes):
        scale_weight(graph, weight, 0, factors)
    if fold is None:
        _multiply(graph, group, inverse)
        return False
    for name, (axis, parts) in fold.items():
        scale_weight(graph, name, axis, parts)
    return True


def _multiply(graph: EditedGraph, group: Group, factors: Factors) -> None:
    """Put a Mul between the activation and the products, in every flavour that has them."""
    name = f"{group.nodes[0].path}.smooth"
    graph.sources[name] = InMemory(name, factors)
    paths = {node.path for node in group.nodes}
    for model in graph.models.values():
        smoothed: ir.Value | None = None
        for node in list(model.graph):
            described = describe(node)
            if node.name not in paths or described is None or node.inputs[0] is None:
                continue
            if smoothed is None:
                dtype = FLOAT_TYPES[described.stored]
                weight = add_initialiser(model, name, dtype, factors.shape)
                smoothed = new_node(node, "Mul", [node.inputs[0], weight], dtype, node.inputs[0].shape)
            node.replace_input_with(0, smoothed)

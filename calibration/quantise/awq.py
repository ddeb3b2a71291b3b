"""AWQ: give the weights of loud input channels finer steps, by scaling what is rounded and not what is computed.

In: groups of 4-bit matrix products that read one activation, its statistics. Out: factors for its channels, folded into
what comes before where that is exact, else an explicit Mul (see `quantise.scaling`). Weights alone are rounded, so
nothing is known of ranges. At 8 bits the rounding is 24 dB lower and there is nothing worth a search.

Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", 2024, eq. 4 and
5: s = mean|x| ** alpha, (x / s) Q(diag(s) W), alpha by a grid search over the error of the products on real rows. alpha
0 is plain rounding and part of the grid, so on the rows that are searched the result is never worse.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from voxedge.calibration.quantise.graph import EditedGraph, describe
from voxedge.calibration.quantise.plan import WeightedNode
from voxedge.calibration.quantise.rounding import dequantised
from voxedge.calibration.quantise.scaling import Factors
from voxedge.calibration.quantise.smooth import WORTH, Group, apply_factors, read_weights
from voxedge.calibration.quantise.weight_only import grid_of
from voxedge.calibration.statistics import Statistics, TensorStatistics
from voxedge.engines.manifest import LayerSpec

ALPHAS = tuple(step / 20 for step in range(1, 21))
"""Strengths that are tried, beside none at all."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Balanced:
    """What became of one activation in front of 4-bit weights."""

    value: str
    """Name of the activation in the portable graph."""
    alpha: float | None
    """Strength; None where nothing was gained."""
    folded: bool
    """Whether the factors went into weights rather than into a Mul."""
    gain_db: float
    """By how much the error of the products fell on the samples."""


def balance(graph: EditedGraph, layers: Mapping[str, LayerSpec], statistics: Statistics) -> list[Balanced]:
    """Scale the inputs of all 4-bit products of a graph that statistics are known of, in place."""
    return [_balance_group(graph, group, layers) for group in _groups(graph, layers, statistics)]


def balancing_factors(activations: Matrix, alpha: float) -> Factors:
    """Factors s [K] = mean|x| ** alpha at geometric mean 1; channels without any signal keep 1.

    Args:
        activations: [K], mean |x| of each channel.
        alpha: Strength.
    """
    live = activations > 0
    factors = np.ones(len(activations))
    if live.any():
        logs = alpha * np.log(activations[live].astype(float))
        factors[live] = np.exp(np.clip(logs - logs.mean(), -12.0, 12.0))
    return factors.astype(np.float32)


def _groups(graph: EditedGraph, layers: Mapping[str, LayerSpec], statistics: Statistics) -> list[Group]:
    """4-bit products with weights of their own by the activation that they read, in the portable graph's order."""
    members: dict[str, tuple[ir.Value, list[WeightedNode], TensorStatistics]] = {}
    for node in graph.models["portable"].graph if "portable" in graph.models else ():
        described, given = describe(node), node.inputs[0] if node.inputs else None
        spec = layers.get(node.name or "")
        if described is None or spec is None or spec.precision != "int4-weight" or given is None or given.name is None:
            continue
        found = statistics.tensor(graph.name, given.name)
        if found is not None and found.channels == described.shape[0]:
            members.setdefault(given.name, (given, [], found))[1].append(described)
    groups = [Group(value, nodes, found) for value, nodes, found in members.values()]
    return list(itertools.compress(groups, graph.with_weights_of_their_own(group.nodes for group in groups)))


def _balance_group(graph: EditedGraph, group: Group, layers: Mapping[str, LayerSpec]) -> Balanced:
    columns = [read_weights([graph.sources[node.weight]]).columns for node in group.nodes]
    specs = [layers[node.path] for node in group.nodes]
    alpha, gain = search(group.found, columns, [(node, spec) for node, spec in zip(group.nodes, specs, strict=True)])
    if alpha is None:
        return Balanced(str(group.value.name), None, False, 0.0)
    name = str(group.value.name)
    return Balanced(name, alpha, apply_factors(graph, group, balancing_factors(group.found.channel_mean, alpha)), gain)


def search(
    found: TensorStatistics, columns: Sequence[Matrix], layers: Sequence[tuple[WeightedNode, LayerSpec]]
) -> tuple[float | None, float]:
    """Best strength for one activation, None for none at all, and its gain in decibels.

    Args:
        found: Statistics of the activation.
        columns: [K, n] of each product, some of its output channels.
        layers: How each product will be stored.
    """
    rows = found.samples.astype(np.float32)  # [n, K]
    plain = _error(rows, columns, layers, np.ones(rows.shape[1], np.float32))
    best: tuple[float, float | None] = (plain * WORTH, None)
    for alpha in ALPHAS:
        error = _error(rows, columns, layers, balancing_factors(found.channel_mean, alpha))
        if error < best[0]:
            best = (error, alpha)
    gain = 10.0 * float(np.log10(plain / best[0])) if best[1] is not None and best[0] > 0 else 0.0
    return best[1], gain


def _error(
    rows: Matrix, columns: Sequence[Matrix], layers: Sequence[tuple[WeightedNode, LayerSpec]], factors: Factors
) -> float:
    """Squared error of the products of rows and rounded columns."""
    total = 0.0
    for part, (node, spec) in zip(columns, layers, strict=True):
        rounded = dequantised(part * factors[:, None], grid_of(node, spec)) / factors[:, None]
        total += float(np.square(rows @ (rounded - part), dtype=np.float64).sum())
    return total

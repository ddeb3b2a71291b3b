"""Which layer gets which precision: a default by operator, islands of FP32 arithmetic, and the user's rules.

In: the weighted nodes of a bundle's graphs, a precision, rules. Out: a `PrecisionMap` for every graph, in which every
node with weights appears. Does not touch graphs; numbers are rounded elsewhere.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from voxedge.engines.errors import ConfigError
from voxedge.engines.manifest import LayerPrecision

__all__ = ["ISLANDS", "LayerPrecision", "PrecisionMap", "Rule", "WeightedNode", "parse_rule", "plan_layers"]

Operator = Literal["MatMul", "Conv", "ConvTranspose", "Gather"]
PrecisionMap = Mapping[str, LayerPrecision]
"""Node path -> precision, of one graph."""

LAYER_PRECISIONS: tuple[LayerPrecision, ...] = get_args(LayerPrecision)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class WeightedNode:
    """A node that reads a weight."""

    path: str
    """Name of the node, such as `/layers.3/attn/qkv_proj/MatMul`."""
    operator: Operator
    """What it computes with the weight."""
    weight: str
    """Name of the initialiser."""
    shape: tuple[int, ...]
    """MatMul [K, N]; Conv [O, I, k]; ConvTranspose [I, O, k]; Gather [rows, d]."""
    stored: Literal["fp32", "fp16"]
    """Type of the weight in the source."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A precision for all layers that a pattern names; of several that match, the last one counts."""

    pattern: str
    """Shell pattern over node paths (`/layers.0/*`), or over one graph's (`dit:/transformer/*`)."""
    precision: LayerPrecision
    """What the layers get."""

    def __post_init__(self) -> None:
        if self.precision not in LAYER_PRECISIONS:
            raise ConfigError(
                f"rule {self.pattern!r}: expected one of {', '.join(LAYER_PRECISIONS)}, found {self.precision!r}"
            )
        if not self.pattern:
            raise ConfigError("expected a rule such as '/layers.0/*=fp32', found one without a pattern")

    def matches(self, graph: str, path: str) -> bool:
        """Whether the rule speaks of a node."""
        name = f"{graph}:{path}" if ":" in self.pattern else path
        return fnmatch.fnmatchcase(name, self.pattern)


# What design.md 4.2 computes in FP32 whatever the precision. Rotary tables are angles, not weights. The embedding of
# time keeps FP32 activations and arithmetic, but its weights may be stored as INT8: in a diffusion transformer of 4
# layers that costs 0.05 to 0.25 dB of 33.5 and takes the size from 0.35 to 0.25 of FP32 (at 4 bits: none of 13.3 dB).
# A codec's quantiser stays as it is: its search for the nearest entry takes another one for the least error. The gate
# of a frame step decides by two rows when speech ends.
ISLANDS: tuple[Rule, ...] = (
    Rule("*/rotary/*", "fp32"),
    Rule("*/to_timestep_embed/*", "int8-weight"),
    Rule("*global_cond_embedder/*", "int8-weight"),
    Rule("codec_*:/quantizer/*", "fp32"),
    Rule("local_frame:/gate/*", "fp32"),
)

ANGLES = "rotary.*"
"""Weights that are tables of angles, whichever module reads them."""

# Four bits are too few for what is not a matrix product: convolutions have few weights for each output, tables are read
# row by row; no runtime has kernels for either.
_BY_OPERATOR: Mapping[LayerPrecision, Mapping[Operator, LayerPrecision]] = {
    "int4-weight": {"Conv": "int8-weight", "ConvTranspose": "int8-weight", "Gather": "int8-weight"},
    "int8": {"Gather": "int8-weight"},
}


def parse_rule(text: str) -> Rule:
    """Read `PATTERN=PRECISION`.

    Raises:
        ConfigError: It is none.
    """
    pattern, equals, precision = text.rpartition("=")
    if not equals:
        raise ConfigError(f"expected PATTERN=PRECISION, such as '/layers.0/*=fp32', found {text!r}")
    return Rule(pattern, precision)  # type: ignore[arg-type]  # checked by the rule itself


def plan_layers(
    graphs: Mapping[str, Sequence[WeightedNode]], base: LayerPrecision, rules: Sequence[Rule]
) -> dict[str, dict[str, LayerPrecision]]:
    """Give every weighted node of every graph its precision.

    Args:
        graphs: Weighted nodes by the graph's name.
        base: What layers get that no rule names.
        rules: The user's rules, which go before the islands.

    Returns:
        A `PrecisionMap` for each graph.

    Raises:
        ConfigError: A rule matches nothing, or asks for what the source or the operator cannot give.
    """
    check_rules(graphs, rules)
    return {graph: plan_graph(graph, nodes, base, rules) for graph, nodes in graphs.items()}


def plan_graph(
    graph: str, nodes: Iterable[WeightedNode], base: LayerPrecision, rules: Sequence[Rule]
) -> dict[str, LayerPrecision]:
    """The `PrecisionMap` of one graph, whatever rules match elsewhere.

    Raises:
        ConfigError: A rule asks for what the source or the operator cannot give.
    """
    return {node.path: _precision(graph, node, base, rules) for node in nodes}


def _precision(graph: str, node: WeightedNode, base: LayerPrecision, rules: Sequence[Rule]) -> LayerPrecision:
    given = [rule.precision for rule in rules if rule.matches(graph, node.path)]
    if given:
        _check_possible(graph, node, given[-1])
        return given[-1]
    island = next((rule.precision for rule in ISLANDS if rule.matches(graph, node.path)), None)
    if fnmatch.fnmatchcase(node.weight, ANGLES):
        island = "fp32"
    if island is not None:
        return node.stored if "fp32" in (island, base) else island
    wanted = _BY_OPERATOR.get(base, {}).get(node.operator, base)
    return node.stored if wanted == "fp32" else wanted


def _check_possible(graph: str, node: WeightedNode, precision: LayerPrecision) -> None:
    if precision == "fp32" and node.stored == "fp16":
        raise ConfigError(
            f"{graph}:{node.path}: expected fp16 or less, as the source holds FP16 weights, found a rule for fp32; "
            "quantise the FP32 bundle of the checkpoint"
        )
    possible = _BY_OPERATOR.get(precision, {}).get(node.operator, precision)
    if possible != precision:
        raise ConfigError(
            f"{graph}:{node.path}: {node.operator} has no form for {precision}; write ={possible} for it, or a "
            "pattern that leaves it out"
        )


def check_rules(graphs: Mapping[str, Iterable[WeightedNode]], rules: Sequence[Rule]) -> None:
    """Refuse a rule that speaks of no layer of any graph.

    Raises:
        ConfigError: With the names that are nearest to its pattern.
    """
    names = [(graph, node.path) for graph, nodes in graphs.items() for node in nodes]
    for rule in rules:
        if any(rule.matches(graph, path) for graph, path in names):
            continue
        known = [f"{graph}:{path}" if ":" in rule.pattern else path for graph, path in names]
        near = difflib.get_close_matches(rule.pattern, dict.fromkeys(known), n=_SHOWN, cutoff=0.3) or known[:_SHOWN]
        raise ConfigError(
            f"rule {rule.pattern!r} matches no layer; near names are {', '.join(near)}. A quantised bundle's "
            "voxedge.json lists the layers of its graphs"
        )

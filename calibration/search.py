"""The smallest precisions that are good enough: the layers that mind most are kept higher, as few as will do.

In: an FP32 bundle, options of the quantiser, statistics where it needs them, a signal-to-noise ratio to reach. Out:
rules for `quantise.bundle`, and what they were chosen by. Greedy: layers in the order of their own error, as few of
them as bisection finds: a graph of n layers costs n + log2(n) versions, or one where all layers may be quantised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxedge.calibration.graph_files import read_model, save_models, stored_sources
from voxedge.calibration.quantise.bundle import layers_of, quantise_graph
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.graph import EditedGraph
from voxedge.calibration.quantise.plan import PrecisionMap, Rule, WeightedNode, plan_layers
from voxedge.calibration.recording import Recording
from voxedge.calibration.sensitivity import (
    GraphSensitivity,
    GraphTrials,
    Sensitivity,
    UnitKind,
    UnitSensitivity,
    measure_units,
    spread,
)
from voxedge.calibration.statistics import Statistics
from voxedge.engines.bundle import Bundle
from voxedge.engines.manifest import GraphSpec, LayerPrecision

Progress = Callable[[str, int, int], None]

LADDER: Mapping[LayerPrecision, tuple[LayerPrecision, ...]] = {
    "int4-weight": ("int8-weight", "fp16", "fp32"),
    # Most of the error of INT8 comes from its activations; with those in floats the weights stay as small.
    "int8": ("int8-weight", "fp16", "fp32"),
    "int8-weight": ("fp16", "fp32"),
    "fp16": ("fp32",),
    "fp32": (),
}
"""What a layer that minds may have instead, the smallest first."""

_CALLS = 3  # of each graph: its first, one in the middle, its last
_MARGIN_DB = 0.5  # between the portable flavour, which is tried, and others, which verify looks at too


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What is searched for."""

    target_snr_db: float
    """Every output of every graph must reach it."""
    unit: UnitKind = "layer"
    """Whether single layers or whole blocks are kept higher; blocks are faster to search in very deep models."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was chosen."""

    config: QuantiseConfig
    """Options for `quantise_bundle`: mixed, with a rule for every layer that is kept higher."""
    sensitivity: Sensitivity
    """By what it was chosen."""


def search_precisions(
    bundle: Bundle,
    config: QuantiseConfig,
    statistics: Statistics | None,
    search: SearchConfig,
    recording: Recording,
    on_progress: Progress,
) -> Found:
    """Choose a precision for every layer of every graph.

    Args:
        bundle: At FP32.
        config: Options; `base` is what layers get that may have it, `rules` are followed.
        statistics: Of the bundle's activations, where the precision needs them.
        search: What must be reached.
        recording: What the graphs were given while the bundle spoke.
        on_progress: Told about every version that is run.

    Raises:
        ConfigError: A graph was not reached by the recording, or a rule cannot be followed.
        InputError: The precision needs statistics.
    """
    nodes = layers_of(bundle)
    rules: list[Rule] = []
    graphs = []
    for name in nodes:
        task = _Task(bundle, name, nodes, config, statistics, search)
        chosen, found = task.solve(recording, lambda done, total, name=name: on_progress(f"trying {name}", done, total))  # type: ignore[misc]
        graphs.append(found)
        rules += chosen
    mixed = dataclasses.replace(config, precision="mixed", rules=(*rules, *config.rules))
    return Found(mixed, Sensitivity(config.base, search.unit, search.target_snr_db, tuple(graphs)))


class _Task:
    """One graph."""

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        nodes: Mapping[str, Sequence[WeightedNode]],
        config: QuantiseConfig,
        statistics: Statistics | None,
        search: SearchConfig,
    ) -> None:
        self._bundle, self._name, self._search = bundle, name, search
        self._nodes, self._config, self._statistics = nodes[name], config, statistics
        known = {rule for rule in config.rules if any(rule.matches(name, node.path) for node in self._nodes)}
        self._rules = [rule for rule in config.rules if rule in known]  # those of other graphs would match nothing
        self._spec: GraphSpec = bundle.manifest.graph(name)

    def solve(
        self, recording: Recording, on_progress: Callable[[int, int], None]
    ) -> tuple[list[Rule], GraphSensitivity]:
        """Rules for the graph's own layers, and what they were chosen by."""
        calls = spread(recording.calls(self._name), _CALLS)
        trials = GraphTrials(self._bundle, self._spec, calls, self._rewrite)
        target, base = self._search.target_snr_db + _MARGIN_DB, self._config.base
        lower = self._plan(base)
        all_snr = trials.snr_db(lower)
        if all_snr >= target:
            return [], GraphSensitivity(self._name, (), all_snr, all_snr, base, trials.count)
        stored = {node.path: node.stored for node in self._nodes}
        units = measure_units(trials, stored, lower, self._search.unit, on_progress)
        for higher in LADDER[base]:
            snr = trials.snr_db(self._plan(higher))
            if snr >= target:
                kept, snr = self._fewest(trials, units, (base, higher), (target, snr))
                break
            base = higher
        marked = tuple(
            dataclasses.replace(unit, kept_as=higher if place < kept else None) for place, unit in enumerate(units)
        )
        rules = self._base_rules(base) + self._kept_rules(units[:kept], higher)
        return rules, GraphSensitivity(self._name, marked, all_snr, snr, base, trials.count)

    def _fewest(
        self,
        trials: GraphTrials,
        units: Sequence[UnitSensitivity],
        precisions: tuple[LayerPrecision, LayerPrecision],
        known: tuple[float, float],
    ) -> tuple[int, float]:
        """How many of the first units must be higher, and what that reaches.

        Args:
            trials: Of the graph.
            units: The most sensitive first.
            precisions: Of the others, and of those.
            known: What must be reached, and what all units at the higher precision reach.
        """
        (base, higher), (target, reached) = precisions, known
        lower, upper, too_few, enough = self._plan(base), self._plan(higher), 0, len(units)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            kept = {path for unit in units[:middle] for path in unit.layers}
            snr = trials.snr_db({path: (upper if path in kept else lower)[path] for path in lower})
            if snr >= target:
                enough, reached = middle, snr
            else:
                too_few = middle
        return enough, reached

    def _plan(self, base: LayerPrecision, rules: Sequence[Rule] = ()) -> PrecisionMap:
        return plan_layers({self._name: self._nodes}, base, (*rules, *self._rules))[self._name]

    def _base_rules(self, base: LayerPrecision) -> list[Rule]:
        """Where the whole graph had to go higher: its layers by name, so that islands stay what they are."""
        if base == self._config.base:
            return []
        plan, before = self._plan(base), self._plan(self._config.base)
        return [_rule(self._name, path, plan[path]) for path in plan if plan[path] != before[path]]

    def _kept_rules(self, units: Sequence[UnitSensitivity], higher: LayerPrecision) -> list[Rule]:
        plan = self._plan(higher)
        return [_rule(self._name, path, plan[path]) for unit in units for path in unit.layers]

    def _rewrite(self, folder: Path, layers: PrecisionMap) -> Path:
        """The portable flavour with these precisions, as `quantise_bundle` would write it."""
        model = read_model(self._bundle.graph_path(self._spec))
        sources = stored_sources([model], self._bundle.data_path(self._spec))
        graph = EditedGraph(self._name, {"portable": model}, sources)
        quantise_graph(graph, layers, self._config, self._statistics)
        path = folder / "graph.onnx"
        save_models({path: model}, graph.sources, folder / "graph.data", lambda count: None)
        return path


def _rule(graph: str, path: str, precision: LayerPrecision) -> Rule:
    escaped = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)
    return Rule(f"{graph}:{escaped}", precision)

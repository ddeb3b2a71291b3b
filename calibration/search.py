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
class Found:
    """What was chosen."""

    config: QuantiseConfig
    """Options for `quantise_bundle`: mixed, with a rule for every layer that is kept higher."""
    sensitivity: Sensitivity
    """By what it was chosen."""


class PrecisionSearch:
    """All graphs of a bundle; may be asked for several targets, and runs no version of a graph twice."""

    def __init__(
        self,
        bundle: Bundle,
        config: QuantiseConfig,
        statistics: Statistics | None,
        recording: Recording,
    ) -> None:
        """Run every graph as it is.

        Args:
            bundle: At FP32.
            config: Options; `base` is what layers get that may have it, `rules` are followed, `unit` is what is kept
                higher.
            statistics: Of the bundle's activations, where the precision needs them.
            recording: What the graphs were given while the bundle spoke.

        Raises:
            ConfigError: A graph was not reached by the recording, or a rule cannot be followed.
        """
        self._config = config
        nodes = layers_of(bundle)
        plan_layers(nodes, config.base, config.rules)  # refuses a rule that matches nothing
        self._tasks = [_Task(bundle, name, nodes[name], config, statistics, recording) for name in nodes if nodes[name]]

    def find(self, target_snr_db: float, on_progress: Progress) -> Found:
        """Choose a precision for every layer of every graph.

        Args:
            target_snr_db: Every output of every graph must reach it.
            on_progress: Told about every layer that is looked at.

        Raises:
            InputError: The precision needs statistics.
        """
        rules: list[Rule] = []
        graphs = []
        for task in self._tasks:
            chosen, found = task.solve(target_snr_db + _MARGIN_DB, on_progress)
            graphs.append(found)
            rules += chosen
        mixed = dataclasses.replace(self._config, precision="mixed", rules=(*rules, *self._config.rules))
        return Found(mixed, Sensitivity(self._config.base, self._config.unit, target_snr_db, tuple(graphs)))


class _Task:
    """One graph."""

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        nodes: Sequence[WeightedNode],
        config: QuantiseConfig,
        statistics: Statistics | None,
        recording: Recording,
    ) -> None:
        self._bundle, self._name = bundle, name
        self._nodes, self._config, self._statistics = nodes, config, statistics
        # Rules of other graphs would match nothing here, and count as mistakes.
        self._rules = [rule for rule in config.rules if any(rule.matches(name, node.path) for node in nodes)]
        self._spec: GraphSpec = bundle.manifest.graph(name)
        self._trials = GraphTrials(bundle, self._spec, spread(recording.calls(name), _CALLS), self._rewrite)

    def solve(self, target: float, on_progress: Progress) -> tuple[list[Rule], GraphSensitivity]:
        """Rules for the graph's own layers, and what they were chosen by."""
        trials, base = self._trials, self._config.base
        lower = self._plan(base)
        all_snr = trials.snr_db(lower)
        if all_snr >= target:
            return [], GraphSensitivity(self._name, (), all_snr, all_snr, base, trials.count)
        stored: PrecisionMap = {node.path: node.stored for node in self._nodes}
        units = measure_units(
            trials,
            stored,
            lower,
            self._config.unit,
            lambda done, total: on_progress(f"trying {self._name}", done, total),
        )
        higher, kept, snr = base, 0, all_snr
        for higher in LADDER[self._config.base]:
            snr = trials.snr_db(self._plan(higher))
            if snr >= target:
                kept, snr = self._fewest(units, (base, higher), (target, snr))
                break
            base = higher
        marked = tuple(
            dataclasses.replace(unit, kept_as=higher if place < kept else None) for place, unit in enumerate(units)
        )
        rules = self._base_rules(base) + self._kept_rules(units[:kept], higher)
        return rules, GraphSensitivity(self._name, marked, all_snr, snr, base, trials.count)

    def _fewest(
        self,
        units: Sequence[UnitSensitivity],
        precisions: tuple[LayerPrecision, LayerPrecision],
        known: tuple[float, float],
    ) -> tuple[int, float]:
        """How many of the first units must be higher, and what that reaches.

        Args:
            units: The most sensitive first.
            precisions: Of the others, and of those.
            known: What must be reached, and what all units at the higher precision reach.
        """
        (base, higher), (target, reached) = precisions, known
        lower, upper, too_few, enough = self._plan(base), self._plan(higher), 0, len(units)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            kept = {path for unit in units[:middle] for path in unit.layers}
            snr = self._trials.snr_db({path: (upper if path in kept else lower)[path] for path in lower})
            if snr >= target:
                enough, reached = middle, snr
            else:
                too_few = middle
        return enough, reached

    def _plan(self, base: LayerPrecision) -> PrecisionMap:
        return plan_layers({self._name: self._nodes}, base, self._rules)[self._name]

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

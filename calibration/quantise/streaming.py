"""Round the weights of graphs that were just traced, while they are streamed out of a checkpoint.

In: graphs one after the other, whose weights nobody has written yet. Out: rewritten graphs and their entries for the
manifest. No FP32 copy of the model is ever on the disk. What needs to know activations cannot be done here: nobody can
speak with a model that is not there yet (see `quantise.bundle`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from voxedge.calibration.quantise.bundle import quantise_graph, rounded_spec
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.graph import EditedGraph
from voxedge.calibration.quantise.plan import WeightedNode, check_rules, plan_graph
from voxedge.engines.manifest import Flavour, GraphSpec, LayerSpec


@dataclass(frozen=True, slots=True)
class RoundedGraph:
    """What became of one graph."""

    graph: EditedGraph
    """Rewritten."""
    layers: Mapping[str, LayerSpec]
    """Of every weighted node."""
    paths: Mapping[Flavour, set[str | None]]
    """Nodes that each flavour had."""
    config: QuantiseConfig
    """Options."""

    def described(self, spec: GraphSpec) -> GraphSpec:
        """The entry of one flavour in the manifest."""
        return rounded_spec(spec, self.graph, self.layers, self.paths, self.config)


class Rounding:
    """Rounds the graphs of one export."""

    def __init__(self, config: QuantiseConfig) -> None:
        self.config = config
        self._nodes: dict[str, tuple[WeightedNode, ...]] = {}

    def round(self, graph: EditedGraph) -> RoundedGraph:
        """Rewrite one graph in place.

        Raises:
            ConfigError: A rule cannot be followed.
            InputError: A layer's activations are to be rounded, which needs statistics.
        """
        nodes = self._nodes[graph.name] = graph.weighted_nodes()
        paths = {flavour: {node.name for node in model.graph} for flavour, model in graph.models.items()}
        layers = plan_graph(graph.name, nodes, self.config.default_layer, self.config.rules)
        return RoundedGraph(graph, quantise_graph(graph, layers, self.config, None)[0], paths, self.config)

    def finish(self) -> None:
        """To be called after the last graph.

        Raises:
            ConfigError: A rule matched no layer of any graph.
        """
        check_rules(self._nodes, self.config.rules)

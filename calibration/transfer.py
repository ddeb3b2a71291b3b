"""Statistics of an FP32 bundle for another bundle of the same checkpoint, whose activations are FP16.

In: statistics, the FP32 bundle that they were collected from, and the other one. Out: the same statistics under the
other's names, as its graphs have casts that FP32 graphs have not. Layers have one path in both, and it is by their
paths that activations are found. Whoever calls vouches for the checkpoint: nothing in a bundle proves it.
"""

from __future__ import annotations

import dataclasses

from voxedge.calibration.graph_files import read_model
from voxedge.calibration.statistics import Key, Statistics, bundle_hash
from voxedge.engines.bundle import Bundle


def statistics_for(target: Bundle, statistics: Statistics, source: Bundle) -> Statistics:
    """What is known of the activations of a bundle, from those of the FP32 bundle of the same checkpoint.

    Args:
        target: Whose names are wanted.
        statistics: Of `source`.
        source: The FP32 bundle.

    Returns:
        Statistics that `target` accepts; of activations of layers that both have.

    Raises:
        InputError: The statistics are of another bundle than `source`.
        BundleError: A graph is damaged.
    """
    statistics.check(source.manifest)
    known = set(statistics.keys)
    names: dict[Key, Key] = {}
    for spec in target.manifest.graphs:
        if spec.flavour != "portable":
            continue
        seen = _entering(source, spec.name)
        for path, value in _entering(target, spec.name).items():
            if (spec.name, seen.get(path, "")) in known:
                names[spec.name, value] = (spec.name, seen[path])
    provenance = dataclasses.replace(statistics.provenance, bundle_sha256=bundle_hash(target.manifest))
    return Statistics(provenance, names, lambda key: statistics.tensor(*names[key]) if key in names else None)


def _entering(bundle: Bundle, graph: str) -> dict[str, str]:
    """Name of the first input of every node of a portable graph, by the node's path."""
    model = read_model(bundle.graph_path(bundle.manifest.graph(graph)))
    return {
        str(node.name): str(node.inputs[0].name) for node in model.graph if node.inputs and node.inputs[0] is not None
    }

"""Run a decoder graph whole, its cache as plain arrays; what `runtime.decoder` does in place is done by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from voxedge.engines.backend import Engine

CAPACITY = 1024


@dataclass
class Caches:
    """Keys and values by layer, time-major [T, 1, G, D]."""

    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def stacked(self, leaf: str) -> np.ndarray:
        """[layers, 1, G, T, D], as the recordings have it."""
        layers = sum(name.endswith(leaf) for name in self.rows)
        return np.stack([self.rows[f"{layer}.{leaf}"].transpose(1, 2, 0, 3) for layer in range(layers)])


def run(engine: Engine, ids: np.ndarray, caches: Caches) -> dict[str, np.ndarray]:
    """Append ids [S] to the caches and give the graph's other outputs."""
    spec = engine.spec
    leaves = [tensor.name.removeprefix("past.") for tensor in spec.inputs if tensor.name.startswith("past.")]
    past = len(caches.rows[leaves[0]]) if caches.rows else 0
    feeds: dict[str, np.ndarray] = {"ids": ids.astype(np.int32)[None]}
    for tensor in spec.inputs:
        if tensor.name == "logits_at":
            feeds["logits_at"] = np.array([len(ids) - 1], np.int32)
        elif tensor.name == "lengths":
            feeds["lengths"] = np.array([past + len(ids) - 1], np.int32)
        elif tensor.name == "total":
            feeds["total"] = np.array([past + len(ids)], np.int32)
        elif tensor.name.startswith("past."):
            shape = tensor.sizes({"past": 0, "batch": 1, "capacity": CAPACITY})
            rows = caches.rows.get(tensor.name.removeprefix("past."))
            given = np.zeros(shape, tensor.dtype)
            if rows is not None and spec.flavour == "ort":
                given[:, :, :past] = rows.transpose(1, 2, 0, 3)
            feeds[tensor.name] = given if rows is None or spec.flavour == "ort" else rows
    results = engine.run(feeds)
    for leaf in leaves:
        if spec.flavour == "ort":
            caches.rows[leaf] = results.pop(f"present.{leaf}")[:, :, : past + len(ids)].transpose(2, 0, 1, 3)
        else:
            new = results.pop(f"new.{leaf}")
            caches.rows[leaf] = np.concatenate([caches.rows[leaf], new]) if past else new
    return results

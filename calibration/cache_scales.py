"""Steps of a decoder's INT8 caches, read back from its graph.

In: a graph whose caches are INT8. Out: one step for each channel of each head, or one for all. Does not choose them
(see `calibration.quantise.kv_cache`) and runs nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxedge.calibration.replay import PAST, CacheScales
from voxedge.engines.manifest import GraphSpec

PREFIX, SUFFIX = "cache.", ".scale"


def scale_name(leaf: str) -> str:
    """Initialiser of a cache's steps, [G, D] or [1], by its leaf such as `3.key`."""
    return f"{PREFIX}{leaf}{SUFFIX}"


def has_int8_cache(spec: GraphSpec) -> bool:
    """Whether a graph keeps its past as INT8."""
    return any(tensor.name.startswith(PAST) and tensor.dtype == "int8" for tensor in spec.inputs)


def stored_scales(path: Path) -> CacheScales:
    """Steps of all caches of a graph by leaf, [G, D] or [1].

    Raises:
        BundleError: The file is no graph.
    """
    from voxedge.calibration.graph_files import read_model

    values = read_model(path).graph.initializers
    return {
        name[len(PREFIX) : -len(SUFFIX)]: np.asarray(value.const_value.numpy(), np.float32)
        for name, value in values.items()
        if name.startswith(PREFIX) and name.endswith(SUFFIX) and value.const_value is not None
    }

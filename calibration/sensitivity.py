"""How much each layer of a graph minds being quantised: one at a time, or one block at a time, on real activations.

In: an FP32 graph of a bundle, recorded calls, options of the quantiser. Out: signal-to-noise ratios at the graph's
outputs, of any choice of precisions; records that a bundle keeps. Decides nothing (see `calibration.search`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from voxedge.calibration import metrics
from voxedge.calibration.backends import Outputs, run_calls
from voxedge.calibration.replay import Feeds
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import ConfigError, InferenceError
from voxedge.engines.files import read_json
from voxedge.engines.manifest import GraphSpec, LayerPrecision
from voxedge.engines.records import from_bundle, to_dict

SENSITIVITY_REPORT = "reports/sensitivity.json"
"""Where a bundle of mixed precision keeps what its map was chosen by."""

UnitKind = Literal["layer", "block"]
PrecisionMap = Mapping[str, LayerPrecision]
Rewrite = Callable[[Path, PrecisionMap], Path]
"""Writes the graph with these precisions into a folder and gives the path of its .onnx file."""

_BLOCK = re.compile(r"(/.*?\.\d+)/")
_MAX_REPORT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class UnitSensitivity:
    """One layer or block, alone at the lower precision."""

    path: str
    """Of the node, or the common beginning of a block's nodes."""
    layers: tuple[str, ...]
    """Nodes with weights."""
    snr_db: float
    """At the graph's worst output of the worst call; lower is more sensitive."""
    kept_as: LayerPrecision | None = None
    """The higher precision that it was given; None where it has that of the others."""


@dataclass(frozen=True, slots=True)
class GraphSensitivity:
    """One graph."""

    graph: str
    """Its name."""
    units: tuple[UnitSensitivity, ...]
    """The most sensitive first; empty where the whole graph was good enough at once."""
    all_snr_db: float
    """With every layer at the lower precision."""
    chosen_snr_db: float
    """With the precisions that were chosen."""
    base: LayerPrecision
    """What layers have that were not kept higher."""
    trials: int
    """How many versions of the graph were run."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """All graphs of a bundle."""

    precision: LayerPrecision
    """What one layer at a time was given."""
    unit: UnitKind
    """Whether layers or whole blocks were looked at."""
    target_snr_db: float
    """What every graph had to reach."""
    graphs: tuple[GraphSensitivity, ...]


class GraphTrials:
    """Versions of one graph, each run on the same recorded calls and compared with the FP32 graph."""

    def __init__(self, bundle: Bundle, spec: GraphSpec, calls: Sequence[Feeds], rewrite: Rewrite) -> None:
        """Run the graph as it is.

        Args:
            bundle: At FP32.
            spec: Its portable graph.
            calls: Inputs of the graph; at least one.
            rewrite: Makes a version.

        Raises:
            ConfigError: There are no calls.
            InferenceError: The graph fails.
        """
        if not calls:
            raise ConfigError(f"graph {spec.name}: expected recorded calls to measure with, found none")
        self._spec, self._calls, self._rewrite = spec, calls, rewrite
        self._expected: Outputs = run_calls(bundle.graph_path(spec), spec, calls)
        self._known: dict[tuple[tuple[str, LayerPrecision], ...], float] = {}

    @property
    def count(self) -> int:
        """Versions that were run."""
        return len(self._known)

    def snr_db(self, layers: PrecisionMap) -> float:
        """Signal-to-noise ratio of the worst output of the worst call; -200 dB for a version that cannot be run."""
        key = tuple(sorted(layers.items()))
        if key not in self._known:
            self._known[key] = self._run(layers)
        return self._known[key]

    def _run(self, layers: PrecisionMap) -> float:
        with TemporaryDirectory(prefix="voxedge-trial-") as folder:
            path = self._rewrite(Path(folder), layers)
            try:
                outputs = run_calls(path, self._spec, self._calls)
            except InferenceError:
                return -metrics.SNR_CAP_DB
        return min(
            metrics.snr_db(true[name], found[name])
            for true, found in zip(self._expected, outputs, strict=True)
            for name in true
        )


def measure_units(
    trials: GraphTrials,
    stored: PrecisionMap,
    lower: PrecisionMap,
    unit: UnitKind,
    on_progress: Callable[[int, int], None],
) -> tuple[UnitSensitivity, ...]:
    """Every unit alone at the lower precision; the most sensitive first.

    Args:
        trials: Of the graph.
        stored: Every layer as the FP32 bundle has it.
        lower: Every layer as it is to become; those that stay are not looked at.
        unit: Layers or blocks.
        on_progress: Told about every unit.
    """
    groups = units_of([path for path in lower if lower[path] != stored[path]], unit)
    found = []
    for done, (name, layers) in enumerate(groups.items()):
        on_progress(done, len(groups))
        snr = trials.snr_db({**stored, **{path: lower[path] for path in layers}})
        found.append(UnitSensitivity(name, tuple(layers), snr))
    on_progress(len(groups), len(groups))
    return tuple(sorted(found, key=lambda item: item.snr_db))


def units_of(paths: Sequence[str], unit: UnitKind) -> dict[str, list[str]]:
    """Nodes by the unit that they belong to; a block ends with the first number in a path.

    Example:
        >>> units_of(["/layers.0/q/MatMul", "/layers.0/k/MatMul", "/head/MatMul"], "block")
        {'/layers.0': ['/layers.0/q/MatMul', '/layers.0/k/MatMul'], '/head/MatMul': ['/head/MatMul']}
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        found = _BLOCK.match(path) if unit == "block" else None
        groups.setdefault(found.group(1) if found else path, []).append(path)
    return groups


def spread(calls: Sequence[Feeds], count: int) -> list[Feeds]:
    """A few calls out of many, from the first to the last."""
    if len(calls) <= count:
        return list(calls)
    return [calls[round(place * (len(calls) - 1) / (count - 1))] for place in range(count)]


def dump_sensitivity(found: Sensitivity) -> bytes:
    """The file that a bundle keeps."""
    return json.dumps(to_dict(found), indent=1, allow_nan=False).encode()


def read_sensitivity(bundle: Bundle) -> Sensitivity | None:
    """What a bundle keeps; None where it keeps nothing.

    Raises:
        BundleError: The file is damaged.
    """
    if SENSITIVITY_REPORT not in bundle.manifest.files:
        return None
    data = read_json(bundle.path(SENSITIVITY_REPORT), _MAX_REPORT_BYTES)
    return from_bundle(Sensitivity, data, SENSITIVITY_REPORT)


def kept_layers(found: Sensitivity) -> Iterator[tuple[str, UnitSensitivity]]:
    """Graph and unit of everything that was kept at a higher precision."""
    return ((graph.graph, unit) for graph in found.graphs for unit in graph.units if unit.kept_as is not None)

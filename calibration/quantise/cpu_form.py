"""Integers or floats on this CPU: measured, in turns, on the machine that quantises.

In: one INT8 graph written in both forms, the FP32 graph, statistics. Out: the form that is faster, with the
milliseconds of all three. Inputs are made of real rows where the statistics know them; only the time is looked at, not
the sound.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from voxedge.calibration.quantise.static import CpuForm
from voxedge.calibration.statistics import Statistics
from voxedge.engines.backend import Array
from voxedge.engines.bundle import Bundle
from voxedge.engines.manifest import GraphSpec, TensorSpec
from voxedge.engines.ort import OrtEngine, OrtOptions

_ROUNDS = 4
_MAX_ROUNDS = 40
_ENOUGH_S = 1.0
"""Short graphs are run more often, as far as this many seconds allow."""
_MAX_DIM = 64
"""Longest sequence that is run; a vocoder's chunk is shorter, and longer ones take longer in all forms alike."""


@dataclass(frozen=True, slots=True)
class CpuChoice:
    """How ONNX Runtime's CPU computes a graph, and why."""

    form: CpuForm
    """What the `ort` flavour does: `integer`, or `float` from INT8 weights."""
    measured: bool
    """Whether it is the faster one, or what was asked for."""
    fp32_ms: float = 0.0
    """Fastest run of the FP32 graph."""
    integer_ms: float = 0.0
    float_ms: float = 0.0

    def sentence(self, graph: str) -> str:
        """For people."""
        if not self.measured:
            return f"{graph}: the CPU computes {self.form}s, as asked for"
        found = f"integers {self.integer_ms:.1f} ms, floats {self.float_ms:.1f} ms, FP32 graph {self.fp32_ms:.1f} ms"
        if self.form == "float":
            return f"{graph}: INT8 is slower than FP32 on this CPU ({found}); the CPU goes on to compute floats"
        return f"{graph}: INT8 is faster than FP32 on this CPU ({found})"


def choose_cpu_form(
    bundle: Bundle, spec: GraphSpec, statistics: Statistics, write: Callable[[Path, CpuForm], Path]
) -> CpuChoice:
    """Write both forms to a folder of their own and run them in turns with the FP32 graph.

    Args:
        bundle: At FP32.
        spec: A graph of it that exists in the portable flavour alone.
        statistics: Of the bundle.
        write: Writes the graph's `ort` flavour in a form into a folder and gives its path.
    """
    feeds = _feeds(spec, statistics)
    with TemporaryDirectory(prefix="voxedge-") as folder:
        paths: dict[str, Path] = {"fp32": bundle.graph_path(spec)}
        forms: tuple[CpuForm, ...] = ("integer", "float")
        for form in forms:
            (Path(folder) / form).mkdir()
            paths[form] = write(Path(folder) / form, form)
        specs = {"integer": dataclasses.replace(spec, precision="int8", layers={})}
        options = OrtOptions(spinning=False)
        engines = {form: OrtEngine(path, specs.get(form, spec), options) for form, path in paths.items()}
        best = fastest_ms(engines, feeds)
        for engine in engines.values():
            engine.close()
    faster: CpuForm = "integer" if best["integer"] < min(best["float"], best["fp32"]) else "float"
    return CpuChoice(faster, True, best["fp32"], best["integer"], best["float"])


def fastest_ms(engines: Mapping[str, OrtEngine], feeds: Mapping[str, Array]) -> dict[str, float]:
    """Fastest of several runs of each engine, in turns, so that they share what else the machine does."""
    best = dict.fromkeys(engines, float("inf"))
    begun = time.perf_counter()
    for turn in range(_MAX_ROUNDS):
        if turn > _ROUNDS and time.perf_counter() - begun > _ENOUGH_S:
            break
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.run(feeds)
            if turn:  # the first run takes memory
                best[name] = min(best[name], 1000.0 * (time.perf_counter() - started))
    return best


def _feeds(spec: GraphSpec, statistics: Statistics) -> dict[str, Array]:
    """One call of the usual size."""
    usual = {
        dim: max(sizes.min, min(sizes.opt, max(_MAX_DIM, sizes.min)) if dim != "samples" else sizes.opt)
        for dim, sizes in next(iter(spec.profiles.values())).items()
    }
    return {tensor.name: _values(spec, tensor, tensor.sizes(usual), statistics) for tensor in spec.inputs}


def _values(spec: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], statistics: Statistics) -> Array:
    known = statistics.tensor(spec.name, tensor.name)
    if not np.issubdtype(np.dtype(tensor.dtype), np.floating):
        return np.zeros(shape, tensor.dtype)
    if known is None or known.axis != 1 or len(shape) != 3:
        return np.random.default_rng(0).standard_normal(shape).astype(tensor.dtype)
    rows = np.resize(known.samples, (shape[0] * shape[2], shape[1])).reshape(shape[0], shape[2], shape[1])
    return np.ascontiguousarray(rows.transpose(0, 2, 1), tensor.dtype)  # [B, C, T]

"""Export golden checkpoints to graphs and open them; a graph of one shape is traced once for all its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from voxedge.calibration.lint import lint
from voxedge.engines.backend import Engine
from voxedge.engines.manifest import Flavour, GraphSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.export.assemble import GraphPlan
from voxedge.export.graph import Traced
from voxedge.export.weights import save_graphs


@dataclass(frozen=True)
class Exported:
    """A graph's files and specs by flavour."""

    folder: Path
    specs: dict[Flavour, GraphSpec]

    def engine(self, flavour: Flavour = "portable") -> Engine:
        """Open it on ONNX Runtime."""
        spec = self.specs[flavour]
        return OrtEngine(self.folder / spec.path, spec, OrtOptions(threads=1))


@pytest.fixture(scope="session")
def traces() -> dict[object, Traced]:
    """Traces by what makes them: equal shapes share one."""
    return {}


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, traces: dict[object, Traced]) -> Callable[[GraphPlan], Exported]:
    """Save a plan's graphs and lint the portable one."""

    def save(plan: GraphPlan) -> Exported:
        folder = tmp_path_factory.mktemp(plan.name)
        traced: dict[Flavour, Traced] = {}
        for flavour, tracer in plan.trace.items():
            if tracer not in traces:  # equal tracers make equal graphs
                traces[tracer] = tracer()
            traced[flavour] = traces[tracer]
        paths = {flavour: folder / f"{flavour}.onnx" for flavour in traced}
        save_graphs(traced, plan.tensors, paths, folder / "weights.data", lambda count: None)
        specs = {
            flavour: GraphSpec(
                name=plan.name,
                flavour=flavour,
                path=paths[flavour].name,
                data="weights.data",
                precision=plan.precision,
                opset=graph.opset,
                inputs=graph.inputs,
                outputs=graph.outputs,
                profiles=plan.profiles[flavour],
            )
            for flavour, graph in traced.items()
        }
        if "portable" in specs:
            assert lint(paths["portable"], specs["portable"]) == []
        return Exported(folder, specs)

    return save


def read(case: Path) -> dict[str, np.ndarray]:
    """All arrays of a case."""
    with np.load(case / "io.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}

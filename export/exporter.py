"""Write a planned system into a bundle.

In: a `SystemPlan`, which names every graph, tensor and file of the bundle to be. Out: the bundle, complete or not at
all.
One graph is traced and streamed at a time, so the memory needed does not grow with the model.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from voxedge.calibration.quantise.streaming import Rounding
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import ConfigError
from voxedge.engines.files import hash_file
from voxedge.engines.manifest import FileRecord, GraphSpec, ManifestDraft
from voxedge.engines.records import to_dict
from voxedge.export.assemble import GraphPlan, write_graph
from voxedge.export.config import DTYPES, ExportConfig

ProgressCallback = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done and how much there is, in bytes."""


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """Everything that will be in a bundle."""

    system: str
    """Name in the manifest."""
    settings: object
    """A dataclass of `runtime.systems`."""
    graphs: tuple[GraphPlan, ...]
    files: Mapping[str, Path]
    """Further files by their path in the bundle, such as the tokenizer."""
    sources: Mapping[str, Path]
    """The checkpoint's files, by a name that says nothing of this machine."""
    words: tuple[str, ...] = ()
    """Words that the voice was trained on; none for a whole language."""
    voices: tuple[str, ...] = ()
    """Descriptions of its voices."""


def export_plan(
    plan: SystemPlan, output: Path, config: ExportConfig, on_progress: ProgressCallback | None = None
) -> Bundle:
    """Export all graphs of a plan, or those that `config.components` names.

    Raises:
        ConfigError: A component does not exist.
        ExportError: A graph cannot be made, the bundle exists, or the disk is full.
        CheckpointError: A tensor is damaged.
    """
    report = on_progress or (lambda step, done, total: None)
    chosen = _chosen(plan, config)
    rounding = None if config.quantise is None else Rounding(config.quantise)
    with BundleWriter(output, config.overwrite, sum(_bytes(graph, config) for graph in chosen)) as writer:
        specs: list[GraphSpec] = []
        for graph in chosen:
            specs += write_graph(writer, graph, _Counter(graph.name, _bytes(graph, config), report), rounding)
            gc.collect()  # a trace is full of cycles; the next graph needs the room
        if rounding is not None:
            rounding.finish()
        for relative, source in plan.files.items():
            shutil.copyfile(source, writer.path(relative))
        draft = ManifestDraft(
            system=plan.system,
            settings=to_dict(plan.settings),
            graphs=tuple(specs),
            source=_hashes(plan.sources, report),
            created_by=f"voxedge {version('voxedge')}",
            note=config.note,
            words=plan.words,
            voices=plan.voices,
        )
        return writer.commit(draft)


class _Counter:
    """Adds up the bytes of one graph."""

    def __init__(self, step: str, total: int, report: ProgressCallback) -> None:
        self._step, self._total, self._report = step, total, report
        self._done = 0
        report(step, 0, total)

    def __call__(self, count: int) -> None:
        self._done += count
        self._report(self._step, self._done, max(self._total, self._done))


def _chosen(plan: SystemPlan, config: ExportConfig) -> tuple[GraphPlan, ...]:
    names = [graph.name for graph in plan.graphs]
    unknown = sorted(set(config.components) - set(names))
    if unknown:
        raise ConfigError(f"expected --components among {', '.join(names)}, found {', '.join(unknown)}")
    return tuple(graph for graph in plan.graphs if not config.components or graph.name in config.components)


def _bytes(graph: GraphPlan, config: ExportConfig) -> int:
    """Upper bound of a graph's data, all tensors in the widest type they may be stored in."""
    width: float = np.dtype(DTYPES[config.precision]).itemsize
    plain = config.quantise is None or any(rule.precision.startswith("fp") for rule in config.quantise.rules)
    # Rounded weights have 8 bits, and at least 16 of them share a scale; small tensors are not worth a distinction.
    return sum(
        int(math.prod(tensor.shape) * (width if plain or len(tensor.shape) < 2 else 1 + width / 16)) + 2 * 4096
        for tensor in graph.tensors.values()
    )


def _hashes(sources: Mapping[str, Path], report: ProgressCallback) -> dict[str, FileRecord]:
    records = {}
    for done, (name, path) in enumerate(sources.items()):
        report("hashing the checkpoint", done, len(sources))
        records[name] = FileRecord(hash_file(path), path.stat().st_size)
    return records

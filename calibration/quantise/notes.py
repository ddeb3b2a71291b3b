"""What a quantisation found out, kept in the bundle for people: `reports/quantise.json`.

In: the notes of each graph. Out: one JSON file. Nothing reads it to run a bundle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxedge.calibration.quantise.awq import Balanced
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.cpu_form import CpuChoice
from voxedge.calibration.quantise.smooth import Smoothing
from voxedge.calibration.statistics import Statistics
from voxedge.engines.records import to_dict

REPORT = "reports/quantise.json"


@dataclass(frozen=True, slots=True)
class GraphNotes:
    """About one graph."""

    graph: str
    cpu: CpuChoice | None = None
    """How the CPU computes it; None where there was no choice."""
    smoothing: tuple[Smoothing | Balanced, ...] = ()
    """Of each activation of INT8 and of 4-bit matrix products."""


def write_notes(path: Path, config: QuantiseConfig, statistics: Statistics | None, notes: Sequence[GraphNotes]) -> None:
    """Write the report.

    Args:
        path: The file; it is not there yet.
        config: Options of the quantisation.
        statistics: What was used.
        notes: Of every graph.
    """
    given = None if statistics is None else to_dict(statistics.provenance)
    data: dict[str, Any] = {"config": to_dict(config), "statistics": given, "graphs": [to_dict(note) for note in notes]}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")

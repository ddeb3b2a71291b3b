"""The same voice at every precision: exported, calibrated, quantised; what fails is told, the rest goes on.

In: a checkpoint, or an FP32 bundle, and a folder to work in. Out: folders of bundles by precision. What is there
already is taken as it is, so that a table can be made again without the work.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from voxedge.calibration.collect import CollectConfig, collect_statistics
from voxedge.calibration.mixed import MixedConfig, quantise_mixed
from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.sets import CalibrationSet, load_set
from voxedge.calibration.speaking import Probe
from voxedge.calibration.statistics import Statistics
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import VoxedgeError
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint

PRECISIONS = ("fp32", "fp16", "int8", "int8-weight", "int4-weight", "mixed")


@dataclass(frozen=True, slots=True)
class Settings:
    """How bundles are made."""

    precisions: tuple[str, ...]
    """Which; fp32 always, since it is what all others come from."""
    calibration_set: str
    """Name of a set."""
    lines: int
    """Of the set, for statistics."""
    max_tokens: int
    """Speech tokens of one line at most."""
    min_snr_db: float
    """For mixed precision: every output of every graph."""
    mixed_base: str
    """For mixed precision: what layers get that may have it."""
    probes: tuple[Probe, ...]
    """What is said to choose and to verify."""
    codec: Path | None = None
    """Bundle of the codec, for voices without one of their own."""


@dataclass(slots=True)
class Voice:
    """One voice at every precision that could be made."""

    name: str
    """For the report."""
    bundles: dict[str, Path] = field(default_factory=dict)
    """Folders by precision."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a precision is missing."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That making each one took; absent where it was there already."""


def make(name: str, source: Path, work: Path, settings: Settings) -> Voice:
    """Every precision of one voice.

    Args:
        name: For the report.
        source: A checkpoint, or an FP32 bundle; from a bundle there is no FP16.
        work: Folder for the bundles.
        settings: How.
    """
    voice, statistics = Voice(name), _Statistics(work / "statistics.safetensors", settings)
    is_bundle = (source / "voxedge.json").is_file()
    if is_bundle:
        voice.bundles["fp32"] = source

    def export(precision: str) -> Callable[[Path], object]:
        return lambda target: export_checkpoint(source, target, ExportConfig(precision=precision))  # type: ignore[arg-type]

    if not is_bundle:
        _step(voice, "fp32", work, export("fp32"))
    if "fp32" not in voice.bundles:
        return voice
    base = voice.bundles["fp32"]
    for precision in settings.precisions:
        if precision == "fp32":
            continue
        if precision == "fp16":
            if is_bundle:
                voice.failures["fp16"] = "not made: only the FP32 bundle was given, not its checkpoint"
            else:
                _step(voice, "fp16", work, export("fp16"))
        elif precision == "mixed":
            _step(voice, "mixed", work, lambda target: _mixed(base, target, settings, statistics))
        else:
            _step(voice, precision, work, lambda target, p=precision: _plain(base, target, p, statistics))  # type: ignore[misc]
    return voice


@dataclass(slots=True)
class _Statistics:
    """Of one voice, collected when they are first needed."""

    path: Path
    settings: Settings

    def of(self, base: Path) -> Statistics:
        if self.path.exists():
            return Statistics.load(self.path)
        whole = load_set(self.settings.calibration_set)
        some = CalibrationSet(whole.name, whole.lines[: self.settings.lines])
        config = CollectConfig(max_tokens=self.settings.max_tokens)
        return collect_statistics(Bundle.open(base), some, self.path, config, lambda step, done, total: None)


def _plain(base: Path, target: Path, precision: str, statistics: _Statistics) -> None:
    found = statistics.of(base) if precision == "int8" else None
    quantise_bundle(base, target, QuantiseConfig(precision), found)  # type: ignore[arg-type]


def _mixed(base: Path, target: Path, settings: Settings, statistics: _Statistics) -> None:
    found = statistics.of(base) if settings.mixed_base == "int8" else None
    config = QuantiseConfig("mixed", base=settings.mixed_base, min_snr_db=settings.min_snr_db)  # type: ignore[arg-type]
    quantise_mixed(base, target, config, found, MixedConfig(probes=settings.probes, codec=settings.codec))


def _step(voice: Voice, precision: str, work: Path, write: Callable[[Path], object]) -> None:
    target = work / precision
    if (target / "voxedge.json").is_file():
        voice.bundles[precision] = target
        return
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    print(f"{voice.name}: {precision}", file=sys.stderr, flush=True)
    try:
        write(target)
    except VoxedgeError as error:
        voice.failures[precision] = str(error)
        return
    voice.seconds[precision] = time.perf_counter() - started
    voice.bundles[precision] = target

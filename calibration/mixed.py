"""Quantise a bundle as far as its quality allows: search, write, verify, and keep more layers higher until it passes.

In: an FP32 bundle, options, what must be reached. Out: a bundle of mixed precision with its limits, its precision map
and the measurement behind it, verified and marked as ready or not. Prints nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.recording import Recording
from voxedge.calibration.search import PrecisionSearch
from voxedge.calibration.sensitivity import SENSITIVITY_REPORT, Sensitivity, dump_sensitivity
from voxedge.calibration.speaking import Probe, probes_for
from voxedge.calibration.speech_check import speak_reference
from voxedge.calibration.statistics import Statistics
from voxedge.calibration.verify import Verification, VerifyConfig, record, verify
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import ConfigError, InputError

Progress = Callable[[str, int, int], None]

_STEP_DB = 3.0  # half the noise power, where speech is not good enough though every graph reaches the target


@dataclass(frozen=True, slots=True)
class MixedConfig:
    """How a bundle of mixed precision is looked for."""

    probes: Sequence[Probe] | None = None
    """What is said to record activations, and to verify; None for what suits the voice."""
    codec: Path | None = None
    """Bundle of the codec, for a system without one of its own; None for the one beside it."""
    rounds: int = 3
    """How often more is kept higher because the speech, not a graph, was not good enough."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came of it."""

    bundle: Bundle
    """The new bundle; marked as ready where it passed."""
    sensitivity: Sensitivity
    """By what its precisions were chosen."""
    verification: Verification
    """The last one."""


def quantise_mixed(
    source: Path,
    output: Path,
    config: QuantiseConfig,
    statistics: Statistics | None = None,
    mixed: MixedConfig | None = None,
    on_progress: Progress | None = None,
) -> Mixed:
    """Write a bundle of mixed precision that passes its gate, or the best that was found.

    Args:
        source: Folder of an FP32 bundle.
        output: Folder of the new bundle.
        config: Options; `base` is what layers get that may have it, `min_snr_db` what must be reached.
        statistics: Of the source's activations, where the base needs them.
        mixed: How it is looked for.
        on_progress: Told about every step.

    Returns:
        The bundle and what was measured; `verification.report.passed` says whether it passed.

    Raises:
        BundleError: The source is damaged.
        InputError: The source is not FP32 or cannot speak, or statistics are missing or of another bundle.
        ConfigError: A rule cannot be followed.
        ExportError: The output exists, or the disk is full.
    """
    if config.min_snr_db is None:
        raise ConfigError("expected a signal-to-noise ratio to reach, found none; give --min-snr")
    mixed, progress = mixed or MixedConfig(), on_progress or (lambda step, done, total: None)
    bundle = Bundle.open(source, verify_hashes=True)
    coarse = sorted({graph.precision for graph in bundle.manifest.graphs} - {"fp32"})
    if coarse:
        raise InputError(f"{source}: expected an FP32 bundle to search with, found {', '.join(coarse)}")
    recording = Recording()
    probes = probes_for(bundle.manifest.words) if mixed.probes is None else mixed.probes
    speak_reference(bundle, probes, recording, progress, mixed.codec)
    search = PrecisionSearch(bundle, config, statistics, recording)
    target = config.min_snr_db
    for number in range(mixed.rounds):
        found = search.find(target, progress)
        chosen = dataclasses.replace(found.config, overwrite=config.overwrite or number > 0)
        reports = {SENSITIVITY_REPORT: dump_sensitivity(found.sensitivity)}
        quantised = quantise_bundle(source, output, chosen, statistics, progress, reports)
        verification = verify(output, source, progress, VerifyConfig(probes=probes, codec=mixed.codec))
        record(verification)
        if verification.report.passed:
            break
        target += _STEP_DB
    return Mixed(quantised, found.sensitivity, verification)


def quantise_as_asked(
    source: Path,
    output: Path,
    config: QuantiseConfig,
    statistics: Statistics | None = None,
    on_progress: Progress | None = None,
    codec: Path | None = None,
) -> Bundle:
    """Search where there is something to reach, else round at once; arguments and errors as for `quantise_mixed`."""
    if config.min_snr_db is None:
        return quantise_bundle(source, output, config, statistics, on_progress)
    return quantise_mixed(source, output, config, statistics, MixedConfig(codec=codec), on_progress).bundle

"""What a verification found: graph by graph, and in what was spoken.

In: figures. Out: frozen records and their JSON form. Does not measure and does not judge (see `calibration.gate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from voxedge.calibration.metrics import TensorDifference
from voxedge.engines.manifest import Flavour
from voxedge.engines.records import to_dict
from voxedge.runtime.audio import FinishReason

Against = Literal["reference", "portable"]
"""What a graph was compared with: the reference's portable flavour, or its own bundle's."""


@dataclass(frozen=True, slots=True)
class GraphReport:
    """One flavour of one graph on recorded calls."""

    name: str
    """Of the graph."""
    flavour: Flavour
    """Which one was run."""
    precision: str
    """As the manifest says."""
    calls: int
    """Recorded calls that it was given."""
    finite: float
    """Share of all output values that are numbers, 0 .. 1."""
    broken: tuple[str, ...] = ()
    """Outputs with a NaN or an infinity."""
    against: Against | None = None
    """None where there was nothing to compare it with."""
    outputs: tuple[TensorDifference, ...] = ()
    """The worst of each figure over all calls, by output; empty where nothing was compared."""

    @property
    def worst(self) -> TensorDifference | None:
        """The output with the lowest signal-to-noise ratio."""
        return min(self.outputs, key=lambda output: output.snr_db) if self.outputs else None


@dataclass(frozen=True, slots=True)
class SpeechReport:
    """What a bundle said by itself."""

    duration_s: float
    """Length in seconds."""
    tokens: int
    """Speech tokens drawn."""
    finish_reason: FinishReason
    """`length` where the probe's cap was hit."""
    loudness_db: float
    """Root mean square in dB of full scale."""
    peak: float
    """Largest absolute value; full scale is 1."""
    clipped_fraction: float
    """Share of the samples beyond full scale, 0 .. 1."""
    silent: bool
    """Whether nothing is louder than -80 dB of full scale."""


@dataclass(frozen=True, slots=True)
class SpeechDifference:
    """A bundle beside its reference, same text and seed."""

    tokens_equal: bool
    """Whether both drew the same by themselves."""
    first_divergence: int | None
    """Place of the first token that differs; None where all are equal."""
    token_agreement: float
    """Share of the reference's tokens at which both find the same id most likely, given the same past, 0 .. 1."""
    logits_snr_db: float
    """Of all logits along the reference's tokens."""
    waveform_snr_db: float
    """Of the sound of the reference's tokens."""
    log_spectral_distance_db: float
    """Of the sound of the reference's tokens."""
    loudness_difference_db: float
    """Bundle minus reference, for the reference's tokens; negative is quieter."""
    duration_difference_s: float
    """Bundle minus reference, each with the tokens that it drew by itself."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Everything that a verification found."""

    bundle: str
    """Folder."""
    reference: str | None
    """Folder of the reference; None where there was none."""
    precisions: tuple[str, ...]
    """Of the bundle's graphs."""
    graphs: tuple[GraphReport, ...]
    """One entry for each flavour and each thing that it was compared with."""
    speech: SpeechReport | None
    """None where the bundle could not speak."""
    difference: SpeechDifference | None
    """None where there was nothing to compare."""
    failures: tuple[str, ...]
    """Why the gate is closed, one sentence each; empty where the bundle passed."""
    notes: tuple[str, ...]
    """What people should know, though it fails nothing."""

    @property
    def passed(self) -> bool:
        """Whether the bundle may be used."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is None is left out."""
        return {"passed": self.passed, **to_dict(self)}

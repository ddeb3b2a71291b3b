"""What a verification found: graph by graph, and in what was spoken.

In: figures. Out: frozen records, their JSON form, and several utterances pooled to one. Does not measure and does not
judge (see `calibration.gate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from voxedge.calibration.metrics import TensorDifference
from voxedge.calibration.recogniser import WordErrors
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
        """The output with the lowest signal-to-noise ratio; codes have none, and None where there is nothing else."""
        measured = [output for output in self.outputs if output.agreement is None]
        return min(measured, key=lambda output: output.snr_db) if measured else None

    @property
    def code_agreement(self) -> float | None:
        """Share of equal values at the worst output of whole numbers; None where there is none."""
        return min((item.agreement for item in self.outputs if item.agreement is not None), default=None)


@dataclass(frozen=True, slots=True)
class GraphSize:
    """Weights of one graph on disk."""

    name: str
    """Of the graph; its flavours share the weights."""
    size: int
    """Bytes of its data file."""
    reference_size: int | None = None
    """The reference's; None where there is none."""

    @property
    def ratio(self) -> float | None:
        """Size over the reference's."""
        return self.size / self.reference_size if self.reference_size else None


@dataclass(frozen=True, slots=True)
class SpeechReport:
    """What a bundle said by itself."""

    duration_s: float
    """Length in seconds."""
    tokens: int
    """Speech tokens drawn."""
    finish_reason: FinishReason
    """`length` where the probe's cap was hit."""
    loudness_lufs: float
    """Integrated loudness after BS.1770-4, -70 LUFS or above."""
    peak: float
    """Largest absolute value; full scale is 1."""
    clipped_fraction: float
    """Share of the samples beyond full scale, 0 .. 1."""
    silent: bool
    """Whether nothing is louder than -80 dB of full scale."""
    silent_fraction: float = 0.0
    """Share of 20 ms frames that are 50 dB below the loudest, 0 .. 1."""
    words: WordErrors | None = None
    """What a recogniser heard; None where none listened."""


@dataclass(frozen=True, slots=True)
class SpeechDifference:
    """A bundle beside its reference, same text and seed."""

    tokens_equal: bool
    """Whether both drew the same by themselves."""
    first_divergence: int | None
    """Place of the first token that differs; None where all are equal."""
    draws: int
    """Tokens of the reference."""
    token_agreement: float
    """Share of the reference's tokens at which both find the same id most likely, given the same past, 0 .. 1."""
    logits_snr_db: float
    """Of all logits along the reference's tokens."""
    waveform_snr_db: float
    """Of the sound of the reference's tokens."""
    mel_distance_db: float
    """Mean absolute difference of log-mel spectra, for the reference's tokens."""
    mel_distance_l2_db: float
    """The same, root mean square over bands."""
    log_spectral_distance_db: float
    """Of the sound of the reference's tokens."""
    loudness_difference_lu: float
    """Bundle minus reference, for the reference's tokens; negative is quieter."""
    pitch_error_cents: float | None
    """Median on frames that are voiced in both, for the reference's tokens; None where there are too few."""
    voicing_agreement: float
    """Share of frames on which both agree whether they are voiced, 0 .. 1."""
    voiced_fraction: float
    """Share of the reference's frames that are voiced, 0 .. 1."""
    silence_increase: float
    """Share of silent frames, bundle minus reference, for the reference's tokens."""
    clipping_increase: float
    """Share of samples beyond full scale, bundle minus reference, for the reference's tokens."""
    duration_difference_s: float
    """Bundle minus reference, each with the tokens that it drew by itself."""


@dataclass(frozen=True, slots=True)
class UtteranceReport:
    """One thing that was said."""

    text: str
    """What was to be said."""
    description: str
    """Of the voice; empty for none."""
    seed: int
    """Of tokens and latents."""
    speech: SpeechReport
    """The bundle left alone."""
    reference: SpeechReport | None = None
    """The reference; None where there is none."""
    difference: SpeechDifference | None = None
    """Both beside each other."""


@dataclass(frozen=True, slots=True)
class Check:
    """One limit of the gate and what was measured against it."""

    limit_name: str
    """Field of `engines.gate.Gate`."""
    subject: str
    """What was measured: a graph, an utterance, or all speech."""
    what: str
    """The figure in words."""
    unit: str
    """`dB`, `LU`, `cents` or `%`; shares are stored as 0 .. 1."""
    measured: float
    limit: float
    passed: bool
    more: str = ""
    """Which parts are beyond the limit."""

    @property
    def limit_text(self) -> str:
        """The limit with its unit."""
        return f"{self._scaled(self.limit):g} {self.unit}"

    @property
    def measured_text(self) -> str:
        """What was measured with its unit; with enough digits that a near miss does not read as a hit."""
        value, limit = self._scaled(self.measured), self._scaled(self.limit)
        digits = next((digits for digits in (1, 2, 4) if round(value, digits) != round(limit, digits)), 1)
        return f"{value:.{digits}f} {self.unit}"

    @property
    def sentence(self) -> str:
        """What is wrong, where it did not pass."""
        least = "least" if self.limit_name.startswith("min_") else "most"
        expected = f"expected at {least} {self.limit_text} of {self.what}"
        return f"{self.subject}: {expected}, found {self.measured_text}{self.more}"

    def _scaled(self, value: float) -> float:
        return 100.0 * value if self.unit == "%" else value


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
    sizes: tuple[GraphSize, ...]
    """Of every graph's weights."""
    utterances: tuple[UtteranceReport, ...]
    """Everything that was said; fewer than were asked for where the bundle could not go on."""
    difference: SpeechDifference | None
    """All utterances together; None where there was nothing to compare."""
    checks: tuple[Check, ...]
    """Every limit that was judged."""
    failures: tuple[str, ...]
    """Why the gate is closed, one sentence each; empty where the bundle passed."""
    notes: tuple[str, ...]
    """What people should know, though it fails nothing; also what was not measured, and why."""

    @property
    def passed(self) -> bool:
        """Whether the bundle may be used."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is None is left out."""
        return {"passed": self.passed, **to_dict(self)}


def pool(differences: Sequence[SpeechDifference]) -> SpeechDifference:
    """All utterances as one: shares over all draws, means of distances, the worst of levels and of signal to noise.

    Args:
        differences: At least one.
    """
    draws = sum(item.draws for item in differences)
    agreeing = sum(item.token_agreement * item.draws for item in differences)
    places = [item.first_divergence for item in differences if item.first_divergence is not None]
    cents = [item.pitch_error_cents for item in differences if item.pitch_error_cents is not None]
    return SpeechDifference(
        tokens_equal=all(item.tokens_equal for item in differences),
        first_divergence=min(places) if places else None,
        draws=draws,
        token_agreement=agreeing / max(1, draws),
        logits_snr_db=min(item.logits_snr_db for item in differences),
        waveform_snr_db=min(item.waveform_snr_db for item in differences),
        mel_distance_db=fmean(item.mel_distance_db for item in differences),
        mel_distance_l2_db=fmean(item.mel_distance_l2_db for item in differences),
        log_spectral_distance_db=fmean(item.log_spectral_distance_db for item in differences),
        loudness_difference_lu=max((item.loudness_difference_lu for item in differences), key=abs),
        pitch_error_cents=fmean(cents) if cents else None,
        voicing_agreement=fmean(item.voicing_agreement for item in differences),
        voiced_fraction=fmean(item.voiced_fraction for item in differences),
        silence_increase=max(item.silence_increase for item in differences),
        clipping_increase=max(item.clipping_increase for item in differences),
        duration_difference_s=max((item.duration_difference_s for item in differences), key=abs),
    )


def word_error_rate(heard: Sequence[WordErrors]) -> float:
    """Errors of all utterances over the words that were to be said; 0 where there were none."""
    return sum(item.errors for item in heard) / max(1, sum(item.words for item in heard))

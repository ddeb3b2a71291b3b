"""Let a bundle and its reference say the same, and compare tokens, logits and sound.

In: bundles, a probe, limits. Out: `SpeechFindings`, and a `Recording` filled by whichever of both is to be trusted.
Sound is compared for the same tokens, the reference's, so that a draw near a border does not hide how well the rest
of the pipeline does. Does not look at single graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from voxedge.calibration import metrics
from voxedge.calibration.gate import Gate, difference_failures, speech_failures
from voxedge.calibration.recording import Recording
from voxedge.calibration.report import SpeechDifference, SpeechReport
from voxedge.calibration.speaking import Probe, Spoken, speak
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InferenceError, InputError
from voxedge.runtime.audio import check_audio


@dataclass(slots=True)
class SpeechFindings:
    """What speaking showed; grows while it goes on."""

    report: SpeechReport | None = None
    """None where the bundle could not speak."""
    difference: SpeechDifference | None = None
    """None where there was nothing to compare."""
    failures: list[str] = field(default_factory=list)
    """One sentence each."""
    notes: list[str] = field(default_factory=list)
    """Likewise, of what fails nothing."""


def check_speech(
    bundle: Bundle, reference: Bundle | None, probe: Probe, gate: Gate, recording: Recording
) -> SpeechFindings:
    """Speak and compare.

    Args:
        bundle: What is judged.
        reference: What it is compared with.
        probe: What both say.
        gate: Limits.
        recording: Filled by the reference, or by the bundle where there is none.

    Raises:
        InputError: The reference cannot speak.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    findings = SpeechFindings()
    expected = None if reference is None else _speak_reference(reference, probe, recording)
    try:
        spoken = speak(bundle, probe, recording if expected is None else None)
        findings.report = describe(spoken)
        if expected is None:
            _judge_alone(findings.report, gate, findings)
        else:
            _judge_beside(expected, spoken, findings.report, gate, findings)
            follower = _follow(bundle, probe, expected, spoken)
            findings.difference = difference(expected, spoken, follower)
            findings.failures += difference_failures(findings.difference, gate)
    except (BundleError, InferenceError) as error:
        findings.failures.append(f"the bundle cannot speak: {error}")
    return findings


def describe(spoken: Spoken) -> SpeechReport:
    """Figures of one utterance.

    Raises:
        InferenceError: A sample is NaN or infinite.
    """
    check = check_audio(spoken.samples)
    return SpeechReport(
        duration_s=spoken.duration_s,
        tokens=len(spoken.drawn) - (spoken.finish_reason == "stop"),
        finish_reason=spoken.finish_reason,
        loudness_db=metrics.loudness_db(spoken.samples),
        peak=check.peak,
        clipped_fraction=check.clipped_fraction,
        silent=check.silent,
    )


def difference(expected: Spoken, spoken: Spoken, follower: Spoken) -> SpeechDifference:
    """A bundle beside its reference.

    Args:
        expected: The reference.
        spoken: The bundle, left alone.
        follower: The bundle, made to take the reference's tokens; its sound has the length of the reference's.
    """
    divergence = first_divergence(expected.drawn, spoken.drawn)
    agreeing = expected.logits.argmax(axis=1) == follower.logits.argmax(axis=1)  # [n]
    return SpeechDifference(
        tokens_equal=divergence is None,
        first_divergence=divergence,
        token_agreement=float(np.mean(agreeing)),
        logits_snr_db=metrics.snr_db(expected.logits, follower.logits),
        waveform_snr_db=metrics.snr_db(expected.samples, follower.samples),
        log_spectral_distance_db=metrics.log_spectral_distance_db(expected.samples, follower.samples),
        loudness_difference_db=metrics.loudness_db(follower.samples) - metrics.loudness_db(expected.samples),
        duration_difference_s=spoken.duration_s - expected.duration_s,
    )


def first_divergence(expected: tuple[int, ...], found: tuple[int, ...]) -> int | None:
    """Place of the first token that differs, where one of both may have ended; None where all are equal.

    Example:
        >>> first_divergence((5, 6, 7), (5, 6, 8)), first_divergence((5, 6), (5, 6, 8)), first_divergence((5,), (5,))
        (2, 2, None)
    """
    if expected == found:
        return None
    pairs = zip(expected, found, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))


def _speak_reference(reference: Bundle, probe: Probe, recording: Recording) -> Spoken:
    try:
        spoken = speak(reference, probe, recording)
        describe(spoken)
    except (BundleError, InferenceError) as error:
        raise InputError(
            f"expected a reference that speaks, {reference.root} does not: {error}; export the checkpoint again with "
            "--precision fp32"
        ) from error
    return spoken


def _follow(bundle: Bundle, probe: Probe, expected: Spoken, spoken: Spoken) -> Spoken:
    """The bundle's speech of the reference's tokens; the one that is there already where the tokens are the same."""
    return spoken if spoken.drawn == expected.drawn else speak(bundle, probe, forced=expected.drawn)


def _judge_alone(report: SpeechReport, gate: Gate, findings: SpeechFindings) -> None:
    findings.failures += speech_failures(report, None, gate)
    if report.clipped_fraction > gate.max_clipped_fraction:
        findings.notes.append(
            f"{report.clipped_fraction:.1%} of the samples are beyond full scale; compare with --reference to see "
            "whether the checkpoint itself does that"
        )


def _judge_beside(expected: Spoken, spoken: Spoken, report: SpeechReport, gate: Gate, findings: SpeechFindings) -> None:
    findings.failures += speech_failures(report, describe(expected), gate)
    if spoken.drawn != expected.drawn:
        findings.notes.append(
            "left alone, the bundle draws other tokens than the reference; sounds are compared for the reference's"
        )

"""Let a bundle and its reference say the same, and compare tokens, logits, sound and words.

In: bundles, probes, limits. Out: `SpeechFindings`, and a `Recording` filled by whichever of both is to be trusted.
Sound is compared for the same tokens, the reference's, so that a draw near a border does not hide how well the rest
of the pipeline does. Does not look at single graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voxedge.calibration import metrics
from voxedge.calibration.acoustics import loudness_lufs, mel_distance, silent_fraction
from voxedge.calibration.gate import difference_checks, silence_failures, word_checks, words_note
from voxedge.calibration.pitch import pitch_difference
from voxedge.calibration.recogniser import Recogniser, word_errors
from voxedge.calibration.recording import Recording
from voxedge.calibration.report import Check, SpeechDifference, SpeechReport, UtteranceReport, pool
from voxedge.calibration.speaking import Probe, Speaker, Spoken
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InferenceError, InputError
from voxedge.engines.gate import Gate
from voxedge.runtime.audio import check_audio
from voxedge.runtime.systems.base import Samples

Progress = Callable[[str, int, int], None]

HEARD = 8
"""Utterances whose sounds are kept."""
_FURTHER_CALLS = 2  # of each graph, of every utterance but the first


@dataclass(frozen=True, slots=True, eq=False)
class Sounds:
    """What can be listened to of one utterance."""

    text: str
    """What was to be said."""
    sample_rate: int
    """In Hz."""
    own: Samples
    """[T, channels], the bundle left alone."""
    reference: Samples | None = None
    """[T, channels]; None where there is none."""
    follower: Samples | None = None
    """[T, channels], the bundle with the reference's tokens."""


@dataclass(slots=True)
class SpeechFindings:
    """What speaking showed; grows while it goes on."""

    utterances: list[UtteranceReport] = field(default_factory=list)
    """Everything that was said."""
    difference: SpeechDifference | None = None
    """All utterances together; None where there was nothing to compare."""
    checks: list[Check] = field(default_factory=list)
    """Limits that were judged."""
    failures: list[str] = field(default_factory=list)
    """One sentence each, of what has no limit."""
    notes: list[str] = field(default_factory=list)
    """Likewise, of what fails nothing."""
    sounds: list[Sounds] = field(default_factory=list)
    """To listen to."""


@dataclass(frozen=True, slots=True)
class SpeechPlan:
    """How to look at speech."""

    probes: Sequence[Probe]
    """What is said; at least one."""
    gate: Gate
    """Limits."""
    recogniser: Recogniser | None = None
    """Who listens; None for nobody."""
    codec: Path | None = None
    """Bundle of the codec, for a system without one of its own; None for the one beside it."""


def check_speech(
    bundle: Bundle, reference: Bundle | None, plan: SpeechPlan, recording: Recording, on_progress: Progress
) -> SpeechFindings:
    """Speak and compare.

    Args:
        bundle: What is judged.
        reference: What it is compared with.
        plan: What both say, the limits, and who listens.
        recording: Filled by the reference, or by the bundle where there is none.
        on_progress: Told about every utterance.

    Raises:
        InputError: The reference cannot speak.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    findings = SpeechFindings()
    expected = (
        None if reference is None else speak_reference(reference, plan.probes, recording, on_progress, plan.codec)
    )
    try:
        with Speaker(bundle, plan.codec) as speaker:
            for place, probe in enumerate(plan.probes):
                on_progress("speaking", place, len(plan.probes))
                if expected is None:
                    with _recorded(recording, place) as part:
                        own = speaker.speak(probe, part)
                    _add_alone(probe, own, plan, findings)
                else:
                    _add_beside(probe, expected[place], speaker, plan, findings)
    except (BundleError, InferenceError) as error:
        findings.failures.append(f"the bundle cannot speak: {error}")
    on_progress("speaking", len(plan.probes), len(plan.probes))
    _judge(findings, plan.gate)
    return findings


def describe(spoken: Spoken, text: str = "", recogniser: Recogniser | None = None) -> SpeechReport:
    """Figures of one utterance.

    Args:
        spoken: The utterance.
        text: What was to be said.
        recogniser: Who listens; None for nobody.

    Raises:
        InferenceError: A sample is NaN or infinite.
    """
    check = check_audio(spoken.samples)
    words = None
    if recogniser is not None:
        words = word_errors(text, recogniser.transcribe(spoken.samples, spoken.sample_rate))
    return SpeechReport(
        duration_s=spoken.duration_s,
        tokens=len(spoken.drawn) - (spoken.finish_reason == "stop"),
        finish_reason=spoken.finish_reason,
        loudness_lufs=loudness_lufs(spoken.samples, spoken.sample_rate),
        peak=check.peak,
        clipped_fraction=check.clipped_fraction,
        silent=check.silent,
        silent_fraction=silent_fraction(spoken.samples, spoken.sample_rate),
        words=words,
    )


def difference(expected: Spoken, spoken: Spoken, follower: Spoken) -> SpeechDifference:
    """A bundle beside its reference.

    Args:
        expected: The reference.
        spoken: The bundle, left alone.
        follower: The bundle, made to take the reference's tokens; its sound has the length of the reference's.

    Raises:
        InferenceError: A sample is NaN or infinite.
    """
    clipped = check_audio(played := follower.samples).clipped_fraction - check_audio(expected.samples).clipped_fraction
    rate, true = expected.sample_rate, expected.samples
    divergence = first_divergence(expected.drawn, spoken.drawn)
    pairs = list(zip(expected.logits, follower.logits, strict=True))
    mel, pitch = mel_distance(true, played, rate), pitch_difference(true, played, rate)
    return SpeechDifference(
        tokens_equal=divergence is None,
        first_divergence=divergence,
        draws=len(expected.drawn),
        token_agreement=float(np.mean([one.argmax() == other.argmax() for one, other in pairs])),
        logits_snr_db=metrics.snr_db(np.concatenate(expected.logits), np.concatenate(follower.logits)),
        waveform_snr_db=metrics.snr_db(true, played),
        mel_distance_db=mel.l1_db,
        mel_distance_l2_db=mel.l2_db,
        log_spectral_distance_db=metrics.log_spectral_distance_db(true, played),
        loudness_difference_lu=loudness_lufs(played, rate) - loudness_lufs(true, rate),
        pitch_error_cents=pitch.error_cents,
        voicing_agreement=pitch.voicing_agreement,
        voiced_fraction=pitch.voiced_fraction,
        silence_increase=silent_fraction(played, rate) - silent_fraction(true, rate),
        clipping_increase=clipped,
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


@contextmanager
def _recorded(recording: Recording, place: int) -> Iterator[Recording]:
    """Most calls are kept of the first utterance, a few of the others, and those before an error of any."""
    part = Recording(limit=_FURTHER_CALLS) if place else Recording()
    try:
        yield part
    finally:
        recording.extend(part)


def speak_reference(
    reference: Bundle,
    probes: Sequence[Probe],
    recording: Recording,
    on_progress: Progress,
    codec: Path | None = None,
) -> list[Spoken]:
    """Let a bundle say all probes and record its graphs.

    Raises:
        InputError: It cannot speak.
    """
    found = []
    try:
        with Speaker(reference, codec) as speaker:
            for place, probe in enumerate(probes):
                on_progress("speaking with the reference", place, len(probes))
                with _recorded(recording, place) as part:
                    found.append(speaker.speak(probe, part))
                check_audio(found[-1].samples)
    except (BundleError, InferenceError) as error:
        raise InputError(
            f"expected a reference that speaks, {reference.root} does not: {error}; export the checkpoint again with "
            "--precision fp32"
        ) from error
    return found


def _add_alone(probe: Probe, own: Spoken, plan: SpeechPlan, findings: SpeechFindings) -> None:
    report = describe(own, probe.text, plan.recogniser)
    findings.utterances.append(UtteranceReport(probe.text, probe.description, probe.seed, report))
    _keep(findings, Sounds(probe.text, own.sample_rate, own.samples))


def _add_beside(probe: Probe, expected: Spoken, speaker: Speaker, plan: SpeechPlan, findings: SpeechFindings) -> None:
    own = speaker.speak(probe)
    # Where the tokens are the same, so is the speech.
    follower = own if own.drawn == expected.drawn else speaker.speak(probe, forced=expected.drawn)
    report, reference = (describe(spoken, probe.text, plan.recogniser) for spoken in (own, expected))
    found = difference(expected, own, follower)
    findings.utterances.append(UtteranceReport(probe.text, probe.description, probe.seed, report, reference, found))
    _keep(findings, Sounds(probe.text, own.sample_rate, own.samples, expected.samples, follower.samples))


def _keep(findings: SpeechFindings, sounds: Sounds) -> None:
    """A set may have thousands of lines; who listens to more than a few?"""
    if len(findings.sounds) < HEARD:
        findings.sounds.append(sounds)


def _judge(findings: SpeechFindings, gate: Gate) -> None:
    """Compare with the limits; silence of each utterance, everything else of all together."""
    beside, clipped = [], []
    for number, item in enumerate(findings.utterances, 1):
        label = f"utterance {number}"
        findings.failures += silence_failures(label, item.speech)
        if item.reference is None:
            clipped.append(item.speech.clipped_fraction)
        if item.difference is not None:
            beside.append(item.difference)
    if clipped and max(clipped) > (gate.max_clipped_fraction or 0.0):
        findings.notes.append(
            f"{max(clipped):.1%} of the samples are beyond full scale; compare with --reference to see whether the "
            "checkpoint itself does that"
        )
    if beside:
        findings.difference = pool(beside)
        findings.checks += difference_checks(findings.difference, gate)
        _judge_words(findings, gate)
        if not findings.difference.tokens_equal:
            findings.notes.append(
                "left alone, the bundle draws other tokens than the reference; sounds are compared for the reference's"
            )


def _judge_words(findings: SpeechFindings, gate: Gate) -> None:
    own = [item.speech for item in findings.utterances]
    reference = [item.reference for item in findings.utterances if item.reference is not None]
    findings.checks += word_checks(own, reference, gate)
    if (note := words_note(reference)) is not None:
        findings.notes.append(note)

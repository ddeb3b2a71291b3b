"""Let a bundle speak under observation: a fixed text and seed, every graph recorded, every choice of a token kept.

In: a bundle, and the tokens of another one where this one is to follow it. Out: the sound, the tokens, and the logits
that each was drawn from. Does not compare and does not judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from voxedge.calibration.codec_speaking import ObservedCodec
from voxedge.calibration.draws import Draws, WatchedSampler
from voxedge.calibration.moss_speaking import ObservedMoss
from voxedge.calibration.recogniser import words_of
from voxedge.calibration.recording import Recording, RecordingLoader
from voxedge.calibration.replay import PAST, Feeds
from voxedge.calibration.sets import load_set, set_names
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError
from voxedge.engines.loader import GraphLoader
from voxedge.runtime.audio import FinishReason
from voxedge.runtime.codec_settings import SYSTEM as CODEC
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.routing import SPEECH
from voxedge.runtime.sampling import Logits, Sampler
from voxedge.runtime.systems.base import Samples, Stopwatch, System, Utterance
from voxedge.runtime.systems.moe_tts import MoeTts
from voxedge.runtime.systems.moe_tts_settings import SYSTEM as MOE_TTS
from voxedge.runtime.systems.moss_settings import SYSTEM as MOSS_TTS

ENCODER = "vae_encoder"


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that a bundle is asked to say when it is looked at."""

    text: str = "The quick brown fox jumps over the lazy dog."
    """Short enough for every context, with every letter of the alphabet."""
    description: str = ""
    """Of the voice; empty for none."""
    seed: int = 0
    """Of tokens and latents alike."""
    min_tokens: int = 32
    """Speech tokens at least, so that there is a past to read."""
    max_tokens: int = 160
    """Speech tokens at most; 6.4 seconds at 25 tokens per second, twice what the texts below need."""
    steps: int = 9
    """Solver steps; fewer than for listening, over the same range of noise levels. With 9 a `Recording` keeps the first
    and the last level, which are calls 0 and 8."""


PROBES: tuple[Probe, ...] = (
    Probe(),
    Probe("A small boat sailed slowly across the quiet lake.", "A calm woman speaks in a warm, clear voice.", 1),
    Probe("Please call me at nine, I have good news for you.", "A man speaks slowly in a low voice.", 2),
)
"""What a bundle says unless told otherwise: every letter, vowels and pauses, with and without a description."""


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """What came of it."""

    samples: Samples
    """[T, channels]."""
    sample_rate: int
    """In Hz."""
    drawn: tuple[int, ...]
    """Everything that was drawn, an end token included."""
    logits: tuple[Logits, ...]
    """Of each draw; how many, may change from draw to draw."""
    finish_reason: FinishReason
    """`length` where the cap was hit."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


class ObservedSystem(System, Protocol):
    """A system whose draws are kept."""

    @property
    def draws(self) -> Draws:
        """Of the utterance that is being spoken."""

    def exercise(self, utterance: Utterance) -> Samples:
        """Let every graph of the bundle work as in speech; gives the sound [T, channels] where the bundle makes it."""

    def add_unheard(self, samples: Samples, recording: Recording) -> None:
        """Record calls that this utterance did not need and others may, made from what was spoken."""


class ObservedMoeTts(MoeTts):
    """MoE-TTS under observation."""

    def __init__(self, bundle: Bundle, loader: GraphLoader, forced: Sequence[int] | None) -> None:
        super().__init__(bundle, loader)
        self.draws = Draws(forced)

    def _sampler(self, utterance: Utterance) -> Sampler:
        return WatchedSampler(super()._sampler(utterance), self.draws)

    def exercise(self, utterance: Utterance) -> Samples:
        """Speak; see `ObservedSystem.exercise`."""
        return np.concatenate([piece.samples for piece in self.utter(utterance, Stopwatch())])

    def add_unheard(self, samples: Samples, recording: Recording) -> None:
        """Record the encoder hearing the speech, and the speech expert reading its own tokens as a speech prompt."""
        hop = int(np.prod(self._vocoder.strides))
        padded = np.pad(samples, ((0, -len(samples) % hop), (0, 0)))  # to a whole number of latents
        if self._loader.has(ENCODER):
            recording.add(ENCODER, {"audio": np.ascontiguousarray(padded.T[None])})  # [1, channels, T]
        steps = recording.calls(SPEECH)
        if len(steps) > 1:
            recording.add(SPEECH, joined_steps(steps[0], steps[-1], self.draws.drawn))


def joined_steps(first: Feeds, last: Feeds, drawn: Sequence[int]) -> Feeds:
    """One call that reads at once what many steps read one by one.

    Args:
        first: The step that read the first drawn token.
        last: A later step.
        drawn: All drawn tokens.
    """
    name = next(name for name in first if name.startswith(PAST))
    before, count = len(first[name]), len(last[name]) - len(first[name]) + 1
    ids = np.array(drawn[:count], np.int32)[None]  # [1, count]
    past = {name: rows[:before] for name, rows in last.items() if name.startswith(PAST)}
    return {**past, "ids": ids, "logits_at": np.array([count - 1], np.int32)}


OBSERVED: Mapping[str, Callable[[Bundle, GraphLoader, Sequence[int] | None], ObservedSystem]] = {
    MOE_TTS: ObservedMoeTts,
    MOSS_TTS: ObservedMoss,
    CODEC: ObservedCodec,
}


def observe(bundle: Bundle, loader: GraphLoader, forced: Sequence[int] | None = None) -> ObservedSystem:
    """The bundle's system with its draws kept.

    Raises:
        BundleError: The system is unknown, or the bundle lacks a part of it.
    """
    if bundle.manifest.system not in OBSERVED:
        raise BundleError(f"expected a system of {', '.join(OBSERVED)}, found {bundle.manifest.system!r}")
    return OBSERVED[bundle.manifest.system](bundle, loader, forced)


class Speaker:
    """A loaded bundle that says probes one after the other; use it in a `with` block.

    Example:
        >>> with Speaker(bundle) as speaker:  # doctest: +SKIP
        ...     spoken = speaker.speak(Probe())
    """

    def __init__(self, bundle: Bundle, codec: Path | None = None) -> None:
        """Prepare to run on the CPU; graphs are loaded when they are first needed.

        Args:
            bundle: What speaks.
            codec: Bundle of its codec, for a system without one of its own; None for the one beside it.

        Raises:
            BackendUnavailableError: ONNX Runtime is not installed.
        """
        self._bundle = bundle
        self._loader = RecordingLoader(bundle, Recording(limit=0), codec)

    def __enter__(self) -> Speaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()

    def speak(self, probe: Probe, recording: Recording | None = None, forced: Sequence[int] | None = None) -> Spoken:
        """Say one probe.

        Args:
            probe: What is said.
            recording: Filled meanwhile; what was reached before an error stays in it.
            forced: What to take instead of drawing: `Spoken.drawn` of another bundle.

        Raises:
            BundleError: The bundle is damaged, incomplete or of an unknown system.
            MissingResourceError: Its codec was not found.
            InferenceError: A graph failed, or gave values that nothing can be drawn from.
        """
        recording = Recording(limit=0) if recording is None else recording
        self._loader.recording = recording
        system = observe(self._bundle, self._loader, forced)
        config = _config(system.default_config, probe)
        utterance = Utterance(probe.text, config, probe.seed, probe.description)
        pieces = list(system.utter(utterance, Stopwatch()))
        samples = np.concatenate([piece.samples for piece in pieces])
        system.add_unheard(np.nan_to_num(samples), recording)
        draws = system.draws
        reason = pieces[-1].finish_reason or "stop"
        return Spoken(samples, system.sample_rate, tuple(draws.drawn), tuple(draws.logits), reason)


def speak(
    bundle: Bundle, probe: Probe, recording: Recording | None = None, forced: Sequence[int] | None = None
) -> Spoken:
    """Say one probe on the CPU; arguments and errors as for `Speaker`."""
    with Speaker(bundle) as speaker:
        return speaker.speak(probe, recording, forced)


def probes_for(words: Sequence[str]) -> tuple[Probe, ...]:
    """What suits a voice: `PROBES`, or lines of the package's sets that it knows every word of.

    Args:
        words: All that the voice can say, in lower case; empty for any.
    """
    if not words:
        return PROBES
    known = set(words)
    probes = [probe for name in set_names() for probe in probes_of(name) if known.issuperset(words_of(probe.text))]
    return tuple(probes[: len(PROBES)]) or (Probe(" ".join(words[:: max(1, len(words) // 8)])),)


def probes_of(name: str) -> tuple[Probe, ...]:
    """The lines of a calibration set as probes; a line without a seed takes its number, from 0.

    Args:
        name: Of a set that comes with the package, or a path that ends in `.jsonl`.

    Raises:
        InputError: The name is unknown or the file cannot be used.
        MissingResourceError: There is no such file.
    """
    lines = enumerate(load_set(name).lines)
    return tuple(Probe(line.text, line.description, place if line.seed is None else line.seed) for place, line in lines)


def _config(given: SynthesisConfig, probe: Probe) -> SynthesisConfig:
    sampling = dataclasses.replace(given.sampling, min_tokens=probe.min_tokens, max_tokens=probe.max_tokens)
    return dataclasses.replace(given, sampling=sampling, steps=min(given.steps, probe.steps))

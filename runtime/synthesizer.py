"""Text to speech in one call: open a bundle, speak, listen while it speaks.

In: a bundle's folder (or nothing, for the built-in voice) and texts. Out: `Audio`, or `AudioChunk`s as they are made.
Offline synthesis consumes the stream: there is one path. Does not print, play or pick a device behind the user's back.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, ConfigError, InferenceError, InputError, VoxedgeError
from voxedge.engines.loader import BackendName, GraphLoader, LoadOptions, MemoryPlan
from voxedge.runtime.audio import Audio, AudioChunk, FinishReason, Timing, check_audio
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import SYSTEM as CODEC
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.directions import NO_DIRECTIONS, Directions, Frames
from voxedge.runtime.noise import fresh_seed
from voxedge.runtime.options import follows, require_followed
from voxedge.runtime.prompt import Turn
from voxedge.runtime.requests import Request, options_of, utterances_of
from voxedge.runtime.systems.base import Piece, Samples, Stopwatch, System, Utterance
from voxedge.runtime.systems.moe_tts import MoeTts
from voxedge.runtime.systems.moe_tts_settings import SYSTEM as MOE_TTS
from voxedge.runtime.systems.moss import Moss
from voxedge.runtime.systems.moss_lockstep import Lockstep
from voxedge.runtime.systems.moss_settings import SYSTEM as MOSS_TTS

__all__ = ["Request", "SynthesisConfig", "Synthesizer", "built_in_voice"]

logger = logging.getLogger(__name__)

SYSTEMS: dict[str, Callable[[Bundle, GraphLoader], System]] = {MOE_TTS: MoeTts, MOSS_TTS: Moss}


@dataclass(slots=True)
class _Progress:
    """What a stream knows when it ends."""

    started: float
    watch: Stopwatch = field(default_factory=Stopwatch)
    tokens: list[int] | None = None
    """None for a stream, which nobody asks for them: an hour of codes would take 50 MB."""
    first_audio_s: float = 0.0


class Synthesizer:
    """A loaded voice.

    Example:
        >>> with Synthesizer.from_pretrained() as voice:
        ...     samples, rate = voice.synthesize("Hello.", seed=1)
        >>> rate
        16000
    """

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        """Use `from_pretrained`."""
        system = bundle.manifest.system
        if system == CODEC:
            raise BundleError(
                f"{bundle.root}: expected a voice, found an audio codec; make sound of codes with "
                f"`voxedge codec decode {bundle.root} CODES SOUND`, or give it to a model that speaks: "
                f"`voxedge say BUNDLE TEXT --codec {bundle.root}`"
            )
        if system not in SYSTEMS:
            raise BundleError(
                f"expected a system of {', '.join(SYSTEMS)}, found {system!r}; "
                "a newer voxedge may know it: pip install -U voxedge"
            )
        require_followed(system, () if options.codec is None else ("codec",))
        self.bundle = bundle
        self._loader = GraphLoader(bundle, options)
        self._system = SYSTEMS[system](bundle, self._loader)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        backend: BackendName = "auto",
        memory: MemoryPlan = "auto",
        threads: int | None = None,
        session_cache: bool = True,
        codec: str | Path | None = None,
    ) -> Synthesizer:
        """Open a bundle; its graphs are loaded when they are first needed (see `warmup`).

        Args:
            path: The bundle's folder; None for the built-in voice.
            backend: What runs the graphs. Only `auto` may fall back to the CPU.
            memory: `staged` holds one stage's graphs at a time; `auto` does so when memory is short.
            threads: CPU threads; None for the physical cores.
            session_cache: Keep large quantised graphs packed for this processor in the user's cache folder: made at
                the first load, mapped instead of held in memory from then on.
            codec: Bundle of the codec, for a system without one of its own; None for the one beside it.

        Raises:
            MissingResourceError: There is no such bundle.
            BundleError: The bundle is damaged.
            BackendUnavailableError: The backend is not there.
            EngineMismatchError: TensorRT was asked for, and the bundle has no engines that fit this machine.
        """
        bundle = Bundle.open(built_in_voice() if path is None else path)
        chosen = None if codec is None else Path(codec)
        return cls(bundle, LoadOptions(backend, memory, threads, session_cache, chosen))

    def __enter__(self) -> Synthesizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sample_rate(self) -> int:
        """Of all audio, in Hz."""
        return self._system.sample_rate

    @property
    def channels(self) -> int:
        """Of all audio."""
        return self._system.channels

    @property
    def backend(self) -> str:
        """What really runs the graphs: `cpu`, `cuda`, `tensorrt` or `tensorrt_rtx`."""
        return self._loader.backend

    @property
    def codec(self) -> Codec:
        """What makes codes of recordings and sound of codes.

        Raises:
            InputError: The system speaks without codes.
            MissingResourceError: The codec's bundle was not found.
        """
        return self._coded().codec

    @property
    def default_config(self) -> SynthesisConfig:
        """The bundle's own options; change some with `dataclasses.replace`."""
        return self._system.default_config

    def warmup(self) -> None:
        """Load all graphs and speak once, so that the next call is as fast as all later ones."""
        short = dataclasses.replace(self.default_config.sampling, min_tokens=1, max_tokens=8)
        config = dataclasses.replace(self.default_config, sampling=short)
        if follows(self.bundle.manifest.system, "steps"):
            config = dataclasses.replace(config, steps=2)
        self.synthesize("Warm up.", seed=0, config=config)

    def close(self) -> None:
        """Give back the memory; the voice cannot be used afterwards."""
        self._loader.close()

    def synthesize(
        self,
        text: str,
        *,
        description: str = "",
        seed: int | None = None,
        config: SynthesisConfig | None = None,
        speech_prompt: Sequence[int] = (),
        earlier: Sequence[Turn] = (),
        directions: Directions = NO_DIRECTIONS,
    ) -> Audio:
        """Speak a text.

        Args:
            text: Any length; long text is split by sentence.
            description: Of the voice, such as "A calm, deep voice."; empty for none.
            seed: The same seed says the same again; None draws a fresh one.
            config: Options; None for the bundle's own.
            speech_prompt: Speech tokens to go on from.
            earlier: The conversation before.
            directions: Language, length, voice and more, where the system follows such.

        Raises:
            InputError: The text or an option cannot be used.
            InferenceError: A graph failed, or what it gave is no audio.
        """
        request = Request(text, description, seed, config, tuple(speech_prompt), tuple(earlier), directions)
        return self._whole(request, fresh_seed() if seed is None else seed)

    def stream(
        self,
        text: str,
        *,
        description: str = "",
        seed: int | None = None,
        config: SynthesisConfig | None = None,
        speech_prompt: Sequence[int] = (),
        earlier: Sequence[Turn] = (),
        directions: Directions = NO_DIRECTIONS,
    ) -> Iterator[AudioChunk]:
        """Speak a text, giving audio while it is being made; closing the iterator ends the work.

        Args and errors as for `synthesize`. With the same `config.window_s` the samples are the same, too.
        """
        config = config or self.default_config
        if config.window_s is None:
            config = dataclasses.replace(config, window_s=self._system.stream_window_s)
        request = Request(text, description, seed, config, tuple(speech_prompt), tuple(earlier), directions)
        return self._chunks(request, fresh_seed() if seed is None else seed, _Progress(time.perf_counter()))

    def codes(
        self,
        text: str,
        *,
        description: str = "",
        seed: int | None = None,
        config: SynthesisConfig | None = None,
        directions: Directions = NO_DIRECTIONS,
    ) -> Frames:
        """Speak a text in the codes of a codec alone, [T, codebooks]; the codec itself need not be there.

        Args and errors as for `synthesize`.

        Raises:
            InputError: Besides, the system speaks without codes.
        """
        system = self._coded()
        request = Request(text, description, seed, config, directions=directions)
        pieces = self._utterances(request, fresh_seed() if seed is None else seed)
        return np.concatenate([system.codes(utterance) for utterance in pieces])

    def _coded(self) -> Moss:
        if not isinstance(self._system, Moss):
            raise InputError(
                f"expected a system that speaks in codes, found {self.bundle.manifest.system}; it takes no recordings"
            )
        return self._system

    def synthesize_batch(self, requests: Iterable[Request], *, together: int = 1) -> Iterator[Audio | VoxedgeError]:
        """Speak all requests; a failure is a value at its place and does not end the batch.

        Args:
            requests: In the order of the results.
            together: How many are spoken in step, where the system can: MOSS-TTS reads its weights once for all of
                them. Each draws by its own seed what it would draw alone, up to ties that rounding decides.

        Raises:
            InputError: The system speaks one text after the other.
            ConfigError: `together` is below 1, or the bundle's graphs take one sequence at a time.
        """
        if together < 1:
            raise ConfigError(f"expected 1 or more texts together, found {together}")
        if together == 1:
            yield from map(self._tried, requests)
            return
        waiting = iter(requests)
        while group := list(itertools.islice(waiting, together)):
            lockstep, lanes = self._coded().lanes(len(group))
            with ThreadPoolExecutor(len(group)) as pool:
                yield from list(pool.map(self._in_step, lanes, group, itertools.repeat(lockstep)))

    def _in_step(self, lane: System, request: Request, lockstep: Lockstep) -> Audio | VoxedgeError:
        """Speak in one of several threads."""
        own = copy.copy(self)
        own._system = lane
        try:
            return own._tried(request)
        finally:
            lockstep.leave()

    def _tried(self, request: Request) -> Audio | VoxedgeError:
        try:
            return self._whole(request, fresh_seed() if request.seed is None else request.seed)
        except VoxedgeError as error:
            return error

    def _whole(self, request: Request, seed: int) -> Audio:
        tokens: list[int] = []
        progress = _Progress(time.perf_counter(), tokens=tokens)
        chunks = list(self._chunks(request, seed, progress))
        samples = np.concatenate([chunk.samples for chunk in chunks])
        wall_s = time.perf_counter() - progress.started
        timing = Timing(
            wall_s=wall_s,
            audio_s=len(samples) / self.sample_rate,
            first_audio_s=progress.first_audio_s,
            tokens=len(tokens),
            stages_s=progress.watch.stages_s,
        )
        reason = chunks[-1].finish_reason or "stop"
        return Audio(samples, self.sample_rate, seed, reason, timing, tuple(tokens))

    def _chunks(self, request: Request, seed: int, progress: _Progress) -> Iterator[AudioChunk]:
        """Chunks of all pieces of a text; every one is checked before it is given."""
        utterances = self._utterances(request, seed)
        reason: FinishReason = "stop"
        index, heard = 0, False
        for number, utterance in enumerate(utterances):
            more = number + 1 < len(utterances)
            for piece in self._system.utter(utterance, progress.watch):
                samples = self._with_pause(piece, utterance.config, more and not request.directions.is_timed)
                heard = not check_audio(samples).silent or heard
                if piece.finish_reason == "length":
                    reason = "length"
                if progress.tokens is not None:
                    progress.tokens += piece.tokens
                progress.first_audio_s = progress.first_audio_s or time.perf_counter() - progress.started
                last = piece.finish_reason is not None and not more
                if last and not heard:
                    raise InferenceError(
                        "expected speech, found silence; try another --seed, and run `voxedge verify` on the bundle"
                    )
                yield AudioChunk(samples, self.sample_rate, index, last, reason if last else None)
                index += 1

    def _utterances(self, request: Request, seed: int) -> list[Utterance]:
        """The pieces of a text, if the system follows everything that is asked."""
        require_followed(self.bundle.manifest.system, options_of(request, self.default_config))
        return utterances_of(request, seed, self._system)

    def _with_pause(self, piece: Piece, config: SynthesisConfig, more: bool) -> Samples:
        if piece.finish_reason is None or not more:
            return piece.samples
        pause = np.zeros((round(config.sentence_pause_s * self.sample_rate), self.channels), np.float32)
        return np.concatenate([piece.samples, pause])


def built_in_voice() -> Path:
    """Folder of the voice that comes with the package."""
    # Resolved: a strict editable install is a tree of links, and a bundle may hold none.
    return Path(__file__).resolve().parent / "data" / "voice"

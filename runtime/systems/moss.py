"""Speak with MOSS-TTS: prompt, rows, frames, and the codec, each as soon as it can.

In: utterances. Out: pieces of sound. Streaming and offline are this one path: rows are drawn one by one, frames are
taken out of them as they become whole, and the codec makes sound of them a few at a time. The codec is a bundle of its
own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, ConfigError, InputError
from voxedge.engines.loader import GraphLoader
from voxedge.engines.records import from_bundle
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import DECODER
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.directions import Directions
from voxedge.runtime.languages import language_name
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.sampling import SamplingConfig
from voxedge.runtime.systems.base import Piece, Samples, Stopwatch, Utterance, timed
from voxedge.runtime.systems.moss_codec_bundle import open_codec
from voxedge.runtime.systems.moss_frames import FrameCollector
from voxedge.runtime.systems.moss_grid import Frames, Grid
from voxedge.runtime.systems.moss_lockstep import Lockstep
from voxedge.runtime.systems.moss_model import GRAPHS, MossModel
from voxedge.runtime.systems.moss_prompt import MossPrompt, PromptBuilder
from voxedge.runtime.systems.moss_rows import RowRules, Rows
from voxedge.runtime.systems.moss_settings import MossSettings
from voxedge.runtime.systems.moss_text import normalise_text
from voxedge.runtime.tokenizer import ChatTokenizer

LARGEST_CHUNK = 8
"""Most frames that the codec makes sound of at once; the first chunks are 1, 2 and 4, so that sound starts soon."""
FRAMES_PER_TOKEN = 4
"""Speech that a token of text may need: 3.1 frames for a Chinese character, 0.87 for an English letter, by the authors'
estimates, and a token has about four letters."""
REFERENCE_S = 10.0
"""Of the first piece of a long text, how much the later ones are given as their voice."""


class Moss:
    """One loaded bundle with the codec beside it."""

    def __init__(self, bundle: Bundle, loader: GraphLoader) -> None:
        """Read the settings; graphs are loaded when they are first needed.

        Raises:
            BundleError: The bundle lacks a graph or a setting that speaking needs.
        """
        self.settings = from_bundle(MossSettings, bundle.manifest.settings, "voxedge.json: settings")
        missing = [name for name in GRAPHS[self.settings.kind] if not loader.has(name)]
        if missing:
            raise BundleError(
                f"expected a whole MOSS-TTS, this bundle lacks {', '.join(missing)}; export it without --components"
            )
        loader.require(*GRAPHS[self.settings.kind])
        self._bundle, self._loader = bundle, loader
        self._tokenizer = ChatTokenizer.from_file(bundle.path("tokenizer/tokenizer.json"), ())
        self._builder = PromptBuilder(self.settings, self._tokenizer)
        self._model: MossModel | None = None
        self._codec: Codec | None = None
        self._codec_loader: GraphLoader | None = None
        self._first_piece: Frames | None = None

    # what a synthesizer asks

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        """Of the audio."""
        return self.codec.channels

    @property
    def stream_window_s(self) -> float | None:
        """None: the codec only looks back, so a stream is cut nowhere."""
        return None

    @property
    def default_config(self) -> SynthesisConfig:
        """The bundle's own options."""
        return SynthesisConfig(sampling=self.settings.audio, text_sampling=self.settings.text)

    def budget(self, utterance: Utterance) -> tuple[int, Callable[[str], int]]:
        """What the context leaves beside the rest of the prompt and the longest speech; see `System.budget`."""
        prompt = len(self.prompt(replace(utterance, text=".")))
        speech = self._longest(utterance) + self._flanks
        room = self.settings.max_context - prompt - speech
        if room < 1:
            raise InputError(
                f"expected room for text in {self.settings.max_context} rows, found {prompt} of prompt and up to "
                f"{speech} of speech; lower --max-tokens or the duration, shorten the reference, or export again with "
                "a larger --max-context"
            )
        fitting = speech if self._exact(utterance) is not None else self._longest(utterance) // FRAMES_PER_TOKEN
        return min(room, max(1, min(self.settings.max_context // 8, fitting))), self._tokenizer.count

    def utter(self, utterance: Utterance, watch: Stopwatch) -> Iterator[Piece]:
        """Speak one utterance; see `System.utter`."""
        collector = self._collector(utterance)
        frames = timed(self.frames(utterance, collector), "language model", watch)
        if self._loader.staged:
            frames = iter(list(frames))
            self._model = None  # drops the bindings, so that the engines can go
            self._loader.release(*GRAPHS[self.settings.kind])
        yield from timed(self._pieces(utterance, frames, collector), "codec", watch, "language model")

    @property
    def codec(self) -> Codec:
        """The codec that speaks for the model; see `moss_codec_bundle.open_codec`."""
        if self._codec is None:
            self._codec, self._codec_loader = open_codec(self._bundle, self._loader, self.settings)
        return self._codec

    def lanes(self, count: int) -> tuple[Lockstep, list[Moss]]:
        """As many systems as there are texts to speak in step, each for a thread of its own.

        Raises:
            ConfigError: The graphs or the memory plan do not allow it.
        """
        if self._loader.staged:
            raise ConfigError("expected --memory resident to speak texts in step, found staged: all graphs take turns")
        lockstep = Lockstep(self.settings, self._loader.load, count)
        self.codec.engine(DECODER)  # opened once, not by every thread
        lanes = [copy.copy(self) for _ in range(count)]
        for lane, model in zip(lanes, lockstep.models, strict=True):
            lane._model, lane._first_piece = model, None
        return lockstep, lanes

    # prompts and rows

    def prompt(self, utterance: Utterance) -> Grid:
        """Rows in front of the speech that will be drawn.

        Raises:
            InputError: An option cannot be used with this model.
        """
        return self._builder.grid(self._prompt(utterance))

    def _prompt(self, utterance: Utterance) -> MossPrompt:
        directions = utterance.directions
        text = f"{directions.prefix_text} {utterance.text}".strip() if directions.prefix is not None else utterance.text
        return MossPrompt(
            text=normalise_text(text) if self.settings.kind == "delay" else text,
            references=self._references(utterance),
            prefix=directions.prefix if utterance.index == 0 else None,
            instruction=utterance.description or None,
            tokens=self._exact(utterance),
            quality=directions.quality,
            sound_event=directions.sound_event,
            ambient_sound=directions.ambient_sound,
            language=None if directions.language is None else language_name(directions.language),
        )

    def _references(self, utterance: Utterance) -> tuple[Frames | None, ...] | None:
        """The voices that were given; without any, later pieces of a text sound like the first."""
        if utterance.directions.references:
            return utterance.directions.references
        if utterance.index and self._first_piece is not None and len(self._first_piece):
            return (self._first_piece,)
        return None

    def _exact(self, utterance: Utterance) -> int | None:
        """Frames that this piece of the text must have; pieces share a duration by their length."""
        directions, share = utterance.directions, utterance.share
        total = directions.frames
        if directions.duration_s is not None:
            total = round(directions.duration_s * self.frame_rate)
        if total is None:
            return None
        frames = round(share[1] * total) - round(share[0] * total)
        if frames < 1:
            raise InputError(
                f"expected a duration of at least one frame ({1.0 / self.frame_rate:g} s) for each piece of the text, "
                f"found {total} frames for all; ask for more, or for less text"
            )
        return frames

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.codec.frame_rate

    @property
    def _flanks(self) -> int:
        """Rows of an utterance that are no new frames: start and end, and the delay model's staircase."""
        return self.settings.channels + 4

    def _longest(self, utterance: Utterance) -> int:
        exact = self._exact(utterance)
        return utterance.config.sampling.max_tokens if exact is None else exact

    def rules(self, utterance: Utterance) -> RowRules:
        """How rows are drawn under a request's options.

        Raises:
            InputError: The model cannot do with so many or so few codebooks.
        """
        audio, exact = utterance.config.sampling, self._exact(utterance)
        if audio.ras_window:
            raise ConfigError("expected no repetition-aware sampling: MOSS-TTS has a repetition penalty")
        return RowRules(
            text=self._text_sampling(utterance.config),
            audio=audio,
            min_frames=audio.min_tokens if exact is None else exact,
            max_frames=self._longest(utterance),
            max_rows=self._longest(utterance) + self._flanks,
            channels=self._codebooks(utterance.directions),
        )

    def _text_sampling(self, config: SynthesisConfig) -> SamplingConfig:
        """Greedy codes go with greedy text, or the same request would not always say the same."""
        text = config.text_sampling or self.settings.text
        return replace(text, temperature=0.0) if config.sampling.greedy else text

    def _codebooks(self, directions: Directions) -> int | None:
        wanted, channels = directions.codebooks, self.settings.channels
        if wanted is None or wanted == channels:
            return None
        if wanted > channels:
            raise InputError(f"expected at most {channels} codebooks, found {wanted}; this model has no more")
        if self.settings.kind != "local":
            raise InputError(f"expected all {channels} codebooks, found {wanted}; only local v1 can do with fewer")
        return wanted

    def _collector(self, utterance: Utterance) -> FrameCollector:
        return FrameCollector(self.settings, self._codebooks(utterance.directions))

    def codes(self, utterance: Utterance) -> Frames:
        """Speak one utterance in codes alone, [T, n]; needs no codec unless a duration is in seconds."""
        collector = self._collector(utterance)
        for _ in self.frames(utterance, collector):
            pass
        return collector.spoken()

    def frames(self, utterance: Utterance, collector: FrameCollector) -> Iterator[Frames]:
        """Draw frames [1, n], each as soon as it is whole; those of the prefix come first, for the codec to hear."""
        grid, rules = self.prompt(utterance), self.rules(utterance)
        positions = len(grid) + rules.max_rows
        if self._model is None:
            self._model = MossModel(self.settings, self._loader.load)
        self._model.start(min(positions, self.settings.max_context), rules.channels)
        rows = self._rows(self._model, rules, NoiseStream(utterance.seed, f"tokens/{utterance.index}"))
        prefix = utterance.directions.prefix if utterance.index == 0 else None
        if prefix is not None:
            yield from collector.start(grid, len(prefix))
        for row in rows.after(grid):
            yield from collector.push(row)
        collector.finish_reason = rows.finish_reason if self._exact(utterance) is None else "stop"
        if utterance.index == 0:
            self._first_piece = collector.spoken()[: round(REFERENCE_S * self.settings.frame_rate)]

    def _rows(self, model: MossModel, rules: RowRules, stream: NoiseStream) -> Rows:
        return Rows(model, rules, stream)

    def _pieces(self, utterance: Utterance, frames: Iterator[Frames], collector: FrameCollector) -> Iterator[Piece]:
        """Sound of chunks that grow from one frame to `LARGEST_CHUNK`, without that of the prefix."""
        with self.codec.stream() as stream:
            pending: list[Frames] = []
            size = 1
            for number, frame in enumerate(frames):
                if number < collector.prefix_frames:
                    stream.feed(frame.T)  # heard by the codec alone
                    continue
                pending.append(frame)
                if len(pending) >= size:
                    yield Piece(stream.feed(np.concatenate(pending).T))
                    pending, size = [], min(2 * size, LARGEST_CHUNK)
            rest = stream.feed(np.concatenate(pending).T) if pending else self._silence()
        spoken = collector.spoken()
        if not len(spoken):
            raise InputError("the model ended its speech at once; try another --seed, a longer text or --min-tokens 10")
        if self._codec_loader is not None and self._loader.staged:
            self._codec_loader.close()
        yield Piece(rest, tuple(spoken.reshape(-1).tolist()), collector.finish_reason or "stop")

    def _silence(self) -> Samples:
        return np.zeros((0, self.channels), np.float32)

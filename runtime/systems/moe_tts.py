"""Speak with MoE-TTS: prompt, routed language model, diffusion decoder, vocoder, each as soon as it can.

In: utterances. Out: pieces of sound. Streaming and offline are this one path: tokens are drawn one by one, windows of
them become latents, and latents become samples as far as the vocoder's reach allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InputError
from voxedge.engines.loader import GraphLoader
from voxedge.engines.records import from_bundle
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.diffusion import DiffusionConfig, DiffusionDecoder
from voxedge.runtime.latents import ChunkedDecoder
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.preconditioning import Preconditioning
from voxedge.runtime.prompt import Turn, fill_template, render_prompt
from voxedge.runtime.routing import SPEECH, TEXT, RoutedDecoder
from voxedge.runtime.sampling import Sampler
from voxedge.runtime.schedules import NoiseSchedule
from voxedge.runtime.solvers import SolverConfig
from voxedge.runtime.systems.base import Piece, Stopwatch, Utterance, timed
from voxedge.runtime.systems.moe_tts_settings import DiffusionSettings, MoeTtsSettings, VocoderSettings
from voxedge.runtime.text import split_sentences
from voxedge.runtime.tokenizer import ChatTokenizer, Run
from voxedge.runtime.windows import Window, WindowCutter, WindowPlan

Array = npt.NDArray[np.float32]

CONDITIONER, DENOISER, VOCODER = "speech_conditioner", "dit", "vae_decoder"
_BEFORE_VOCODER = ("language model", "diffusion decoder")


class MoeTts:
    """One loaded bundle."""

    def __init__(self, bundle: Bundle, loader: GraphLoader) -> None:
        """Read the settings; graphs are loaded when they are first needed.

        Raises:
            BundleError: The bundle lacks a graph or a setting that speaking needs.
        """
        self.settings = from_bundle(MoeTtsSettings, bundle.manifest.settings, "voxedge.json: settings")
        missing = [name for name in (TEXT, SPEECH, CONDITIONER, DENOISER, VOCODER) if not loader.has(name)]
        if missing or self.settings.diffusion is None or self.settings.vocoder is None:
            raise BundleError(
                f"expected a whole MoE-TTS, this bundle lacks {', '.join(missing) or 'settings'}; export a checkpoint "
                "that has a `dit` and a `vae`, without --components"
            )
        loader.require(TEXT, SPEECH, CONDITIONER, DENOISER, VOCODER)
        self._diffusion: DiffusionSettings = self.settings.diffusion
        self._vocoder: VocoderSettings = self.settings.vocoder
        self._loader = loader
        self._tokenizer = ChatTokenizer.from_file(bundle.path("tokenizer/tokenizer.json"))
        self._model = RoutedDecoder(loader.load)
        hop = int(np.prod(self._vocoder.strides))
        self._latents_per_token = Fraction(self._vocoder.sample_rate, hop) / Fraction(self.settings.speech.frame_rate)

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self._vocoder.sample_rate

    @property
    def channels(self) -> int:
        """Of the audio."""
        return self._vocoder.channels

    @property
    def stream_window_s(self) -> float | None:
        """The bundle's streaming window."""
        return self.settings.windows.stream_s

    @property
    def default_config(self) -> SynthesisConfig:
        """The bundle's own options."""
        return SynthesisConfig(
            sampling=self.settings.sampling,
            steps=self._diffusion.steps,
            cfg_scale=self._diffusion.cfg_scale,
            solver=self._diffusion.solver,
        )

    def budget(self, utterance: Utterance) -> tuple[int, Callable[[str], int]]:
        """What the context leaves beside the rest of the prompt and the longest speech; see `System.budget`.

        At most what the model was trained on, else a quarter of the context, because speech takes several tokens for
        each of the text's.
        """
        prompt = sum(len(run.ids) for run in self.prompt(replace(utterance, text=".")))
        context, speech = self.settings.max_context, utterance.config.sampling.max_tokens
        room = context - prompt - speech
        if room < 1:
            raise InputError(
                f"expected room for text in {context} tokens, found {prompt} of prompt and up to {speech} of speech; "
                "lower --max-tokens, shorten the description, or export again with a larger --max-context"
            )
        most = self.settings.prompt.max_text_tokens or max(1, context // 4)
        count, limit = self._tokenizer.count, min(room, most)
        if not self.settings.prompt.single_sentences:
            return limit, count
        return limit, lambda piece: count(piece) if len(split_sentences(piece)) < 2 else limit + 1

    def prompt(self, utterance: Utterance) -> list[Run]:
        """Runs of token ids in front of the speech that will be drawn.

        Raises:
            InputError: The text or the speech prompt cannot be used.
        """
        template = self.settings.prompt.user_template
        user = fill_template(template, description=utterance.description, text=utterance.text)
        turns = [*utterance.earlier, Turn("user", user if utterance.description else user.strip("\n"))]
        runs = self._tokenizer.runs(render_prompt(self.settings.prompt.system or None, turns))
        if utterance.speech_prompt:
            runs.append(Run(is_speech=True, ids=utterance.speech_prompt))
        limit = self.settings.speech.num_tokens
        wrong = [token for run in runs if run.is_speech for token in run.ids if not 0 <= token < limit]
        if wrong:
            raise InputError(f"expected speech tokens of 0 .. {limit - 1}, found {wrong[:5]}")
        return runs

    def utter(self, utterance: Utterance, watch: Stopwatch) -> Iterator[Piece]:
        """Speak one utterance; see `System.utter`."""
        sampler = self._sampler(utterance)
        drawn = timed(self.tokens(utterance, sampler), "language model", watch)
        if self._loader.staged:
            drawn = iter(list(drawn))
            self._model = RoutedDecoder(self._loader.load)  # drops the bindings, so that the engines can go
            self._loader.release(TEXT, SPEECH)
        tokens = list(utterance.speech_prompt)
        latents = timed(self._latents(utterance, tokens, drawn), "diffusion decoder", watch, "language model")
        for samples, final in timed(self._audio(utterance, latents), "vocoder", watch, *_BEFORE_VOCODER):
            if final:
                self._loader.release(CONDITIONER, DENOISER, VOCODER)
            reason = sampler.finish_reason if final else None
            yield Piece(samples, tuple(tokens[len(utterance.speech_prompt) :]) if final else (), reason)

    def tokens(self, utterance: Utterance, sampler: Sampler) -> Iterator[int]:
        """Draw speech tokens until the end token or the cap."""
        runs = self.prompt(utterance)
        length = sum(len(run.ids) for run in runs)
        cache = self._model.start(length + sampler.config.max_tokens)
        sampler.observe(utterance.speech_prompt)
        logits = self._model.prefill(runs, cache)
        if self._loader.staged:
            self._model.drop(TEXT)
            self._loader.release(TEXT)
        while True:
            token = sampler.next(logits)
            if token in sampler.eos_ids:
                return
            yield token
            if sampler.finished:
                return
            logits = self._model.step(token, cache)

    def _sampler(self, utterance: Utterance) -> Sampler:
        speech = self.settings.speech
        stream = NoiseStream(utterance.seed, f"tokens/{utterance.index}")
        return Sampler(utterance.config.sampling, speech.eos_column, slice(0, speech.num_tokens), stream)

    def _latents(self, utterance: Utterance, tokens: list[int], drawn: Iterator[int]) -> Iterator[tuple[Array, bool]]:
        """Latents [C, T] of one window after the other, and whether it is the last; `tokens` grows meanwhile."""
        cutter = WindowCutter(self._window_plan(utterance.config))
        for token in drawn:
            tokens.append(token)
            for window in cutter.push(len(tokens), final=False):
                yield self._decode(utterance, tokens, window), False
        last = list(cutter.push(len(tokens), final=True))
        if not last:
            raise InputError("the model ended its speech at once; try another --seed, a longer text or --min-tokens 10")
        for number, window in enumerate(last, 1):
            yield self._decode(utterance, tokens, window), number == len(last)

    def _window_plan(self, config: SynthesisConfig) -> WindowPlan:
        rate, windows = self.settings.speech.frame_rate, self.settings.windows
        decoder = DiffusionDecoder(self._loader.load(CONDITIONER), self._loader.load(DENOISER))
        limit = int(decoder.max_frames / self._latents_per_token)
        length = None if config.window_s is None else max(1, round(config.window_s * rate))
        return WindowPlan.within(limit, length, round(windows.context_s * rate), round(windows.lookahead_s * rate))

    def _decode(self, utterance: Utterance, tokens: list[int], window: Window) -> Array:
        """Latents [C, T] that a window is for."""
        decoder = DiffusionDecoder(self._loader.load(CONDITIONER), self._loader.load(DENOISER))
        start, first, last, stop = (
            int(token * self._latents_per_token) for token in (window.start, window.first, window.last, window.stop)
        )
        noise = NoiseStream(utterance.seed, f"latents/{utterance.index}")

        def step_noise(step: int) -> Array:
            fresh = NoiseStream(utterance.seed, f"latents/{utterance.index}/step/{step}")
            return fresh.normal_frames(start, stop, decoder.channels)

        seen = np.array(tokens[window.start : window.stop], np.int32)
        config = self.diffusion_config(utterance.config)
        latents = decoder.decode(seen, noise.normal_frames(start, stop, decoder.channels), config, step_noise)
        return latents[:, first - start : last - start]  # [C, T]

    def diffusion_config(self, config: SynthesisConfig) -> DiffusionConfig:
        """How the decoder runs under a request's options."""
        trained = self._diffusion
        return DiffusionConfig(
            preconditioning=Preconditioning(trained.objective, trained.sigma_data),
            schedule=NoiseSchedule(trained.schedule, config.steps, trained.sigma_min, trained.sigma_max, trained.rho),
            solver=SolverConfig(config.solver),
            cfg_scale=config.cfg_scale,
            route=trained.route,
        )

    def _audio(self, utterance: Utterance, latents: Iterator[tuple[Array, bool]]) -> Iterator[tuple[Array, bool]]:
        """Samples [n, channels] as latents come, without those of the speech prompt, and whether they are the last."""
        decoder = ChunkedDecoder(
            self.decode_latents, self._vocoder.strides, self.settings.windows.chunk_latents, self.channels
        )
        skip = int(len(utterance.speech_prompt) * self._latents_per_token) * decoder.hop
        for window, final in latents:
            samples = decoder.push(window, final).T  # [n, channels]
            dropped = min(skip, len(samples))
            skip -= dropped
            if final or dropped < len(samples):
                yield np.ascontiguousarray(samples[dropped:]), final

    def decode_latents(self, latents: Array) -> Array:
        """Vocoder: latents [C, T] to samples [channels, n]."""
        scaled = np.ascontiguousarray(latents[None] * np.float32(self._vocoder.scale))  # [1, C, T]
        audio: Array = self._loader.load(VOCODER).run({"latents": scaled})["audio"][0]
        return audio

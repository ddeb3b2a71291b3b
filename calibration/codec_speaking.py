"""An audio codec under observation: it hears the built-in voice say the probe's text, and says it again.

In: a bundle that is a codec alone, and utterances. Out: what its graphs are given when real speech goes through them,
in pieces as of a stream and at once. White noise and random codes, which need no voice, have other ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from voxedge.calibration.draws import Draws
from voxedge.calibration.recording import Recording
from voxedge.engines.bundle import Bundle
from voxedge.engines.loader import GraphLoader
from voxedge.runtime.audio_files import resample
from voxedge.runtime.codec import Codec, Codes
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.synthesizer import Synthesizer
from voxedge.runtime.systems.base import Piece, Samples, Stopwatch, Utterance

MAX_CHARACTERS = 10_000
PIECES = (1, 4, 8)
"""Frames that a stream decodes at a time, in turn; the rest at once."""


class ObservedCodec:
    """A codec in the place of a system; see `speaking.ObservedSystem`."""

    def __init__(self, bundle: Bundle, loader: GraphLoader, forced: Sequence[int] | None) -> None:
        self._codec = Codec.of(bundle, loader)
        self._voice = Synthesizer.from_pretrained(backend="cpu")
        self.draws = Draws(forced)

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self._codec.sample_rate

    @property
    def channels(self) -> int:
        """Of the audio."""
        return self._codec.channels

    @property
    def default_config(self) -> SynthesisConfig:
        """That of the built-in voice."""
        return self._voice.default_config

    @property
    def stream_window_s(self) -> float | None:
        """The largest piece of a stream."""
        return PIECES[-1] / self._codec.frame_rate

    def budget(self, utterance: Utterance) -> tuple[int, Callable[[str], int]]:
        """Characters of one utterance; the voice splits longer texts by itself."""
        return MAX_CHARACTERS, len

    def utter(self, utterance: Utterance, watch: Stopwatch) -> Iterator[Piece]:
        """Let the voice speak, encode that, or take the codes that were prescribed, and decode them."""
        audio = self._voice.synthesize(utterance.text, seed=utterance.seed, config=utterance.config)
        mono = resample(audio.samples.mean(axis=1), audio.sample_rate, self._codec.sample_rate)  # [T]
        codes = self._codec.encode(np.repeat(mono[:, None], self._codec.channels, 1))
        # The choice of each code as a row of 0 and 1: what is compared with another bundle is how many agree.
        chosen = np.eye(self._codec.settings.codebook_size, dtype=np.float32)
        self.draws.logits += list(chosen[codes.T.reshape(-1)])
        if self.draws.forced is not None:
            codes = np.asarray(self.draws.forced, np.int32).reshape(-1, self._codec.codebooks).T
        self.draws.drawn += codes.T.reshape(-1).tolist()
        yield Piece(self._decoded(codes), tuple(self.draws.drawn), "stop")

    def _decoded(self, codes: Codes) -> Samples:
        frames = codes.shape[1]
        edges = np.minimum(np.cumsum([0, *PIECES, frames]), frames)
        with self._codec.stream() as stream:
            parts = [stream.feed(codes[:, start:stop]) for start, stop in itertools.pairwise(edges)]
        samples: Samples = np.concatenate(parts)
        return samples

    def exercise(self, utterance: Utterance) -> Samples:
        """Hear and say it; see `speaking.ObservedSystem.exercise`."""
        return np.concatenate([piece.samples for piece in self.utter(utterance, Stopwatch())])

    def add_unheard(self, samples: Samples, recording: Recording) -> None:
        """Nothing: both graphs were called."""

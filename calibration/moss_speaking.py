"""MOSS-TTS under observation: every token and code kept, or taken from another bundle.

In: a bundle, and utterances. Out: what was drawn and the logits that it was drawn from. A frame is drawn inside a
graph, where one code that differs changes all that follow; so that two precisions can be compared, a frame's codes can
be prescribed by the graph's own inputs, and the recorded calls are such. Does not compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from voxedge.calibration.draws import Draws, WatchedSampler
from voxedge.calibration.recording import Feeds, Recording
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import InferenceError
from voxedge.engines.loader import GraphLoader
from voxedge.runtime.frame_step import Codes, Float, FrameDraws
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.sampling import Sampler, SamplingConfig, UniformSource
from voxedge.runtime.systems.base import Samples, Utterance
from voxedge.runtime.systems.moss import Moss
from voxedge.runtime.systems.moss_frames import FrameCollector
from voxedge.runtime.systems.moss_grid import Frames
from voxedge.runtime.systems.moss_model import FRAME, TEXT_HEAD, MossModel
from voxedge.runtime.systems.moss_rows import RowRules, Rows
from voxedge.runtime.vocabulary import History

HOT = 1e9
"""A temperature at which all codes are equally likely, to far less than one code's share of 1 in 4096."""
STATES = 6
"""States of an utterance that the delay model's text head is shown."""
_ALL = 2.0  # a nucleus that nothing exceeds

KnownCodes = dict[bytes, Codes]
"""Codes of each frame by the state that it was drawn from."""


def prescribed_codes(codes: Codes, sizes: Sequence[int], largest: int) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs with which a frame graph draws these codes, whatever its logits are.

    Args:
        codes: [n].
        sizes: Of the codebooks.
        largest: Codes of the largest one.

    Returns:
        Every code as likely as any other, and numbers in the middle of the share of the one that is wanted.
    """
    uniforms = (codes + 0.5) / np.asarray(sizes)
    return {
        "uniforms": uniforms.astype(np.float32)[None],
        "penalties": np.ones((1, len(codes), largest), np.float32),
        "temperature": np.full(1, HOT, np.float32),
        "top_p": np.full(1, _ALL, np.float32),
        "top_k": np.full(1, largest, np.int32),
    }


class WatchedFrameDraws(FrameDraws):
    """Frames whose codes and logits are kept, and prescribed where there is something to follow."""

    def __init__(self, frames: FrameDraws, draws: Draws, sizes: Sequence[int], known: KnownCodes) -> None:
        """Take the place of draws that have not begun."""
        self.__dict__.update(vars(frames))
        self._draws, self._sizes, self._known = draws, sizes, known

    def next(self, state: Float, text: Float | None = None) -> Codes:
        """Draw, or follow; see `FrameDraws.next`."""
        forced = self._draws.prescribed(self._channels)
        codes = super().next(state, text) if forced is None else self._follow(np.array(forced, np.int32), state, text)
        rows = self._step.made["logits"][0]  # [n, A]
        self._draws.logits += [row[:size].copy() for row, size in zip(rows, self._sizes, strict=True)]
        self._draws.drawn += codes.tolist()
        self._known[state.tobytes()] = codes.copy()
        return codes

    def _follow(self, wanted: Codes, state: Float, text: Float | None) -> Codes:
        given = self._step.given
        for name, values in prescribed_codes(wanted, self._sizes, max(self._sizes)).items():
            np.copyto(given[name], values)
        given["state"][0] = state
        if text is not None:
            given["text"][0] = text
        self._step.run()
        codes: Codes = self._step.made["codes"][0]
        if not np.array_equal(codes, wanted):
            raise InferenceError(
                "expected a frame graph that draws the codes it is told, it draws others: its logits are no numbers; "
                "export the bundle at a higher precision"
            )
        return codes


class WatchedRows(Rows):
    """Rows whose draws are kept."""

    def __init__(
        self, model: MossModel, rules: RowRules, stream: UniformSource, draws: Draws, known: KnownCodes
    ) -> None:
        super().__init__(model, rules, stream)
        self._draws, self._known = draws, known

    def _sampler(
        self,
        config: SamplingConfig,
        allowed: npt.NDArray[np.bool_] | None = None,
        history: History | None = None,
        stream: UniformSource | None = None,
    ) -> Sampler:
        return WatchedSampler(super()._sampler(config, allowed, history, stream), self._draws)

    def _frame_draws(self, config: SamplingConfig) -> FrameDraws:
        sizes = self._model.settings.codebooks
        return WatchedFrameDraws(super()._frame_draws(config), self._draws, sizes, self._known)


class ObservedMoss(Moss):
    """MOSS-TTS under observation; see `speaking.ObservedSystem`."""

    def __init__(self, bundle: Bundle, loader: GraphLoader, forced: Sequence[int] | None) -> None:
        super().__init__(bundle, loader)
        self.draws = Draws(forced)
        self._known: KnownCodes = {}
        self._states: list[Float] = []

    def _rows(self, model: MossModel, rules: RowRules, stream: NoiseStream) -> Rows:
        return WatchedRows(model, rules, stream, self.draws, self._known)

    def frames(self, utterance: Utterance, collector: FrameCollector) -> Iterator[Frames]:
        """Draw frames; see `Moss.frames`. The backbone's state is kept at each."""
        for frame in super().frames(utterance, collector):
            if self._model is not None:
                self._states.append(self._model.state[None].copy())  # [1, d]
            yield frame

    def exercise(self, utterance: Utterance) -> Samples:
        """Draw codes; what makes sound of them is another bundle, which need not be there."""
        self.codes(utterance)
        return np.zeros((0, 1), np.float32)

    def add_unheard(self, samples: Samples, recording: Recording) -> None:
        """Record the text head, which speech of a given length does not need; frames get prescribed codes."""
        if self._model is None:
            return
        if self.settings.kind == "delay":
            count = STATES if self._states else 0  # speech may end before the delay of the last codebook is over
            for place in np.linspace(0, len(self._states) - 1, count).astype(int):
                recording.add(TEXT_HEAD, {"state": self._states[place]})
        elif recording.calls(FRAME):
            recording.change(FRAME, self._prescribed)

    def _prescribed(self, feeds: Feeds) -> Feeds:
        sizes = self.settings.codebooks
        return {**feeds, **prescribed_codes(self._known[feeds["state"][0].tobytes()], sizes, max(sizes))}

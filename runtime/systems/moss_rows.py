"""Row by row: what a MOSS-TTS model says behind a prompt, until it stops or must.

In: a model, a prompt's grid, the rules of drawing and a stream of uniform numbers. Out: rows as the reference generates
them. The numbers are used in one order: the text token or the decision to go on where it is drawn, then the channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from voxedge.runtime.audio import FinishReason
from voxedge.runtime.frame_step import FrameDraws
from voxedge.runtime.sampling import Sampler, SamplingConfig, UniformSource
from voxedge.runtime.systems.moss_delay import DelayMachine
from voxedge.runtime.systems.moss_grid import Grid, Row
from voxedge.runtime.systems.moss_model import MossModel
from voxedge.runtime.vocabulary import History

_ENDLESS = 2**31 - 1
_GO_ON, _STOP = 0, 1


@dataclass(frozen=True, slots=True)
class RowRules:
    """How rows are drawn."""

    text: SamplingConfig
    """Of text tokens, or of the decision to go on; its counts are not used."""
    audio: SamplingConfig
    """Of codes; its counts are not used."""
    min_frames: int = 0
    """The model cannot stop before so many new frames."""
    max_frames: int = _ENDLESS
    """The model stops with so many new frames."""
    max_rows: int = _ENDLESS
    """Cut after so many rows, however incomplete; the delay model needs some more than it has frames."""
    channels: int | None = None
    """Audio channels that are used; None for all. Fewer only with local v1."""


class Rows:
    """Rows of one sequence; `finish_reason` is there when they have ended."""

    def __init__(self, model: MossModel, rules: RowRules, stream: UniformSource) -> None:
        self.finish_reason: FinishReason | None = None
        self._model, self._rules, self._stream = model, rules, stream

    def after(self, prompt: Grid) -> Iterator[Row]:
        """Generate rows behind a prompt; the model's cache must have been started."""
        generate = {"delay": self._delay, "local": self._local, "local_v15": self._local_v15}
        yield from generate[self._model.settings.kind](prompt)

    def _sampler(
        self,
        config: SamplingConfig,
        allowed: npt.NDArray[np.bool_] | None = None,
        history: History | None = None,
        stream: UniformSource | None = None,
    ) -> Sampler:
        """A sampler that this module stops, by ids in ascending order as the references draw."""
        endless = replace(config, min_tokens=0, max_tokens=_ENDLESS)
        return Sampler(endless, None, allowed, stream or self._stream, "id", history)

    def _frame_draws(self, config: SamplingConfig) -> FrameDraws:
        return self._model.frame.draws(config, self._stream, self._rules.channels)

    # the delay model

    def _delay(self, prompt: Grid) -> Iterator[Row]:
        model, settings = self._model, self._model.settings
        machine = DelayMachine.after(prompt, settings.ids)
        spoken = 0
        pair = self._sampler(_without_penalty(self._rules.text))
        allowed = np.ones(settings.vocabulary, np.bool_)
        allowed[list(machine.outside())] = False
        words = self._sampler(_without_penalty(self._rules.text), allowed=allowed)
        voices = self._channel_samplers(prompt)
        logits = model.append(model.embed(prompt))
        most = self._rules.max_frames
        for count in range(self._rules.max_rows):
            token = self._text_token(machine, logits, pair, words, spoken)
            row = np.full(1 + machine.channels, settings.pad_code, np.int32)
            row[0] = token
            for channel in machine.speaking():
                start = 2 + sum(settings.codebooks[:channel])
                row[1 + channel] = voices[channel].next(logits[start : start + settings.codebooks[channel]])
            machine.advance(token)
            spoken += token == settings.ids.gen_slot
            yield row
            ended = token == settings.ids.im_end
            if ended or count + 1 == self._rules.max_rows or (spoken >= most and token == settings.ids.audio_end):
                self.finish_reason = "stop" if ended and spoken < most else "length"
                return
            logits = model.append(model.embed(row[None]))

    def _text_token(
        self, machine: DelayMachine, logits: npt.NDArray[np.float32], pair: Sampler, words: Sampler, spoken: int
    ) -> int:
        forced = machine.forced()
        if forced is not None:
            return forced
        slots = (machine.ids.gen_slot, machine.delay_slot)
        if not machine.in_audio and spoken < self._rules.min_frames:
            return machine.ids.audio_start  # who asks for a length leaves no choice
        if not machine.in_audio:
            return words.next(self._model.text_logits(), machine.banned())
        if spoken >= self._rules.max_frames:
            return machine.delay_slot
        barred = machine.banned() if spoken >= self._rules.min_frames else (machine.delay_slot,)
        return slots[pair.next(logits[:2], [slots.index(token) for token in barred if token in slots])]

    def _channel_samplers(self, prompt: Grid) -> list[Sampler]:
        """Channel 0 is penalised for its own codes, the others for those of all of them."""
        window = self._rules.audio.repetition_window
        own, pooled = History(window), History(window)
        samplers = [
            self._sampler(self._rules.audio, history=pooled if channel else own)
            for channel in range(self._model.settings.channels)
        ]
        if self._rules.audio.repetition_penalty != 1.0:
            samplers[0].observe(prompt[:, 1])
            samplers[-1].observe(prompt[:, 2:].reshape(-1))
        return samplers

    # the local transformers

    def _local(self, prompt: Grid) -> Iterator[Row]:
        model, ids = self._model, self._model.settings.ids
        words = self._sampler(_without_penalty(self._rules.text))
        # The reference penalises nothing where the likeliest code is taken.
        audio = self._rules.audio if not self._rules.audio.greedy else _without_penalty(self._rules.audio)
        draws = self._frame_draws(audio)
        draws.observe(prompt[:, 1:])
        model.append(model.embed(prompt))
        count = 0
        while True:
            token = words.next(model.text_logits(), (ids.audio_end,) if count < self._rules.min_frames else ())
            row = np.zeros(prompt.shape[1], np.int32)
            row[0] = token
            used = slice(1, 1 + (self._rules.channels or model.settings.channels))
            row[used] = draws.next(model.state, model.embed_text(token))[: used.stop - 1]
            count += 1
            yield row
            if token == ids.audio_end or count >= min(self._rules.max_frames, self._rules.max_rows):
                self.finish_reason = "stop" if token == ids.audio_end else "length"
                return
            everything = self._rules.channels in (None, model.settings.channels)
            model.append(model.frame.made["embeds"][0] if everything else model.embed(row[None]))

    def _local_v15(self, prompt: Grid) -> Iterator[Row]:
        model, ids = self._model, self._model.settings.ids
        gate_stream = _Held(self._stream)
        gate = self._sampler(_without_penalty(self._rules.text), stream=gate_stream)
        draws = self._frame_draws(self._rules.audio)
        model.append(model.embed(prompt))
        count, limit = 0, min(self._rules.max_frames, self._rules.max_rows)
        while count < limit:
            if not gate.config.greedy:
                gate_stream.hold()  # one call makes gate and codes, but the gate's number comes first
            codes = draws.next(model.state)
            barred = (_STOP,) if count < self._rules.min_frames else ()
            if gate.next(model.frame.made["gate"][0], barred) == _STOP:
                self.finish_reason = "stop"
                return
            count += 1
            yield np.concatenate([np.array([ids.gen_slot], np.int32), codes])
            if count < limit:
                model.append(model.frame.made["embeds"][0])
        self.finish_reason = "length"


class _Held:
    """A number taken from a stream before others, and given out after them."""

    def __init__(self, stream: UniformSource) -> None:
        self._stream, self._number = stream, 0.0

    def hold(self) -> None:
        self._number = self._stream.uniform()

    def uniform(self) -> float:
        return self._number


def _without_penalty(config: SamplingConfig) -> SamplingConfig:
    return replace(config, repetition_penalty=1.0, ras_window=0)

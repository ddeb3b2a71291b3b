"""The delay model's state machine: which text token may follow, and which channels speak, row by row.

In: the text tokens so far. Out: for each row a forced token or what may be drawn, and the channels to draw. Channel c
speaks c rows behind channel 0, so an utterance ramps up, and ends in a staircase of delay slots. Draws nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxedge.engines.errors import ConfigError
from voxedge.runtime.systems.moss_grid import Grid
from voxedge.runtime.systems.moss_settings import MossIds


@dataclass(slots=True)
class DelayMachine:
    """State of one sequence; `flush` counts the delay slots so far, None outside the staircase."""

    ids: MossIds
    channels: int
    in_audio: bool = False
    length: int = 0
    """Rows of the current utterance."""
    flush: int | None = None
    step: int = 0

    @classmethod
    def after(cls, prompt: Grid, ids: MossIds) -> DelayMachine:
        """The state behind a prompt; one that ends within audio goes on with it."""
        machine = cls(ids, prompt.shape[1] - 1)
        if prompt[-1, 0] in (ids.audio_start, ids.gen_slot):
            starts = np.flatnonzero(prompt[:, 0] == ids.audio_start)
            if len(starts):
                machine.in_audio, machine.length = True, len(prompt) - int(starts[-1])
        return machine

    @property
    def delay_slot(self) -> int:
        """The token of the staircase."""
        if self.ids.delay_slot is None:
            raise ConfigError("expected the ids of a delay model, found no delay slot")
        return self.ids.delay_slot

    def forced(self) -> int | None:
        """The next text token where nothing is left to draw."""
        if self.flush is None:
            return None
        return self.ids.audio_end if self.flush == self.channels else self.delay_slot

    def banned(self) -> tuple[int, ...]:
        """Text tokens that may not be drawn now besides those that are out of place."""
        first = (self.delay_slot,) if self.step == 0 else ()
        return first + ((self.ids.im_end,) if self.step <= self.channels else ())

    def outside(self) -> tuple[int, ...]:
        """Text tokens that are out of place outside of audio."""
        return (self.ids.pad, self.ids.gen_slot, self.delay_slot, self.ids.audio_end)

    def speaking(self) -> range:
        """Channels to draw in this row, from the state before its text token; asked before `advance`."""
        return range(self.flush or 0, min(self.length, self.channels))

    def advance(self, token: int) -> None:
        """Take a row's text token."""
        ids = self.ids
        if token == ids.audio_start:
            self.in_audio = True
        if token == ids.audio_end:
            self.in_audio, self.length = False, 0
        elif token in (ids.audio_start, ids.gen_slot, self.delay_slot):
            self.length += 1
        if self.flush is None and token == self.delay_slot:
            self.flush = 0
        if self.flush is not None:
            self.flush = self.flush + 1 if self.flush < self.channels else None
        self.step += 1

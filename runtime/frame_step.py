"""One call that draws all codes of a frame: the local transformer unrolled over its channels, with noise as an input.

In: a loaded frame graph, per frame the state of the backbone. Out: the codes and the embedding of the next row. Uniform
numbers come from the caller's stream in the order of the channels, and penalties from the codes seen so far. Knows no
prompts and no stop rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Buffer, Engine
from voxedge.engines.errors import ConfigError
from voxedge.runtime.sampling import SamplingConfig, UniformSource
from voxedge.runtime.vocabulary import History

Float = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

_BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))
_ALL = np.float32(2.0)
"""A nucleus that no probability exceeds."""


class FrameStep:
    """A frame graph with its bindings; all arrays are made once."""

    def __init__(self, engine: Engine) -> None:
        self._binding = engine.binding()
        self.given: Mapping[str, npt.NDArray[Any]] = {
            tensor.name: np.zeros(tensor.sizes({"batch": 1}), tensor.dtype) for tensor in engine.spec.inputs
        }
        self.made: Mapping[str, npt.NDArray[Any]] = {
            tensor.name: np.zeros(tensor.sizes({"batch": 1}), tensor.dtype) for tensor in engine.spec.outputs
        }
        for name, array in (*self.given.items(), *self.made.items()):
            self._binding.bind(name, Buffer.of(array))
        self.channels = int(self.given["uniforms"].shape[1])

    def draws(self, config: SamplingConfig, stream: UniformSource, channels: int | None = None) -> FrameDraws:
        """The draws of one sequence; a frame step serves one at a time.

        Args:
            config: Rules.
            stream: Randomness; one number for each channel that is used.
            channels: How many are used; None for all.

        Raises:
            ConfigError: A rule that a graph cannot follow.
        """
        return FrameDraws(self, config, stream, self.channels if channels is None else channels)

    def run(self) -> None:
        """Make one frame of what is in `given`."""
        self._binding.run()


class FrameDraws:
    """The frames of one sequence."""

    def __init__(self, step: FrameStep, config: SamplingConfig, stream: UniformSource, channels: int) -> None:
        if config.ras_window:
            raise ConfigError("expected ras_window 0: a frame is drawn in one call, and nothing is drawn anew")
        self._step, self._config, self._stream, self._channels = step, config, stream, channels
        self._histories = [History(config.repetition_window) for _ in range(channels)]
        step.given["penalties"].fill(1.0)
        step.given["uniforms"].fill(0.0)
        sizes = step.given["penalties"].shape[2]
        step.given["temperature"][0] = 1.0 if config.greedy else config.temperature
        step.given["top_k"][0] = 1 if config.greedy else min(config.top_k or sizes, sizes)
        step.given["top_p"][0] = config.top_p if config.top_p < 1.0 and not config.greedy else _ALL

    def observe(self, frames: Codes) -> None:
        """Let the repetition penalty see frames [T, n]; what is no code is not seen."""
        if self._config.repetition_penalty == 1.0:
            return
        table = self._step.given["penalties"][0]  # [n, A]
        for channel, history in enumerate(self._histories):
            for code in frames[:, channel].tolist():
                history.push(code)
            seen = history.ids()
            if self._config.repetition_window:
                table[channel] = 1.0
            table[channel, seen[(seen >= 0) & (seen < table.shape[1])]] = self._config.repetition_penalty

    def next(self, state: Float, text: Float | None = None) -> Codes:
        """Draw one frame.

        Args:
            state: [d] of the backbone.
            text: [d], embedding of the frame's text token, where the graph takes it.

        Returns:
            Codes [n], valid until the next call; those behind the used channels mean nothing.
        """
        given = self._step.given
        given["state"][0] = state
        if text is not None:
            given["text"][0] = text
        if not self._config.greedy:
            for channel in range(self._channels):
                given["uniforms"][0, channel] = min(np.float32(self._stream.uniform()), _BELOW_ONE)
        self._step.run()
        codes: Codes = self._step.made["codes"][0]
        self.observe(codes[None])
        return codes

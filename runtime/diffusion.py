"""Latents from speech tokens with a diffusion decoder.

In: the token embedder and the denoiser as engines, tokens, noise. Out: latents. One call of the network for each noise
level, two rows of one batch where guidance is on. Does not know language models, windows or vocoders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Buffer, Engine
from voxedge.engines.errors import InferenceError
from voxedge.runtime.latents import nearest_indices
from voxedge.runtime.preconditioning import Preconditioning, guide
from voxedge.runtime.schedules import NoiseSchedule
from voxedge.runtime.solvers import SolverConfig, solve

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

Route = Literal["input_concat", "cross_attention", "prepend"]
INPUTS: dict[Route, str] = {"input_concat": "concat", "cross_attention": "context", "prepend": "prepend"}


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """How one stretch is decoded."""

    preconditioning: Preconditioning
    schedule: NoiseSchedule
    solver: SolverConfig
    cfg_scale: float = 1.0
    """Guidance; at 1 the unconditional row is not computed."""
    route: Route = "input_concat"
    """Which input the embedded tokens enter by."""


class DiffusionDecoder:
    """Token embedder and denoiser."""

    def __init__(self, conditioner: Engine, network: Engine) -> None:
        self._conditioner, self._network = conditioner, network
        self.channels = int(network.spec.output("prediction").shape[1])
        self.max_frames = max(profile["frames"].max for profile in network.spec.profiles.values())

    def decode(
        self, tokens: Ids, noise: Array, config: DiffusionConfig, step_noise: Callable[[int], Array] | None = None
    ) -> Array:
        """Denoise one stretch.

        Args:
            tokens: [n] speech tokens.
            noise: [C, T] normal noise; T sets the length of the stretch.
            config: How.
            step_noise: Normal noise [C, T] of a solver step, for solvers that add some.

        Returns:
            Latents [C, T].

        Raises:
            InferenceError: The result is not finite.
        """
        sigmas = config.schedule.sigmas()
        network = _Network(self._network, self._conditioning(tokens, noise.shape[1], config), noise.shape, config)
        start = (noise * np.float32(sigmas[0]))[None]  # [1, C, T]
        result: Array = solve(
            config.solver,
            sigmas,
            lambda x, sigma: config.preconditioning.denoise(network, x, sigma),
            start,
            None if step_noise is None else lambda step: step_noise(step)[None],
        )[0]
        if not np.isfinite(result).all():
            raise InferenceError(
                "expected finite latents from the diffusion decoder, found NaN or infinity: its weights or its "
                "precision are broken; run `voxedge verify`, or export the bundle with --precision fp32"
            )
        return result

    def _conditioning(self, tokens: Ids, frames: int, config: DiffusionConfig) -> Array:
        """Embedded tokens as the network's input wants them: [1, C, T] or [1, n, C]."""
        embedded: Array = self._conditioner.run({"ids": tokens[None]})["embeddings"]  # [1, n, C]
        if config.route != "input_concat":
            return embedded
        stretched = embedded[:, nearest_indices(len(tokens), frames)]  # [1, T, C]
        return np.ascontiguousarray(stretched.transpose(0, 2, 1))  # [1, C, T]


class _Network:
    """The raw prediction for one stretch, conditioned and guided; bound once, called for every noise level."""

    def __init__(self, engine: Engine, conditioning: Array, shape: tuple[int, ...], config: DiffusionConfig) -> None:
        rows = 1 if config.cfg_scale == 1.0 else 2
        self._scale = config.cfg_scale
        self._latents = np.zeros((rows, *shape), np.float32)  # [B, C, T]
        self._time = np.zeros(rows, np.float32)
        self._prediction = np.zeros((rows, *shape), np.float32)
        self._binding = engine.binding()
        given = np.zeros((rows, *conditioning.shape[1:]), np.float32)
        given[0] = conditioning[0]  # the unconditional row stays zero
        fixed = {INPUTS[config.route]: given}
        for spec in engine.spec.inputs:
            if spec.name == "global":  # nothing global is known of an utterance; its projection has no bias
                fixed["global"] = np.zeros((rows, int(spec.shape[1])), np.float32)
        for name, array in fixed.items():
            self._binding.bind(name, engine.upload(array))
        for name, array in (("latents", self._latents), ("time", self._time), ("prediction", self._prediction)):
            self._binding.bind(name, Buffer.of(array))

    def __call__(self, scaled: Array, condition: float) -> Array:
        self._latents[:] = scaled
        self._time[:] = condition
        self._binding.run()
        if len(self._latents) == 1:
            only: Array = self._prediction.copy()
            return only
        return guide(self._prediction[:1], self._prediction[1:], self._scale)

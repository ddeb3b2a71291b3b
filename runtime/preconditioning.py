"""From what a network was trained to predict to an estimate of the clean signal.

In: a training objective, a noise level, a noisy signal, a network. Out: the denoised signal, possibly guided.
Does not know: schedules, solvers, what the network is. Noise levels reach 500 and signals with them, so everything here
stays in float32 with float64 scalars; only the scaled input goes to the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError

Array = npt.NDArray[np.float32]
Network = Callable[[Array, float], Array]
"""Scaled input and noise condition in, raw prediction out, both of the input's shape."""


@dataclass(frozen=True, slots=True)
class Scalings:
    """Factors of D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, eq. 7)."""

    c_skip: float
    """Share of the noisy signal in the result."""
    c_out: float
    """Factor of the network's output."""
    c_in: float
    """Factor of the network's input."""
    c_noise: float
    """Noise level as the network wants it."""


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """What the network predicts, and so how its input and output are scaled."""

    objective: Literal["edm", "v", "rectified_flow"]
    """EDM (Karras et al. 2022), velocity (Salimans and Ho 2022), or rectified flow (Liu et al. 2022), where the noise
    level is the time 0 .. 1."""
    sigma_data: float = 1.0
    """Standard deviation of the clean signal; only EDM knows another than 1."""

    def __post_init__(self) -> None:
        """Check every range."""
        if self.objective not in ("edm", "v", "rectified_flow"):
            raise ConfigError(f"expected an objective of 'edm', 'v', 'rectified_flow', got {self.objective!r}")
        if not 0.0 < self.sigma_data < math.inf:
            raise ConfigError(f"expected sigma_data > 0, got {self.sigma_data}; the value belongs to the checkpoint")
        if self.objective != "edm" and self.sigma_data != 1.0:
            raise ConfigError(
                f"expected sigma_data 1 with the objective {self.objective!r}, got {self.sigma_data}; leave it out"
            )

    def scalings(self, sigma: float) -> Scalings:
        """Factors at one noise level.

        Args:
            sigma: Noise level, above 0; for rectified flow the time, 0 .. 1.

        Raises:
            ConfigError: The objective has no such noise level.

        Example:
            >>> Preconditioning("edm", sigma_data=3.0).scalings(4.0)
            Scalings(c_skip=0.36, c_out=2.4000000000000004, c_in=0.2, c_noise=0.34657359027997264)
        """
        sigma = float(sigma)  # a numpy scalar would turn every float32 array it meets into float64
        if self.objective == "rectified_flow":
            if not 0.0 <= sigma <= 1.0:
                raise ConfigError(f"expected a rectified flow time of 0 .. 1, got {sigma}; set sigma_max to 1")
            return Scalings(c_skip=1.0, c_out=-sigma, c_in=1.0, c_noise=sigma)
        if not 0.0 < sigma < math.inf:
            raise ConfigError(f"expected a noise level above 0, got {sigma}; a solver handles 0 itself")
        variance = sigma**2 + self.sigma_data**2
        c_in = 1.0 / math.sqrt(variance)
        c_skip = self.sigma_data**2 / variance
        if self.objective == "edm":  # Karras et al. 2022, table 1
            return Scalings(c_skip, sigma * self.sigma_data * c_in, c_in, math.log(sigma) / 4.0)
        # v = alpha noise - sigma signal, hence the minus; the condition is the angle as a share of a right one.
        return Scalings(c_skip, -sigma * c_in, c_in, math.atan(sigma) * 2.0 / math.pi)

    def denoise(self, network: Network, noisy: Array, sigma: float) -> Array:
        """Estimate of the clean signal: one network call.

        Args:
            network: Raw prediction.
            noisy: [..., channels, T] with noise of level `sigma`.
            sigma: Noise level.

        Returns:
            Array of the shape of `noisy`.
        """
        factors = self.scalings(sigma)
        predicted = network(noisy * factors.c_in, factors.c_noise)
        return noisy * factors.c_skip + predicted * factors.c_out


def guide(conditional: Array, unconditional: Array, scale: float, rescale_phi: float = 0.0) -> Array:
    """Classifier-free guidance (Ho and Salimans 2022), with rescaling (Lin et al. 2023, eq. 15 and 16).

    Raw predictions and denoised signals give the same result without rescaling; Stable Audio rescales raw predictions.

    Args:
        conditional: [..., channels, T].
        unconditional: Of the same shape.
        scale: 1 is the conditional prediction, 0 the unconditional one, above 1 follows the condition more.
        rescale_phi: 0 .. 1, how much of the conditional prediction's spread over the channels is given back.

    Returns:
        Array of the same shape.
    """
    if not 0.0 <= rescale_phi <= 1.0:
        raise ConfigError(f"expected 0 <= rescale_phi <= 1, got {rescale_phi}; 0 is off")
    guided: Array = unconditional + (conditional - unconditional) * float(scale)
    if rescale_phi == 0.0:
        return guided
    if guided.ndim < 2 or guided.shape[-2] < 2:
        raise ConfigError(f"expected [..., channels, T] with two channels or more to rescale, got shape {guided.shape}")
    wanted = conditional.std(axis=-2, ddof=1, keepdims=True)  # [..., 1, T]
    found = guided.std(axis=-2, ddof=1, keepdims=True)
    factor = np.divide(wanted, found, out=np.ones_like(found), where=found > 0)  # equal channels have no spread to mend
    rescaled: Array = guided * (rescale_phi * factor + (1.0 - rescale_phi))
    return rescaled

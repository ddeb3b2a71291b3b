"""Noise schedules of a diffusion decoder: a count of steps in, noise levels out.

In: a frozen `NoiseSchedule`. Out: the descending noise levels that a solver visits, ending in 0.
Does not know: solvers, networks, preconditioning, devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError

Sigmas = npt.NDArray[np.float64]

_CUSTOMARY_RHO = {"karras": 7.0, "polyexponential": 1.0}


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """How noise levels fall from `sigma_max` to `sigma_min`, and then to 0."""

    kind: Literal["karras", "polyexponential"]
    """Even steps in sigma ** (1 / rho) (Karras et al. 2022, eq. 5), or in log sigma, bent by rho (k-diffusion)."""
    steps: int
    """Solver steps; each costs one network call, or two with Heun's method."""
    sigma_min: float = 0.002
    """Last noise level above 0, in the latents' units; lower keeps more hiss of the data itself."""
    sigma_max: float = 80.0
    """First noise level, in the latents' units; must dwarf the data's standard deviation."""
    rho: float | None = None
    """Curvature, higher spends more steps at low noise; None is the kind's customary value, 7 or 1."""

    def __post_init__(self) -> None:
        """Check every range."""
        if self.kind not in _CUSTOMARY_RHO:
            raise ConfigError(f"expected a noise schedule of {sorted(_CUSTOMARY_RHO)}, got {self.kind!r}")
        if not 1 <= self.steps <= 10_000:
            raise ConfigError(f"expected 1 .. 10000 steps, got {self.steps}; 16 is a good start for speech")
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(
                f"expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}; "
                "the values belong to the checkpoint"
            )
        if self.rho is not None and not 0.0 < self.rho <= 100.0:
            raise ConfigError(f"expected 0 < rho <= 100, got {self.rho}; 7 is customary for karras")

    def sigmas(self) -> Sigmas:
        """Noise levels in descending order.

        Returns:
            Array [steps + 1]; the last entry is 0.

        Example:
            >>> NoiseSchedule("karras", steps=2, sigma_min=1.0, sigma_max=16.0, rho=1.0).sigmas()
            array([16.,  1.,  0.])
        """
        rho = self.rho or _CUSTOMARY_RHO[self.kind]
        ramp = np.linspace(0.0, 1.0, self.steps)  # [steps]; one step is sigma_max alone
        if self.kind == "karras":
            low, high = self.sigma_min ** (1.0 / rho), self.sigma_max ** (1.0 / rho)
            levels = (high + ramp * (low - high)) ** rho  # [steps]
        else:
            span = math.log(self.sigma_max / self.sigma_min)
            levels = np.exp((1.0 - ramp) ** rho * span + math.log(self.sigma_min))  # [steps]
        return np.append(levels, 0.0)  # [steps + 1]

"""From noise to signal: the solvers of diffusion and flow models.

In: noise levels or times, a function that denoises or gives a velocity, a start. Out: the signal at the end.
Does not know: networks, preconditioning, guidance, where noise comes from. Signals are float32; every scalar is a
float64 of the host, because neighbouring noise levels differ in digits that float32 does not have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError

Array = npt.NDArray[np.float32]
Grid = npt.NDArray[np.float64]
Denoiser = Callable[[Array, float], Array]
"""Noisy signal and its noise level in, estimate of the clean signal out."""
Velocity = Callable[[Array, float], Array]
"""State and time in, its derivative by time out."""
NoiseSource = Callable[[int], Array]
"""Step in, normal noise of the signal's shape out."""
StepCallback = Callable[[int, Array, Array], None]
"""Called after the first network call of a step with its index, the state before it and the denoised signal."""

Kind = Literal["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"]
_KINDS = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")
_CHURN_LIMIT = math.sqrt(2.0) - 1.0


@dataclass(frozen=True, slots=True)
class SolverConfig:
    """Which solver, and how much fresh noise it adds."""

    kind: Kind
    """Euler or Heun (Karras et al. 2022), or DPM-Solver++ multistep (Lu et al. 2022) of order 2 or 3."""
    eta: float = 1.0
    """Noise added by the SDE kinds; 0 makes them deterministic, the others never add any."""
    churn: float = 0.0
    """Total noise that Euler and Heun put back before steps (S_churn); 0 is off."""
    churn_min: float = 0.0
    """Lowest noise level with churn (S_tmin)."""
    churn_max: float = math.inf
    """Highest noise level with churn (S_tmax)."""

    def __post_init__(self) -> None:
        """Check every range."""
        if self.kind not in _KINDS:
            raise ConfigError(f"expected a solver of {', '.join(_KINDS)}, got {self.kind!r}")
        if not 0.0 <= self.eta <= 10.0:
            raise ConfigError(f"expected 0 <= eta <= 10, got {self.eta}; 0 is deterministic, 1 is customary")
        if not 0.0 <= self.churn < math.inf:
            raise ConfigError(f"expected churn >= 0, got {self.churn}; 0 is off")
        if self.churn and self.kind not in ("euler", "heun"):
            raise ConfigError(f"expected churn 0 with {self.kind}, got {self.churn}; euler and heun know churn")

    @property
    def needs_noise(self) -> bool:
        """Whether `solve` must be given a source of noise."""
        return self.churn > 0.0 or (self.kind.endswith("_sde") and self.eta > 0.0)

    def network_calls(self, steps: int) -> int:
        """How often `solve` denoises on a schedule of so many steps that ends in 0."""
        return 2 * steps - 1 if self.kind == "heun" else steps


@dataclass(frozen=True, slots=True)
class _Past:
    """What a multistep solver remembers of a step."""

    denoised: Array
    log_step: float


def solve(
    config: SolverConfig,
    sigmas: Grid,
    denoiser: Denoiser,
    start: Array,
    noise: NoiseSource | None = None,
    on_step: StepCallback | None = None,
) -> Array:
    """Remove the noise of `start`, level by level.

    Args:
        config: Which solver.
        sigmas: [steps + 1] noise levels, descending; the last may be 0.
        denoiser: Called `config.network_calls(steps)` times, each time with a fresh array.
        start: Signal plus noise of level `sigmas[0]`; from nothing, `sigmas[0]` times normal noise.
        noise: Noise of a step; needed where `config.needs_noise`.
        on_step: Told of every step; what it raises ends the run.

    Returns:
        Array of the shape of `start`, at noise level `sigmas[-1]`.

    Raises:
        ConfigError: The levels do not descend, or noise is needed and not given.

    Example:
        >>> levels = np.array([2.0, 1.0, 0.0])
        >>> solve(SolverConfig("euler"), levels, lambda x, sigma: 0 * x, np.array([8.0], dtype=np.float32))
        array([0.], dtype=float32)
    """
    levels = [float(sigma) for sigma in sigmas]
    _check_levels(levels)
    if config.needs_noise and noise is None:
        raise ConfigError(f"expected a source of noise for {config.kind}, got none; set eta and churn to 0 or give one")
    x = np.asarray(start, dtype=np.float32)
    past: list[_Past] = []
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        x, sigma = _churned(config, x, sigma, step, len(levels) - 1, noise)  # noqa: PLW2901 - churn raises the level
        denoised = denoiser(x, sigma)
        if on_step is not None:
            on_step(step, x, denoised)
        if following == 0.0:
            return denoised  # every solver here ends so, where its own formula would need the logarithm of 0
        x = _step(config, x, denoised, sigma, following, denoiser, past)
        if config.kind.endswith("_sde") and config.eta > 0.0 and noise is not None:
            spread = following * math.sqrt(-math.expm1(-2.0 * config.eta * math.log(sigma / following)))
            x = x + noise(step) * spread
        past = [_Past(denoised, math.log(sigma / following)), *past[:1]]
    return x


def integrate(velocity: Velocity, start: Array, times: Grid, method: Literal["euler", "midpoint"] = "euler") -> Array:
    """Follow dx/dt = velocity(x, t) along `times`, as flow-matching models do.

    Args:
        velocity: Called once per step, twice with `midpoint`.
        start: State at `times[0]`.
        times: [steps + 1], ascending or descending.
        method: Order 1 or 2.

    Returns:
        State at `times[-1]`, of the shape of `start`.

    Example:
        >>> integrate(lambda x, t: x, np.ones(1, dtype=np.float32), np.array([0.0, 0.5, 1.0]))
        array([2.25], dtype=float32)
    """
    if method not in ("euler", "midpoint"):
        raise ConfigError(f"expected the method 'euler' or 'midpoint', got {method!r}")
    grid = [float(time) for time in times]
    if len(grid) < 2 or not all(map(math.isfinite, grid)):
        raise ConfigError(f"expected two or more finite times, got {grid}")
    x = np.asarray(start, dtype=np.float32)
    for time, following in itertools.pairwise(grid):
        span = following - time
        slope = velocity(x, time)
        if method == "midpoint":
            slope = velocity(x + slope * (span / 2.0), time + span / 2.0)
        x = x + slope * span
    return x


def _check_levels(levels: list[float]) -> None:
    descending = all(a > b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or not descending or levels[-1] < 0.0 or not math.isfinite(levels[0]):
        raise ConfigError(f"expected two or more descending noise levels, the last 0 or more, got {levels}")


def _churned(
    config: SolverConfig, x: Array, sigma: float, step: int, steps: int, noise: NoiseSource | None
) -> tuple[Array, float]:
    """State and noise level after noise was put back (Karras et al. 2022, algorithm 2, lines 4-6)."""
    if not config.churn or noise is None or not config.churn_min <= sigma <= config.churn_max:
        return x, sigma
    raised = sigma * (1.0 + min(config.churn / steps, _CHURN_LIMIT))
    return x + noise(step) * math.sqrt(raised**2 - sigma**2), raised


def _step(
    config: SolverConfig,
    x: Array,
    denoised: Array,
    sigma: float,
    following: float,
    denoiser: Denoiser,
    past: list[_Past],
) -> Array:
    """State at the following level, above 0, without added noise."""
    if config.kind == "euler":
        return _euler(x, denoised, sigma, following)
    if config.kind == "heun":
        return _heun(x, denoised, sigma, following, denoiser)
    if config.kind == "dpmpp_3m_sde":
        return _third_order(x, denoised, math.log(sigma / following), config.eta, past)
    return _second_order(x, denoised, sigma, following, config.eta if config.kind == "dpmpp_2m_sde" else 0.0, past)


def _euler(x: Array, denoised: Array, sigma: float, following: float) -> Array:
    """Step along the slope (x - D) / sigma, in a form without cancellation."""
    return _mix(x, following / sigma, denoised, 1.0 - following / sigma)


def _mix(x: Array, x_factor: float, y: Array, y_factor: float) -> Array:
    mixed: Array = x * np.float32(x_factor) + y * np.float32(y_factor)
    return mixed


def _heun(x: Array, denoised: Array, sigma: float, following: float, denoiser: Denoiser) -> Array:
    """Mean of the slopes at both ends (Karras et al. 2022, algorithm 1, lines 4-8)."""
    guess = _euler(x, denoised, sigma, following)
    slopes = _mix(x - denoised, 1.0 / sigma, guess - denoiser(guess, following), 1.0 / following)
    return _mix(x, 1.0, slopes, (following - sigma) / 2.0)


def _second_order(x: Array, denoised: Array, sigma: float, following: float, eta: float, past: list[_Past]) -> Array:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), and for eta > 0 its SDE in the midpoint form (ibid., eq. 14)."""
    log_step = math.log(sigma / following)
    gain = -math.expm1(-log_step * (1.0 + eta))
    x_next = _mix(x, following / sigma * math.exp(-eta * log_step), denoised, gain)
    if past:
        ratio = 0.5 * gain * log_step / past[0].log_step
        x_next += (denoised - past[0].denoised) * ratio
    return x_next


def _third_order(x: Array, denoised: Array, log_step: float, eta: float, past: list[_Past]) -> Array:
    """DPM-Solver++(3M) SDE as k-diffusion defines it; the first two steps are of lower order."""
    scaled = log_step * (1.0 + eta)
    x_next = _mix(x, math.exp(-scaled), denoised, -math.expm1(-scaled))
    if not past:
        return x_next
    phi_2 = math.expm1(-scaled) / scaled + 1.0
    ratio_1 = past[0].log_step / log_step
    slope_1 = (denoised - past[0].denoised) * (1.0 / ratio_1)
    if len(past) == 1:
        x_next += slope_1 * phi_2
        return x_next
    ratio_2 = past[1].log_step / log_step
    slope_2 = (past[0].denoised - past[1].denoised) * (1.0 / ratio_2)
    change = (slope_1 - slope_2) * (1.0 / (ratio_1 + ratio_2))
    x_next += (slope_1 + change * ratio_1) * phi_2
    x_next -= change * (phi_2 / scaled - 0.5)
    return x_next

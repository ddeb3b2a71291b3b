"""Solvers against recorded runs, and against equations whose solution is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from numpy_transformer import NumpyTransformer

from voxedge.engines.errors import ConfigError
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.preconditioning import Preconditioning, guide
from voxedge.runtime.schedules import NoiseSchedule
from voxedge.runtime.solvers import Denoiser, Kind, SolverConfig, integrate, solve

Array = npt.NDArray[np.float32]
Case = tuple[NumpyTransformer, dict[str, Array]]
TRACKS: dict[str, Kind] = {"heun": "heun", "dpmpp2m": "dpmpp_2m", "dpmpp3m_eta0": "dpmpp_3m_sde"}


@pytest.fixture(scope="module", params=["stable_dit", "stable_dit_adaln"])
def case(request: pytest.FixtureRequest, golden: Callable[[str], Path]) -> Case:
    folder = golden(request.param)
    with np.load(folder / "io.npz") as recorded:
        return NumpyTransformer(folder / "checkpoint"), dict(recorded)


def karras(case: Case) -> npt.NDArray[np.float64]:
    edm = case[0].edm
    schedule = NoiseSchedule(
        "karras", len(case[1]["sigmas_karras"]) - 1, edm["sigma_min"], edm["sigma_max"], edm["rho"]
    )
    return schedule.sigmas()


def network_denoiser(case: Case, objective: str = "edm", scale: float = 1.0) -> Denoiser:
    """The golden's denoiser, with guidance towards zeroed conditioning where `scale` is not 1."""
    network, recorded = case
    condition = network.condition(recorded["tokens"], recorded["noise"].shape[-1])
    edm = Preconditioning("edm", network.edm["sigma_data"]) if objective == "edm" else Preconditioning("v")

    def denoise(x: Array, sigma: float) -> Array:
        given = edm.denoise(lambda y, t: network(y, t, condition), x, sigma)
        if scale == 1.0:
            return given
        return guide(given, edm.denoise(lambda y, t: network(y, t, 0 * condition), x, sigma), scale)

    return denoise


@pytest.mark.parametrize("track", TRACKS)
def test_states_follow_the_recorded_ones_when_denoised_signals_are_replayed(case: Case, track: str) -> None:
    recorded = case[1]
    states: list[Array] = []
    if track == "heun":  # its second call of a step is not recorded: take it from the network
        denoiser = network_denoiser(case)
    else:
        replay = iter(recorded[f"{track}_denoised"])
        denoiser = lambda x, sigma: next(replay)  # noqa: E731
    config = SolverConfig(TRACKS[track], eta=0.0)
    start = recorded["noise"][0] * float(karras(case)[0])
    final = solve(config, karras(case), denoiser, start, on_step=lambda step, x, denoised: states.append(x))
    for found, expected in zip([*states, final], [*recorded[f"{track}_x"], recorded[f"{track}_final"][0]], strict=True):
        assert found.dtype == np.float32
        # Replayed, only the rounding of the update differs: 1e-6 of the state. Through the network, rounding grows to
        # 2e-5 of it (the recorded sensitivity), with as much again for its own float32 operations.
        tolerance = 1e-4 if track == "heun" else 3e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(10.0, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("kind", "eta", "name", "scale"),
    [
        ("heun", 0.0, "heun_final", 1.0),
        ("dpmpp_2m", 0.0, "dpmpp2m_final", 1.0),
        ("dpmpp_2m_sde", 0.0, "dpmpp2m_final", 1.0),
        ("dpmpp_3m_sde", 0.0, "dpmpp3m_eta0_final", 1.0),
        ("dpmpp_3m_sde", 1.0, "dpmpp3m_sde_final", 1.0),
        ("dpmpp_2m_sde", 1.0, "dpmpp2m_sde_final", 1.0),
        ("dpmpp_2m", 0.0, "cfg_dpmpp2m_final", None),
        ("heun", 0.0, "cfg_heun_final", None),
    ],
)
def test_finals_equal_the_recorded_ones(case: Case, kind: Kind, eta: float, name: str, scale: float | None) -> None:
    recorded = case[1]
    guided = network_denoiser(case, scale=float(recorded["cfg_scale"]) if scale is None else scale)
    start = recorded["noise"][0] * float(karras(case)[0])
    final = solve(SolverConfig(kind, eta=eta), karras(case), guided, start, lambda step: recorded["sde_noise"][step])
    # 2e-3 and 5e-3 (guided, stochastic) absolute are the recordings' own tolerances.
    np.testing.assert_allclose(final, recorded[name][0], rtol=0, atol=5e-3 if scale is None or eta else 2e-3)


@pytest.mark.parametrize(("kind", "name"), [("dpmpp_2m", "v_dpmpp2m_final"), ("dpmpp_3m_sde", "v_dpmpp3m_eta0_final")])
def test_velocity_objective_equals_the_recorded_one(case: Case, kind: Kind, name: str) -> None:
    recorded = case[1]
    low, high = recorded["sigmas_polyexp"][-2], recorded["sigmas_polyexp"][0]
    steps = len(recorded["sigmas_polyexp"]) - 1
    levels = NoiseSchedule("polyexponential", steps, float(low), float(high), 1.0).sigmas()
    final = solve(SolverConfig(kind, eta=0.0), levels, network_denoiser(case, "v"), recorded["noise"][0] * levels[0])
    np.testing.assert_allclose(final, recorded[name][0], rtol=0, atol=2e-3)


def gaussian(sigma_data: float, mean: float = 0.0) -> Denoiser:
    """The exact denoiser of normally distributed data; the probability flow then scales with sqrt(s^2 + sd^2)."""
    return lambda x, sigma: mean + (x - mean) * (sigma_data**2 / (sigma**2 + sigma_data**2))


def gaussian_error(config: SolverConfig, steps: int) -> float:
    """Error at sigma 0.1 of a run from 10, data of deviation 1; ends above 0, so that every step is of full order."""
    levels = NoiseSchedule("polyexponential", steps + 1, 0.1, 10.0).sigmas()[:-1]
    start = np.array([10.0], dtype=np.float32)
    exact = 10.0 * math.sqrt((0.1**2 + 1.0) / (10.0**2 + 1.0))
    return abs(float(solve(config, levels, gaussian(1.0), start)[0]) - exact) / exact


@pytest.mark.parametrize("kind", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_order_of_convergence(kind: Kind) -> None:
    config = SolverConfig(kind, eta=0.0)
    coarse, fine = gaussian_error(config, 32), gaussian_error(config, 64)
    # Doubling the steps divides the error by 2**order; the next term of the expansion allows a tenth of an order.
    assert math.log2(coarse / fine) == pytest.approx(1 if kind == "euler" else 2, abs=0.1)
    assert fine > 2e-6  # still above float32 rounding, or the quotient would mean nothing


def test_third_order_beats_second_order() -> None:
    # Its two first steps are of lower order, so it converges with order 2 as well, from a smaller error.
    assert gaussian_error(SolverConfig("dpmpp_3m_sde", eta=0.0), 32) < gaussian_error(SolverConfig("dpmpp_2m"), 32) / 3


@pytest.mark.parametrize("kind", ["heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_solvers_turn_noise_into_the_data(kind: Kind, eta: float) -> None:
    """20000 independent signals must come out with the mean and deviation of the data, noise or none."""
    stream = NoiseStream(4, "test")
    levels = NoiseSchedule("karras", 60, 0.01, 40.0).sigmas()
    start = 2.0 + stream.normal((20_000,)) * np.float32(math.hypot(40.0, 0.5))
    config = SolverConfig(kind, eta=eta, churn=10.0 if eta and kind == "heun" else 0.0)
    final = solve(config, levels, gaussian(0.5, mean=2.0), start, lambda step: stream.normal((20_000,)))
    # Five standard errors of the mean (0.5 / sqrt(20000)) and of the deviation (the same / sqrt(2)), and 1.5 % for what
    # 60 steps of second order leave.
    assert float(final.mean()) == pytest.approx(2.0, abs=0.018)
    assert float(final.std()) == pytest.approx(0.5, abs=0.0125 + 0.0075)


def test_the_right_number_of_network_calls_and_steps() -> None:
    for kind in ("euler", "heun", "dpmpp_2m", "dpmpp_3m_sde"):
        calls: list[float] = []
        steps: list[int] = []

        def denoise(x: Array, sigma: float, calls: list[float] = calls) -> Array:
            calls.append(sigma)
            return x * 0.5

        config = SolverConfig(kind, eta=0.0)
        levels = NoiseSchedule("karras", 7).sigmas()
        start = np.ones((2, 3), dtype=np.float32)
        result = solve(config, levels, denoise, start, on_step=lambda step, x, d, steps=steps: steps.append(step))
        assert len(calls) == config.network_calls(7) and min(calls) > 0.0
        assert steps == list(range(7))
        assert result.shape == (2, 3) and result.dtype == np.float32
        np.testing.assert_array_equal(start, 1.0)


def test_noise_must_be_given_where_it_is_needed() -> None:
    start = np.ones(1, dtype=np.float32)
    for config in (SolverConfig("dpmpp_3m_sde"), SolverConfig("heun", churn=5.0)):
        assert config.needs_noise
        with pytest.raises(ConfigError, match="source of noise"):
            solve(config, np.array([2.0, 1.0, 0.0]), gaussian(1.0), start)
    assert not SolverConfig("dpmpp_2m").needs_noise
    assert not SolverConfig("dpmpp_2m_sde", eta=0.0).needs_noise


@pytest.mark.parametrize(
    "levels", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -1.0], [float("inf"), 1.0], [float("nan"), 0.0]]
)
def test_levels_that_do_not_descend_are_refused(levels: list[float]) -> None:
    with pytest.raises(ConfigError, match="descending"):
        solve(SolverConfig("euler"), np.array(levels), gaussian(1.0), np.ones(1, dtype=np.float32))


@pytest.mark.parametrize(
    "values", [{"kind": "rk4"}, {"eta": -1.0}, {"churn": -1.0}, {"kind": "dpmpp_2m", "churn": 1.0}]
)
def test_solver_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        SolverConfig(**{"kind": "heun", **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2)])
def test_integration_follows_a_known_flow(method: str, order: int) -> None:
    errors = []
    for steps in (16, 32):
        times = np.linspace(1.0, 0.0, steps + 1)  # descending, and the velocity depends on time
        found = integrate(lambda x, t: x * (2 * t), np.ones(1, dtype=np.float32), times, method)  # type: ignore[arg-type]
        errors.append(abs(float(found[0]) - math.exp(-1.0)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    with pytest.raises(ConfigError, match="midpoint"):
        integrate(lambda x, t: x, np.ones(1, dtype=np.float32), np.array([0.0, 1.0]), "rk4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finite times"):
        integrate(lambda x, t: x, np.ones(1, dtype=np.float32), np.array([0.0]))

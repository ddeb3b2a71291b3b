"""Schedules, scalings and guidance against recordings and against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy_transformer import NumpyTransformer

from voxedge.engines.errors import ConfigError
from voxedge.runtime.preconditioning import Preconditioning, guide
from voxedge.runtime.schedules import NoiseSchedule


@pytest.mark.parametrize("name", ["stable_dit", "stable_dit_adaln"])
def test_schedules_equal_the_recorded_ones(golden: Callable[[str], Path], name: str) -> None:
    folder = golden(name)
    recorded, edm = np.load(folder / "io.npz"), NumpyTransformer(folder / "checkpoint").edm
    steps = len(recorded["sigmas_karras"]) - 1
    found = NoiseSchedule("karras", steps, edm["sigma_min"], edm["sigma_max"], edm["rho"]).sigmas()
    # Recorded in float32, raised to the power rho: a few units of 6e-8 times rho.
    np.testing.assert_allclose(found, recorded["sigmas_karras"], rtol=3e-6)
    low, high = float(recorded["sigmas_polyexp"][-2]), float(recorded["sigmas_polyexp"][0])
    found = NoiseSchedule("polyexponential", steps, low, high, 1.0).sigmas()
    np.testing.assert_allclose(found, recorded["sigmas_polyexp"], rtol=3e-6)


@pytest.mark.parametrize("kind", ["karras", "polyexponential"])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_schedules_descend_from_the_highest_level_to_zero(kind: str, steps: int) -> None:
    levels = NoiseSchedule(kind, steps).sigmas()  # type: ignore[arg-type]
    assert levels.dtype == np.float64 and len(levels) == steps + 1
    assert (np.diff(levels) < 0).all() and levels[-1] == 0.0
    assert levels[0] == pytest.approx(80.0, rel=1e-12)
    if steps > 1:
        assert levels[-2] == pytest.approx(0.002, rel=1e-12)


@pytest.mark.parametrize(
    "values",
    [{"kind": "linear"}, {"steps": 0}, {"sigma_min": 0.0}, {"sigma_max": 0.001}, {"rho": 0.0}, {"sigma_max": math.inf}],
)
def test_schedule_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        NoiseSchedule(**{"kind": "karras", "steps": 4, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["stable_dit", "stable_dit_adaln"])
@pytest.mark.parametrize("objective", ["edm", "v"])
def test_denoised_signals_equal_the_recorded_ones(golden: Callable[[str], Path], name: str, objective: str) -> None:
    folder = golden(name)
    recorded, network = np.load(folder / "io.npz"), NumpyTransformer(folder / "checkpoint")
    condition = network.condition(recorded["tokens"], recorded["den_x"].shape[-1])
    sigma_data = network.edm["sigma_data"] if objective == "edm" else 1.0
    scaled = Preconditioning(objective, sigma_data)  # type: ignore[arg-type]
    expected = recorded["den_out" if objective == "edm" else "v_den_out"]
    for x, sigma, wanted in zip(recorded["den_x"], recorded["den_sigma"], expected, strict=True):
        found = scaled.denoise(lambda y, t: network(y, t, condition), x, sigma)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
@pytest.mark.parametrize("scaled", [Preconditioning("edm", 0.5), Preconditioning("edm"), Preconditioning("v")])
def test_input_and_target_have_unit_variance(scaled: Preconditioning, sigma: float) -> None:
    """Karras et al. 2022, eq. 114 and 117: that is what the factors were derived from."""
    factors, data = scaled.scalings(sigma), scaled.sigma_data
    assert factors.c_in**2 * (data**2 + sigma**2) == pytest.approx(1.0)
    target = ((1 - factors.c_skip) ** 2 * data**2 + factors.c_skip**2 * sigma**2) / factors.c_out**2
    assert target == pytest.approx(1.0)
    assert (factors.c_out > 0) == (scaled.objective == "edm")


def test_rectified_flow_walks_back_along_the_velocity() -> None:
    factors = Preconditioning("rectified_flow").scalings(0.25)
    assert (factors.c_skip, factors.c_out, factors.c_in, factors.c_noise) == (1.0, -0.25, 1.0, 0.25)
    signal, noise = np.float32([[3.0]]), np.float32([[-1.0]])
    noisy = 0.75 * signal + 0.25 * noise
    found = Preconditioning("rectified_flow").denoise(lambda x, t: noise - signal, noisy, 0.25)
    np.testing.assert_allclose(found, signal)


def test_levels_a_parametrisation_does_not_have_are_refused() -> None:
    for objective, sigma in (("edm", 0.0), ("v", -1.0), ("rectified_flow", 1.5)):
        with pytest.raises(ConfigError, match="expected a"):
            Preconditioning(objective).scalings(sigma)  # type: ignore[arg-type]
    for values in ({"objective": "eps"}, {"sigma_data": 0.0}, {"objective": "v", "sigma_data": 0.5}):
        with pytest.raises(ConfigError, match="expected"):
            Preconditioning(**{"objective": "edm", **values})  # type: ignore[arg-type]


def test_guidance_equals_the_recorded_one(golden: Callable[[str], Path]) -> None:
    recorded = np.load(golden("stable_dit_diffusers") / "io.npz")
    conditional, guided = recorded["out"], recorded["stock_cfg_out"]
    unconditional = (3.0 * conditional - guided) / 2.0  # not recorded; follows from guidance 3 without rescaling
    np.testing.assert_allclose(guide(conditional, unconditional, 3.0), guided, atol=2e-5)
    np.testing.assert_allclose(guide(conditional, unconditional, 3.0, 0.7), recorded["stock_cfg_phi_out"], atol=2e-5)


def test_guidance_at_the_ends_of_its_scale() -> None:
    rng = np.random.default_rng(0)
    given, free = rng.standard_normal((2, 2, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(guide(given, free, 1.0), given, atol=1e-6)
    np.testing.assert_array_equal(guide(given, free, 0.0), free)
    rescaled = guide(given, free, np.float64(4.0), 1.0)
    assert rescaled.dtype == np.float32
    np.testing.assert_allclose(rescaled.std(axis=-2, ddof=1), given.std(axis=-2, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(guide(np.ones_like(given), np.ones_like(given), 2.0, 0.5), 1.0)
    with pytest.raises(ConfigError, match="rescale_phi"):
        guide(given, free, 2.0, 1.5)
    with pytest.raises(ConfigError, match="two channels"):
        guide(given[..., :1, :], free[..., :1, :], 2.0, 0.5)

"""The diffusion transformer through the exported graph: network, denoiser, guidance, and every solver's path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from golden_graphs import Exported, read

from voxedge.engines.backend import Engine
from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.stable_audio import DitCheckpoint, load_dit
from voxedge.export.config import ExportConfig
from voxedge.export.diffusion_graphs import conditioner_plan, dit_plan
from voxedge.runtime.diffusion import DiffusionConfig, DiffusionDecoder
from voxedge.runtime.latents import nearest_indices
from voxedge.runtime.preconditioning import Preconditioning, guide
from voxedge.runtime.schedules import NoiseSchedule
from voxedge.runtime.solvers import SolverConfig, solve

# One call: FP32 rounding over a few layers of unit activations stays below 1e-5. A solver's path multiplies it: scaling
# the start by 1 + 1e-6 moves finals by up to 6e-5 (see the recordings), guidance by a few times more.
CALL = 1e-4
FINAL = 2e-3
GUIDED = 5e-3
# The recordings formed levels in float32: a base rounded to 6e-8, to the power rho of up to 7, a few operations.
SCHEDULE = 5e-6
LATENT_RATE = 50.0

Export = Callable[[GraphPlan], Exported]


class Loaded:
    """One checkpoint's graphs, recordings and settings."""

    def __init__(self, folder: Path, checkpoint: DitCheckpoint, export: Export) -> None:
        self.arrays, self.checkpoint = read(folder), checkpoint
        self.exported = export(dit_plan("dit", checkpoint, LATENT_RATE, ExportConfig()))
        self.network: Engine = self.exported.engine()
        self.conditioner: Engine = export(conditioner_plan("speech_conditioner", checkpoint.token_table)).engine()
        trained = checkpoint.diffusion
        self.preconditioning = Preconditioning(trained.objective, trained.sigma_data)

    def config(self, kind: str, steps: int, **changes: object) -> DiffusionConfig:
        """How the runtime decodes with this checkpoint."""
        trained = self.checkpoint.diffusion
        schedule = NoiseSchedule("karras", steps, trained.sigma_min, trained.sigma_max, trained.rho)
        solver = SolverConfig(kind, **{key: changes.pop(key) for key in ("eta",) if key in changes})
        return DiffusionConfig(self.preconditioning, schedule, solver, route=self.checkpoint.route, **changes)


@pytest.fixture(scope="module", params=["stable_dit", "stable_dit_adaln"])
def concat(request: pytest.FixtureRequest, golden: Callable[[str], Path], export: Export) -> Loaded:
    folder = golden(request.param)
    return Loaded(folder, load_dit(folder / "checkpoint"), export)


@pytest.fixture(scope="module", params=["checkpoint", "checkpoint_sat"])
def cross(request: pytest.FixtureRequest, golden: Callable[[str], Path], export: Export) -> Loaded:
    folder = golden("stable_dit_diffusers")
    return Loaded(folder, load_dit(folder / request.param), export)


def predict(loaded: Loaded, x: np.ndarray, time: np.ndarray, condition: np.ndarray) -> np.ndarray:
    rows = np.broadcast_to(condition, (len(x), *condition.shape[1:]))
    feeds = {"latents": x, "time": time, "concat": np.ascontiguousarray(rows)}
    return loaded.network.run(feeds)["prediction"]


def test_conditioning(concat: Loaded) -> None:
    arrays = concat.arrays
    embedded = concat.conditioner.run({"ids": arrays["tokens"].astype(np.int32)})["embeddings"].transpose(0, 2, 1)
    np.testing.assert_array_equal(embedded, arrays["cond"])
    for key in ("cond_up", "net_odd_cond_up"):
        frames = arrays[key].shape[-1]
        np.testing.assert_array_equal(embedded[..., nearest_indices(embedded.shape[-1], frames)], arrays[key])


def test_network(concat: Loaded) -> None:
    arrays = concat.arrays
    found = predict(concat, arrays["net_x"], arrays["net_t"], arrays["cond_up"])
    np.testing.assert_allclose(found, arrays["net_out"], atol=CALL, rtol=0)
    found = predict(concat, arrays["net_odd_x"], arrays["net_odd_t"], arrays["net_odd_cond_up"])
    np.testing.assert_allclose(found, arrays["net_odd_out"], atol=CALL, rtol=0)


def test_time_embedding_inside_the_graph(concat: Loaded, tmp_path: Path) -> None:
    """Two inner tensors, found by the readable names that the graph promises."""
    arrays, exported = concat.arrays, concat.exported
    model = onnx.load(exported.folder / exported.specs["portable"].path)
    inner = {"time_features": "/timestep_features/Concat:0", "time_embed": "/to_timestep_embed/2/Squeeze:0"}
    del model.graph.output[:]
    for name in inner.values():
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    path = tmp_path / "probed.onnx"
    onnx.save(model, path)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"latents": arrays["net_x"][:1], "time": np.array([0.3], np.float32), "concat": arrays["cond_up"]}
    for (key, _), found in zip(inner.items(), session.run(list(inner.values()), feeds), strict=True):
        np.testing.assert_allclose(found, arrays[key], atol=CALL, rtol=0, err_msg=key)


def test_denoiser_and_guidance(concat: Loaded) -> None:
    arrays, preconditioning = concat.arrays, concat.preconditioning
    velocity = Preconditioning("v")
    condition = arrays["cond_up"]

    def network(scaled: np.ndarray, time: float, condition: np.ndarray = condition) -> np.ndarray:
        return predict(concat, scaled, np.array([time], np.float32), condition)

    def guided(scaled: np.ndarray, time: float) -> np.ndarray:
        empty = network(scaled, time, np.zeros_like(condition))
        return guide(network(scaled, time), empty, float(arrays["cfg_scale"]))

    for row, sigma in enumerate(arrays["den_sigma"]):
        x = arrays["den_x"][row : row + 1]
        found = preconditioning.denoise(network, x, float(sigma))
        np.testing.assert_allclose(found, arrays["den_out"][row : row + 1], atol=FINAL, rtol=0)
        found = velocity.denoise(network, x, float(sigma))
        np.testing.assert_allclose(found, arrays["v_den_out"][row : row + 1], atol=FINAL, rtol=0)

        found = preconditioning.denoise(guided, x, float(sigma))
        np.testing.assert_allclose(found, arrays["cfg_den_out"][row : row + 1], atol=GUIDED, rtol=0)


@pytest.mark.parametrize(
    ("prefix", "kind"), [("heun", "heun"), ("dpmpp2m", "dpmpp_2m"), ("dpmpp3m_eta0", "dpmpp_3m_sde")]
)
def test_solver_states(concat: Loaded, prefix: str, kind: str) -> None:
    arrays = concat.arrays
    steps = len(arrays["sigmas_karras"]) - 1
    config = concat.config(kind, steps, eta=0.0)
    sigmas = config.schedule.sigmas()
    np.testing.assert_allclose(sigmas, arrays["sigmas_karras"], rtol=SCHEDULE)
    states: list[tuple[np.ndarray, np.ndarray]] = []

    def network(scaled: np.ndarray, time: float) -> np.ndarray:
        return predict(concat, scaled, np.array([time], np.float32), arrays["cond_up"])

    final = solve(
        config.solver,
        sigmas,
        lambda x, sigma: config.preconditioning.denoise(network, x, sigma),
        arrays["noise"] * np.float32(sigmas[0]),
        on_step=lambda step, x, denoised: states.append((x[0].copy(), denoised[0].copy())),
    )
    np.testing.assert_allclose(final, arrays[f"{prefix}_final"], atol=FINAL, rtol=0)
    for step, (x, denoised) in enumerate(states):
        # Early states are as large as their noise level: rounding there is relative.
        np.testing.assert_allclose(x, arrays[f"{prefix}_x"][step], atol=FINAL, rtol=1e-5)
        np.testing.assert_allclose(denoised, arrays[f"{prefix}_denoised"][step], atol=FINAL, rtol=0)


def test_decoder_finals(concat: Loaded) -> None:
    """The runtime's own decoder: bound buffers, guidance as one batch of two, given noise."""
    arrays = concat.arrays
    decoder = DiffusionDecoder(concat.conditioner, concat.network)
    tokens, noise = arrays["tokens"][0].astype(np.int32), arrays["noise"][0]
    steps, scale = len(arrays["sigmas_karras"]) - 1, float(arrays["cfg_scale"])
    wanted = {
        "heun_final": (concat.config("heun", steps), FINAL),
        "dpmpp2m_final": (concat.config("dpmpp_2m", steps), FINAL),
        "dpmpp3m_sde_final": (concat.config("dpmpp_3m_sde", steps, eta=1.0), GUIDED),
        "dpmpp2m_sde_final": (concat.config("dpmpp_2m_sde", steps, eta=1.0), GUIDED),
        "cfg_dpmpp2m_final": (concat.config("dpmpp_2m", steps, cfg_scale=scale), GUIDED),
        "cfg_heun_final": (concat.config("heun", steps, cfg_scale=scale), GUIDED),
    }
    for key, (config, tolerance) in wanted.items():
        found = decoder.decode(tokens, noise, config, lambda step: arrays["sde_noise"][step])
        np.testing.assert_allclose(found[None], arrays[key], atol=tolerance, rtol=0, err_msg=key)


def test_velocity_objective(concat: Loaded) -> None:
    arrays = concat.arrays
    decoder = DiffusionDecoder(concat.conditioner, concat.network)
    sigmas = arrays["sigmas_polyexp"]
    schedule = NoiseSchedule("polyexponential", len(sigmas) - 1, float(sigmas[-2]), float(sigmas[0]), 1.0)
    np.testing.assert_allclose(schedule.sigmas(), sigmas, rtol=1e-5)  # its ends were read from float32
    for key, kind in (("v_dpmpp2m_final", "dpmpp_2m"), ("v_dpmpp3m_eta0_final", "dpmpp_3m_sde")):
        config = DiffusionConfig(
            Preconditioning("v"), schedule, SolverConfig(kind, eta=0.0), route=concat.checkpoint.route
        )
        found = decoder.decode(arrays["tokens"][0].astype(np.int32), arrays["noise"][0], config)
        np.testing.assert_allclose(found[None], arrays[key], atol=FINAL, rtol=0, err_msg=key)


def test_cross_attention(cross: Loaded) -> None:
    arrays = cross.arrays
    embedded = cross.conditioner.run({"ids": arrays["tokens"].astype(np.int32)})["embeddings"]
    np.testing.assert_array_equal(embedded, arrays["encoder_hidden_states"])
    found = predict_cross(cross, arrays["x"], arrays["t"], embedded, slice(None))
    np.testing.assert_allclose(found, arrays["out"], atol=CALL, rtol=0)
    empty = predict_cross(cross, arrays["x"], arrays["t"], np.zeros_like(embedded), slice(None))
    for key, phi in (("stock_cfg_out", 0.0), ("stock_cfg_phi_out", 0.7)):
        np.testing.assert_allclose(guide(found, empty, 3.0, phi), arrays[key], atol=GUIDED, rtol=0, err_msg=key)


@pytest.mark.parametrize(("prefix", "kind"), [("heun", "heun"), ("dpmpp2m", "dpmpp_2m")])
def test_cross_attention_solvers(cross: Loaded, prefix: str, kind: str) -> None:
    arrays = cross.arrays
    config = cross.config(kind, len(arrays["sigmas_karras"]) - 1)
    sigmas = config.schedule.sigmas()
    np.testing.assert_allclose(sigmas, arrays["sigmas_karras"], rtol=SCHEDULE)

    def network(scaled: np.ndarray, time: float) -> np.ndarray:
        return predict_cross(cross, scaled, np.array([time], np.float32), arrays["encoder_hidden_states"][:1], slice(1))

    def guided(scaled: np.ndarray, time: float) -> np.ndarray:
        given = np.zeros_like(arrays["encoder_hidden_states"][:1])
        return guide(
            network(scaled, time), predict_cross(cross, scaled, np.array([time], np.float32), given, slice(1)), 3.0
        )

    states: list[tuple[np.ndarray, np.ndarray]] = []
    start = arrays["noise"] * np.float32(sigmas[0])
    final = solve(
        config.solver,
        sigmas,
        lambda x, sigma: config.preconditioning.denoise(network, x, sigma),
        start,
        on_step=lambda step, x, denoised: states.append((x[0].copy(), denoised[0].copy())),
    )
    np.testing.assert_allclose(final, arrays[f"{prefix}_final"], atol=FINAL, rtol=0)
    for step, (x, denoised) in enumerate(states):
        np.testing.assert_allclose(x, arrays[f"{prefix}_x"][step], atol=FINAL, rtol=1e-5)
        np.testing.assert_allclose(denoised, arrays[f"{prefix}_denoised"][step], atol=FINAL, rtol=0)
    if prefix == "dpmpp2m":
        config = replace(config, cfg_scale=3.0)
        final = solve(config.solver, sigmas, lambda x, sigma: config.preconditioning.denoise(guided, x, sigma), start)
        np.testing.assert_allclose(final, arrays["cfg3_dpmpp2m_final"], atol=GUIDED, rtol=0)


def predict_cross(loaded: Loaded, x: np.ndarray, time: np.ndarray, context: np.ndarray, rows: slice) -> np.ndarray:
    given = loaded.arrays["global_hidden_states"][rows, 0]
    return loaded.network.run({"latents": x, "time": time, "context": context, "global": given})["prediction"]

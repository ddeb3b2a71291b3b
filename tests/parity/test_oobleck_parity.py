"""The vocoder through the exported graphs: decoding, encoding, padding, and chunks equal to the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden_graphs import Exported, read

from voxedge.engines.backend import Engine
from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.oobleck import VaeCheckpoint
from voxedge.export.checkpoint.stable_audio import load_vae
from voxedge.export.config import ExportConfig
from voxedge.export.diffusion_graphs import vae_plans
from voxedge.runtime.latents import ChunkedDecoder, decoded_length

# FP32 rounding through some thirty convolutions and snakes of samples of magnitude 1 to 5.
AUDIO = 5e-4


class Loaded:
    """One checkpoint's graphs and recordings."""

    def __init__(self, folder: Path, export: Callable[[GraphPlan], Exported]) -> None:
        self.arrays = read(folder)
        self.checkpoint: VaeCheckpoint = load_vae(folder / "checkpoint")
        plans = {plan.name: plan for plan in vae_plans(self.checkpoint, ExportConfig())}
        self.decoder: Engine = export(plans["vae_decoder"]).engine()
        self.encoder: Engine = export(plans["vae_encoder"]).engine()


@pytest.fixture(scope="module", params=["oobleck", "oobleck_odd", "oobleck_diffusers"])
def loaded(
    request: pytest.FixtureRequest, golden: Callable[[str], Path], export: Callable[[GraphPlan], Exported]
) -> Loaded:
    return Loaded(golden(request.param), export)


def test_decode(loaded: Loaded) -> None:
    names = [name for name in loaded.arrays if name.startswith("z_")]
    pairs = [(name, f"audio_{name.removeprefix('z_')}") for name in names]
    if "long_z" in loaded.arrays:
        pairs.append(("long_z", "long_audio"))
    assert names
    for latents, audio in pairs:
        found = loaded.decoder.run({"latents": loaded.arrays[latents]})["audio"]
        frames = loaded.arrays[latents].shape[-1]
        assert found.shape[-1] == decoded_length(frames, loaded.checkpoint.decoder.strides)
        np.testing.assert_allclose(found, loaded.arrays[audio], atol=AUDIO, rtol=0, err_msg=latents)


def test_encode(loaded: Loaded) -> None:
    names = [name for name in loaded.arrays if name.startswith("enc_audio_")]
    assert names
    for name in names:
        found = loaded.encoder.run({"audio": loaded.arrays[name]})["moments"]
        length = name.removeprefix("enc_audio_")
        np.testing.assert_allclose(found, loaded.arrays[f"enc_out_{length}"], atol=AUDIO, rtol=0, err_msg=name)
        if f"enc_mean_{length}" in loaded.arrays:
            mean = found[:, : loaded.checkpoint.latent_dim]
            np.testing.assert_allclose(mean, loaded.arrays[f"enc_mean_{length}"], atol=AUDIO, rtol=0, err_msg=name)


def test_encode_padded(loaded: Loaded) -> None:
    if "enc_pad_in" not in loaded.arrays:
        pytest.skip("the case records no padding")
    audio, hop = loaded.arrays["enc_pad_in"], loaded.checkpoint.decoder.hop
    padded = np.pad(audio, ((0, 0), (0, 0), (0, -audio.shape[-1] % hop)))
    found = loaded.encoder.run({"audio": padded})["moments"]
    np.testing.assert_allclose(found, loaded.arrays["enc_pad_out"], atol=AUDIO, rtol=0)


@pytest.mark.parametrize(("chunk", "sizes"), [(5, (1, 7, 2)), (16, (44,)), (3, (11, 1, 1, 5))])
def test_chunks_equal_the_whole(loaded: Loaded, chunk: int, sizes: tuple[int, ...]) -> None:
    """Overlap from the receptive field: equal to the whole but for the rounding of other convolution blockings."""
    latents = loaded.arrays.get("long_z")
    if latents is None:
        latents = max(
            (array for name, array in loaded.arrays.items() if name.startswith("z_")), key=lambda a: a.shape[-1]
        )
    latents = latents[0]
    config = loaded.checkpoint.decoder
    chunked = ChunkedDecoder(
        lambda window: loaded.decoder.run({"latents": np.ascontiguousarray(window)[None]})["audio"][0],
        config.strides,
        chunk,
        config.audio_channels,
    )
    edges = [0, *np.cumsum(sizes).clip(max=latents.shape[-1]).tolist(), latents.shape[-1]]
    parts = [
        chunked.push(latents[:, start:stop], final=number == len(edges) - 2)
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
    ]
    whole = loaded.decoder.run({"latents": latents[None]})["audio"][0]
    np.testing.assert_allclose(np.concatenate(parts, -1), whole, atol=1e-5, rtol=0)

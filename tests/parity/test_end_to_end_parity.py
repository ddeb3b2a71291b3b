"""The whole system from a checkpoint folder through one exported bundle: prompt, tokens, latents, sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden_graphs import read

from voxedge.engines.bundle import Bundle
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.diffusion import DiffusionDecoder
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.sampling import Sampler, SamplingConfig
from voxedge.runtime.systems.base import Utterance
from voxedge.runtime.systems.moe_tts import CONDITIONER, DENOISER, MoeTts

LATENTS = 1e-3
SCHEDULE = 5e-6  # the recording formed the levels in float32, to the power rho
AUDIO = 5e-3  # latents at their tolerance, through a decoder that amplifies them a few times


@pytest.fixture(scope="module")
def case(golden: Callable[[str], Path]) -> Path:
    return golden("moetts_e2e")


@pytest.fixture(scope="module")
def bundle(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(case / "checkpoint", tmp_path_factory.mktemp("e2e") / "bundle", ExportConfig())


@pytest.fixture(scope="module")
def loader(bundle: Bundle) -> GraphLoader:
    return GraphLoader(bundle, LoadOptions("cpu"))


@pytest.fixture(scope="module")
def system(bundle: Bundle, loader: GraphLoader) -> MoeTts:
    return MoeTts(bundle, loader)


def utterance(arrays: dict[str, np.ndarray], minimum: int, maximum: int) -> Utterance:
    user = str(arrays["prompt_text"]).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    description, text = user.split("\n", 1)
    sampling = SamplingConfig(temperature=0.0, min_tokens=minimum, max_tokens=maximum)
    return Utterance(text, SynthesisConfig(sampling), seed=0, description=description)


def test_prompt_and_tokens(case: Path, system: MoeTts) -> None:
    arrays = read(case)
    expected = arrays["zeroshot_tokens"].tolist()
    # The end comes right behind the recorded tokens, so a ban until there changes nothing but a too early end.
    request = utterance(arrays, minimum=len(expected), maximum=len(expected) + 8)
    runs = system.prompt(request)
    assert [run.is_speech for run in runs] == [False]
    assert list(runs[0].ids) == arrays["prompt_ids"].tolist()
    speech = system.settings.speech
    sampler = Sampler(request.config.sampling, speech.eos_column, slice(0, speech.num_tokens), NoiseStream(0, "tokens"))
    assert list(system.tokens(request, sampler)) == expected
    assert sampler.finish_reason == "stop"


@pytest.mark.parametrize(("name", "solver"), [("zeroshot", "dpmpp_2m"), ("cont", "heun")])
def test_latents_and_sound(case: Path, system: MoeTts, loader: GraphLoader, name: str, solver: str) -> None:
    arrays = read(case)
    options = SynthesisConfig(steps=len(arrays["sigmas"]) - 1, cfg_scale=float(arrays["cfg_scale"]), solver=solver)
    config = system.diffusion_config(options)
    np.testing.assert_allclose(config.schedule.sigmas(), arrays["sigmas"], rtol=SCHEDULE)
    decoder = DiffusionDecoder(loader.load(CONDITIONER), loader.load(DENOISER))
    latents = decoder.decode(arrays[f"{name}_tokens"].astype(np.int32), arrays[f"{name}_noise"][0], config)
    # The recording divides random-weight latents by their deviation before the vocoder; so does this test.
    latents = latents / latents.std(ddof=1)
    np.testing.assert_allclose(latents[None], arrays[f"{name}_latents"], atol=LATENTS, rtol=0)
    audio = system.decode_latents(latents)[None]
    np.testing.assert_allclose(audio, arrays[f"{name}_audio"], atol=AUDIO, rtol=0)
    if name == "cont":
        hop = int(np.prod(system.settings.vocoder.strides))
        per_token = round(system.sample_rate / hop / system.settings.speech.frame_rate)
        cut = per_token * len(arrays["cont_prompt_speech_tokens"]) * hop
        np.testing.assert_allclose(audio[..., cut:], arrays["cont_audio_trimmed"], atol=AUDIO, rtol=0)

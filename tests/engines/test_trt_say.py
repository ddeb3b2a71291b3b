"""The whole way from a text to samples on the double of each TensorRT, beside ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trt_double import VERSIONS, CudaDouble, install

from voxedge.engines.bundle import Bundle
from voxedge.engines.loader import BackendName, MemoryPlan
from voxedge.engines.trt.builder import BuildConfig, build_bundle
from voxedge.runtime.synthesizer import Synthesizer

DEVICES: dict[str, Callable[[], CudaDouble]] = {
    "10.3": CudaDouble,
    "10.13": lambda: CudaDouble("Thor", 110),
    "11.4": lambda: CudaDouble("NVIDIA GeForce RTX 4090", 89, 24 << 30, integrated=False),
    "rtx-1.7": lambda: CudaDouble("NVIDIA GeForce RTX 4090", 89, 24 << 30, integrated=False),
}
TEXT = "Hello there."
# Both run the same FP32 operators on the CPU, the portable ones beside fused attention: what is left is rounding, which
# the golden end-to-end test bounds by the same number for the sound of a whole utterance.
AUDIO = 5e-3


Spoken = tuple[tuple[int, ...], np.ndarray]
"""Tokens and samples."""


def speak(
    path: Path, backend: BackendName, memory: MemoryPlan = "auto", times: int = 1
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    with Synthesizer.from_pretrained(path, backend=backend, memory=memory, threads=1) as voice:
        config = voice.default_config
        sampling = replace(config.sampling, min_tokens=12, max_tokens=16)
        config = replace(config, sampling=sampling, steps=6)
        found = [voice.synthesize(TEXT, seed=3, config=config) for _ in range(times)]
        assert voice.backend == backend
    return [(audio.speech_tokens, audio.samples) for audio in found]


@pytest.fixture(scope="module")
def expected(fp32_bundle: Path) -> Spoken:
    return speak(fp32_bundle, "cpu")[0]


@pytest.mark.parametrize(
    ("version", "memory"), [*((version, "resident") for version in VERSIONS), ("10.3", "staged"), ("rtx-1.7", "staged")]
)
def test_the_same_tokens_and_sound(
    version: str,
    memory: MemoryPlan,
    expected: Spoken,
    fp32_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = DEVICES[version]()
    install(monkeypatch, version, cuda)
    path = shutil.copytree(fp32_bundle, tmp_path / "bundle", copy_function=shutil.copyfile)
    target = "rtx" if version.startswith("rtx") else "trt"
    assert all(record.built for record in build_bundle(Bundle.open(path), BuildConfig(target=target)))
    backend: BackendName = "tensorrt_rtx" if target == "rtx" else "tensorrt"
    for tokens, samples in speak(path, backend, memory, times=2):
        assert tokens == expected[0]
        np.testing.assert_allclose(samples, expected[1], atol=AUDIO, rtol=0)
    assert cuda.launches > 0
    kinds = {kind for kind, _ in cuda.copies}
    assert ("to device" in kinds) is True
    assert cuda.used == 0
    assert cuda.graphs == 0

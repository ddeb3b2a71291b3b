"""`verify --backend` on the TensorRT double: figures as on the CPU, and a failure where an engine computes less."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from trt_double import CudaDouble, install
from trt_double.running import ICudaEngine

from voxedge.calibration.speaking import Probe
from voxedge.calibration.verify import VerifyConfig, verify_bundle
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, EngineMismatchError
from voxedge.engines.trt.builder import build_bundle
from voxedge.engines.trt.config import BuildConfig
from voxedge.runtime.cli.main import main

CONFIG = VerifyConfig(probes=(Probe("Hello.", min_tokens=8, max_tokens=8, steps=2),), backend="tensorrt")


@pytest.fixture
def bundle(fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch, "10.3", CudaDouble())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(fp32_bundle, tmp_path / "bundle", copy_function=shutil.copyfile))


def test_engines_beside_the_cpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_bundle(Bundle.open(bundle), BuildConfig(target="trt"))
    report = verify_bundle(bundle, config=CONFIG)
    assert report.passed, report.failures
    assert {graph.flavour for graph in report.graphs} == {"portable"}
    assert all(graph.against == "portable" and graph.worst.snr_db > 100 for graph in report.graphs)
    assert any("run on tensorrt" in note for note in report.notes)
    run = ICudaEngine._run

    def coarse(self: ICudaEngine, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = run(self, feeds)
        return {name: np.asarray(array * np.float32(1.001), array.dtype) for name, array in found.items()}

    monkeypatch.setattr(ICudaEngine, "_run", coarse)
    report = verify_bundle(bundle, bundle, config=CONFIG)
    assert not report.passed
    assert any("graph dit" in failure and "60.0 dB" in failure for failure in report.failures)


def test_missing_engines_are_said_before_anything_is_spoken(bundle: Path) -> None:
    with pytest.raises(EngineMismatchError, match="not built yet"):
        verify_bundle(bundle, config=CONFIG)
    assert main(["verify", str(bundle), "--backend", "tensorrt", "--recogniser", "none"]) == 6
    assert not (bundle / "reports/verify.json").exists()


def test_a_backend_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="CUDAExecutionProvider"):
        verify_bundle(bundle, config=VerifyConfig(probes=CONFIG.probes, backend="cuda"))

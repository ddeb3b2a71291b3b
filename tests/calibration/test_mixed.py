"""Mixed precision from end to end on the small voice: searched, written, verified, marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxedge.calibration.mixed import MixedConfig, quantise_mixed
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.sensitivity import SENSITIVITY_REPORT, read_sensitivity
from voxedge.calibration.speaking import Probe
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import ConfigError, InputError
from voxedge.engines.gate import Gate
from voxedge.engines.readiness import readiness
from voxedge.runtime.cli.main import main

SHORT = MixedConfig(probes=(Probe(max_tokens=40),), rounds=1)
# Every graph of the small voice reaches 10 dB with INT8 weights at once: one version of each; the search itself
# is tested on a smaller graph.
CONFIG = QuantiseConfig("mixed", base="int8-weight", min_snr_db=10.0)


def test_a_bundle_that_reaches_its_target_is_ready(fp32_bundle: Path, tmp_path: Path) -> None:
    steps: set[str] = set()
    made = quantise_mixed(
        fp32_bundle, tmp_path / "mixed", CONFIG, None, SHORT, lambda step, done, total: steps.add(step)
    )
    assert made.verification.report.passed, made.verification.report.failures
    bundle = Bundle.open(tmp_path / "mixed", verify_hashes=True)
    assert readiness(bundle).state == "ready"
    assert bundle.manifest.gate == Gate(min_graph_snr_db=10.0)
    assert SENSITIVITY_REPORT in bundle.manifest.files
    assert read_sensitivity(bundle) == made.sensitivity
    assert {graph.graph for graph in made.sensitivity.graphs} == {graph.name for graph in bundle.manifest.graphs}
    assert all(graph.chosen_snr_db >= 10.0 for graph in made.sensitivity.graphs)
    assert {"speaking with the reference", "speaking", "comparing graphs"} <= steps


def test_only_fp32_is_searched_and_only_with_a_target(fp32_bundle: Path, fp16_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an FP32 bundle to search with, found fp16"):
        quantise_mixed(fp16_bundle, tmp_path / "mixed", CONFIG, None, SHORT)
    with pytest.raises(ConfigError, match="give --min-snr"):
        quantise_mixed(fp32_bundle, tmp_path / "mixed", QuantiseConfig("mixed"), None, SHORT)
    with pytest.raises(ConfigError, match="expected --precision mixed for --min-snr"):
        QuantiseConfig("int8", min_snr_db=25.0)
    assert not (tmp_path / "mixed").exists()


def test_the_command_line_refuses_a_target_without_mixed(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["quantise", str(fp32_bundle), "-o", str(tmp_path / "out"), "--precision", "int8-weight", "--min-snr", "25"]
    assert main(argv) == 1
    assert "expected --precision mixed for --min-snr" in capsys.readouterr().err

"""Exporting what must be heard first: exported at FP32, calibrated with the user's lines, quantised, in one command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.sets import CalibrationSet, Line
from voxedge.calibration.speaking import Probe
from voxedge.calibration.verify import VerifyConfig, record, verify
from voxedge.engines.bundle import Bundle
from voxedge.engines.readiness import readiness
from voxedge.export.config import ExportConfig
from voxedge.export.quantised import export_calibrated
from voxedge.runtime.cli.main import main

LINE = {"text": "Good morning.", "description": "A calm voice.", "seed": 7}
# INT8 activations where one line is enough for a model of random weights: its experts and its encoder need more.
RULES = ("--layer", "*_expert:*/MatMul=int8-weight", "--layer", "vae_encoder:*=int8-weight")


def export(checkpoint: Path, output: Path, *options: str) -> int:
    return main(["export", str(checkpoint), "-o", str(output), "--precision", "int8", *options])


def test_one_line_of_ones_own(
    golden: Callable[[str], Path], fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "mine.jsonl"
    lines.write_text(json.dumps(LINE))
    folder = tmp_path / "out"
    checkpoint = golden("moetts_e2e") / "checkpoint"
    # Which form the CPU gets is measured in a test of its own.
    assert export(checkpoint, folder / "int8", "--calibrate", str(lines), "--cpu-form", "integer", *RULES) == 0
    assert "has 1 line: ranges seen in so little speech may be too narrow" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["int8"]  # the FP32 bundle and the statistics are gone
    bundle = Bundle.open(folder / "int8", verify_hashes=True)
    assert {graph.precision for graph in bundle.manifest.graphs} == {"int8"}
    for graph, path, precision in (
        ("dit", "/transformer/layers.0/self_attn/to_out/MatMul", "int8"),
        ("vae_decoder", "/layers.0/Conv", "int8"),
        ("speech_expert", "/head/MatMul", "int8-weight"),
    ):
        assert bundle.manifest.graph(graph).layers[path].precision == precision
    notes = json.loads(bundle.path("reports/quantise.json").read_text())["statistics"]
    assert (notes["set_name"], notes["lines"]) == (str(lines), 1)
    found = verify(bundle.root, fp32_bundle, config=VerifyConfig(probes=(Probe(max_tokens=40),)))
    assert found.report.passed, found.report.failures
    record(found)
    assert readiness(Bundle.open(bundle.root, verify_hashes=True)).state == "ready"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b'{"text": "caf\xe9"}', "line 1: expected UTF-8"),
        (b'{"text": "One."}\n{"txet": "Two."}', "line 2"),
    ],
)
def test_a_bad_file_is_found_before_anything_is_exported(
    content: bytes, message: str, golden: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "mine.jsonl"
    lines.write_bytes(content)
    assert export(golden("moetts_e2e") / "checkpoint", tmp_path / "int8", "--calibrate", str(lines)) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [lines]


def test_activations_that_nobody_calibrates(
    golden: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = golden("moetts_e2e") / "checkpoint"
    assert export(checkpoint, tmp_path / "int8", "--activations", "fp16", "--calibrate", "short") == 1
    assert "expected --activations fp32 for int8, found fp16" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_four_bits_beside_fp16_are_scaled_by_what_fp32_said(
    fp32_bundle: Path, fp16_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both bundles were exported before; one line of speech, four bits with regard to it."""
    exported = {"fp32": fp32_bundle, "fp16": fp16_bundle}

    def export_again(checkpoint: Path, output: Path, config: ExportConfig, on_progress: object) -> Bundle:
        assert (config.quantise, config.overwrite) == (None, False)
        shutil.copytree(exported[config.precision], output)
        return Bundle.open(output)

    monkeypatch.setattr("voxedge.export.quantised.export_checkpoint", export_again)
    lines, four = CalibrationSet("one", (Line(**LINE),)), QuantiseConfig("int4-weight")
    bundle = export_calibrated(tmp_path, tmp_path / "out" / "int4", ExportConfig(precision="fp16"), four, lines)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["int4"]
    notes = json.loads(bundle.path("reports/quantise.json").read_text())
    assert notes["statistics"]["set_name"] == "one"
    smoothing = {graph["graph"]: graph["smoothing"] for graph in notes["graphs"]}
    # Of three layers: what enters q, k, v; o; gate, up; down; and the head.
    assert len(smoothing["speech_expert"]) == 4 * 3 + 1
    gains = {item["value"]: item["gain_db"] for item in smoothing["speech_expert"] if "alpha" in item}
    assert len(gains) > 3
    assert all(gain > 0 for gain in gains.values())
    found = verify(bundle.root, fp32_bundle, config=VerifyConfig(probes=(Probe(max_tokens=40),)))
    assert all(graph.finite == 1.0 for graph in found.report.graphs)
    # The random experts are too rough for four bits, whatever their scales; the transformer is not.
    assert not [failure for failure in found.report.failures if "graph dit" in failure]

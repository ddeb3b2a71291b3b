"""Sound bundles pass, and whatever is broken on purpose is found and named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from voxedge.calibration.gate import GATES, Gate, difference_failures, gate_of, graph_failures, speech_failures
from voxedge.calibration.metrics import TensorDifference
from voxedge.calibration.report import GraphReport, SpeechDifference, SpeechReport, VerifyReport
from voxedge.calibration.verify import verify_bundle
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, ConfigError, InputError, MissingResourceError
from voxedge.engines.files import hash_file
from voxedge.engines.manifest import MANIFEST_NAME
from voxedge.runtime.cli.main import main


def keys(report: VerifyReport) -> set[tuple[str, str]]:
    return {(graph.name, graph.flavour) for graph in report.graphs}


def copy(bundle: Path, target: Path) -> Path:
    shutil.copytree(bundle, target)
    return target


def damage(root: Path, graph: str, tensor: str, value: float | None) -> None:
    """Shift the rows of one weight, or fill it with a value, and write the new hash into the manifest."""
    spec = Bundle.open(root).manifest.graph(graph)
    model = onnx.load(str(root / spec.path), load_external_data=False)
    found = next(item for item in model.graph.initializer if item.name == tensor)
    places = {entry.key: entry.value for entry in found.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(found.data_type)
    weights = np.memmap(root / spec.data, dtype, "r+", int(places.get("offset", 0)), tuple(found.dims))
    weights[:] = np.roll(weights, 1, axis=0) if value is None else value
    weights.flush()
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["files"][spec.data]["sha256"] = hash_file(root / spec.data)
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))


def last_matrix(root: Path, graph: str) -> str:
    """A weight in the middle of a graph, so that what comes before it stays right."""
    model = onnx.load(str(root / Bundle.open(root).manifest.graph(graph).path), load_external_data=False)
    large = [item.name for item in model.graph.initializer if len(item.dims) > 1 and item.dims[0] > 1]
    return large[len(large) // 2]


def test_the_reference_itself_passes(fp32_bundle: Path) -> None:
    report = verify_bundle(fp32_bundle)
    assert report.passed, report.failures
    graphs = Bundle.open(fp32_bundle).manifest.graphs
    assert keys(report) == {(graph.name, graph.flavour) for graph in graphs}
    fused = [graph for graph in report.graphs if graph.flavour == "ort"]
    assert fused
    assert all(graph.against == "portable" and graph.outputs for graph in fused)
    assert report.speech is not None
    assert report.speech.tokens > 0
    assert report.difference is None
    json.dumps(report.to_json(), allow_nan=False)


def test_fp16_passes_beside_fp32(fp16_bundle: Path, fp32_bundle: Path) -> None:
    steps: list[str] = []
    report = verify_bundle(fp16_bundle, fp32_bundle, lambda step, done, total: steps.append(step))
    for graph in report.graphs:
        print(graph.name, graph.flavour, graph.against, graph.worst)  # noqa: T201 - the measured table, with pytest -s
    assert report.passed, report.failures
    beside = [graph for graph in report.graphs if graph.against == "reference"]
    assert {(graph.name, graph.flavour) for graph in beside} == keys(report)
    # It is a comparison of two precisions, not of one bundle with itself: FP16 products cannot reach 120 dB. The
    # embedding is a table that may be stored exactly.
    assert all(graph.worst and graph.worst.snr_db < 120.0 for graph in beside if graph.name != "speech_conditioner")
    assert report.difference is not None
    assert report.difference.log_spectral_distance_db > 0.0
    assert set(steps) == {"checking files", "speaking", "comparing graphs"}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_bundle_beside_itself_is_equal(fp32_bundle: Path) -> None:
    difference = verify_bundle(fp32_bundle, fp32_bundle).difference
    assert difference == SpeechDifference(True, None, 1.0, 200.0, 200.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "graph", ["text_expert", "speech_expert", "speech_conditioner", "dit", "vae_decoder", "vae_encoder"]
)
def test_one_damaged_weight_is_found_and_named(graph: str, fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "damaged")
    damage(root, graph, last_matrix(root, graph), None)
    report = verify_bundle(root, fp32_bundle)
    named = [failure for failure in report.failures if failure.startswith("graph ")]
    assert named
    assert all(failure.startswith(f"graph {graph} (") for failure in named)
    assert "dB of signal to noise against the reference" in named[0]


def test_a_flipped_byte_is_found_by_its_hash(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "flipped")
    data = root / Bundle.open(root).manifest.graph("dit").data
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=rf"{data.name}: expected sha256"):
        verify_bundle(root)
    with pytest.raises(BundleError, match=rf"{data.name}: expected sha256"):
        verify_bundle(fp32_bundle, root)


@pytest.mark.parametrize("graph", ["speech_expert", "dit", "vae_decoder"])
def test_not_a_number_is_found_without_a_reference(graph: str, fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "nan")
    damage(root, graph, last_matrix(root, graph), float("nan"))
    report = verify_bundle(root)
    assert not report.passed
    assert any(line.startswith(f"graph {graph} (portable") and "NaN" in line for line in report.failures)
    assert any(line.startswith("the bundle cannot speak: ") for line in report.failures)
    assert report.speech is None
    json.dumps(report.to_json(), allow_nan=False)


def test_a_reference_that_cannot_speak_is_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "nan")
    damage(root, "dit", last_matrix(root, "dit"), float("nan"))
    with pytest.raises(InputError, match="expected a reference that speaks"):
        verify_bundle(fp32_bundle, root)


def test_a_reference_of_other_settings_is_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "other")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["settings"]["max_context"] += 1
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"both differ in settings\.max_context;"):
        verify_bundle(fp32_bundle, root)


def test_a_reference_from_other_files_is_noted(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "other")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["source"] = {}
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    report = verify_bundle(fp32_bundle, root)
    assert report.passed
    assert "other files" in report.notes[0]


def test_a_graph_that_cannot_be_loaded_is_named(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "unreadable")
    spec = Bundle.open(root).manifest.graph("speech_expert", "portable")  # the runtime itself takes the other flavour
    (root / spec.path).write_bytes(b"no graph")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["files"][spec.path] = {"sha256": hash_file(root / spec.path), "size": 8}
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    report = verify_bundle(root)
    assert [line.partition(": ")[0] for line in report.failures] == ["graph speech_expert (portable, fp32)"]
    assert report.speech is not None


def test_nothing_there_is_a_missing_resource(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError):
        verify_bundle(tmp_path / "nothing")


def test_the_command_line_exits_with_5_for_a_damaged_bundle(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(fp32_bundle, tmp_path / "damaged")
    damage(root, "vae_decoder", last_matrix(root, "vae_decoder"), None)
    argv = ["verify", str(root), "--reference", str(fp32_bundle), "--report", str(tmp_path / "report.json")]
    assert main(argv) == 5
    assert "graph vae_decoder (portable, fp32): expected at least" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False
    assert main(["verify", str(fp32_bundle)]) == 0


# the gate alone

GATE = Gate(
    min_graph_snr_db=30.0,
    min_flavour_snr_db=27.0,
    min_token_agreement=0.9,
    max_log_spectral_distance_db=2.0,
    max_loudness_difference_db=0.5,
)
SPEECH = SpeechReport(1.0, 25, "stop", -20.0, 0.5, 0.0, silent=False)
DIFFERENCE = SpeechDifference(True, None, 0.9, 50.0, 40.0, 2.0, -0.5, 0.0)


def graph_report(against: str | None, *snr_db: float, broken: tuple[str, ...] = ()) -> GraphReport:
    outputs = tuple(TensorDifference(f"y{place}", snr, 1.0, 0.0, 1.0) for place, snr in enumerate(snr_db))
    return GraphReport("tiny", "ort", "fp16", 1, 0.5 if broken else 1.0, broken, against, outputs)  # type: ignore[arg-type]


def test_limits_themselves_pass() -> None:
    assert graph_failures(graph_report("reference", 30.0), GATE) == []
    assert graph_failures(graph_report("portable", 27.0), GATE) == []
    assert graph_failures(graph_report(None), GATE) == []
    assert difference_failures(DIFFERENCE, GATE) == []
    assert speech_failures(SPEECH, SPEECH, GATE) == []


def test_failures_say_which_graph_and_output() -> None:
    (low,) = graph_failures(graph_report("reference", 40.0, 12.34, 29.9), GATE)
    assert low == (
        "graph tiny (ort, fp16): expected at least 30 dB of signal to noise against the reference, found 12.3 dB; "
        "2 of 3 outputs are below, the worst are y1, y2"
    )
    (flavour,) = graph_failures(graph_report("portable", 26.9), GATE)
    assert "against its portable flavour, found 26.9 dB" in flavour
    (broken,) = graph_failures(graph_report("reference", -200.0, broken=("a", "b", "c", "d", "e")), GATE)
    assert broken == "graph tiny (ort, fp16): expected numbers, found 50 % NaN or infinity, in a, b, c and 2 more"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_agreement": 0.89}, "most likely token"),
        ({"log_spectral_distance_db": 2.1}, "log-spectral distance"),
        ({"loudness_difference_db": -0.6}, "loudness"),
        ({"loudness_difference_db": 0.6}, "loudness"),
    ],
)
def test_speech_beside_the_reference_has_limits(change: dict[str, float], words: str) -> None:
    (failure,) = difference_failures(dataclasses.replace(DIFFERENCE, **change), GATE)  # type: ignore[arg-type]
    assert words in failure


def test_silence_fails_and_clipping_only_beyond_the_reference() -> None:
    silent = dataclasses.replace(SPEECH, silent=True, peak=0.0)
    assert "found silence" in speech_failures(silent, None, GATE)[0]
    clipped = dataclasses.replace(SPEECH, clipped_fraction=0.3)
    assert speech_failures(clipped, None, GATE) == []
    assert speech_failures(clipped, dataclasses.replace(SPEECH, clipped_fraction=0.29), GATE) == []
    assert "beyond full scale" in speech_failures(clipped, dataclasses.replace(SPEECH, clipped_fraction=0.28), GATE)[0]


def test_a_bundle_of_several_precisions_has_the_gate_of_the_coarsest() -> None:
    assert gate_of(["fp32", "fp16"], GATES) is GATES["fp16"]
    with pytest.raises(ConfigError, match="found int3"):
        gate_of(["fp32", "int3"], GATES)

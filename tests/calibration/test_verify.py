"""Sound bundles pass, and whatever is broken on purpose is found and named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from voxedge.calibration.gate import (
    GATES,
    difference_checks,
    gate_of,
    graph_checks,
    graph_failures,
    silence_failures,
    word_checks,
    words_note,
)
from voxedge.calibration.metrics import TensorDifference
from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.recogniser import WordErrors
from voxedge.calibration.report import Check, GraphReport, SpeechDifference, SpeechReport, VerifyReport, pool
from voxedge.calibration.speaking import Probe
from voxedge.calibration.verify import VerifyConfig, record, verify, verify_bundle
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, ConfigError, InputError, MissingResourceError
from voxedge.engines.files import hash_file
from voxedge.engines.gate import Gate
from voxedge.engines.manifest import MANIFEST_NAME
from voxedge.engines.readiness import readiness
from voxedge.runtime.cli.main import main

SHORT = VerifyConfig(probes=(Probe(max_tokens=40),))
TWO = VerifyConfig(probes=(Probe(max_tokens=40), Probe("Good news.", "A man.", 3, max_tokens=40)))


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
    report = verify_bundle(fp32_bundle, config=SHORT)
    assert report.passed, report.failures
    graphs = Bundle.open(fp32_bundle).manifest.graphs
    assert keys(report) == {(graph.name, graph.flavour) for graph in graphs}
    fused = [graph for graph in report.graphs if graph.flavour == "ort"]
    assert fused
    assert all(graph.against == "portable" and graph.outputs for graph in fused)
    (said,) = report.utterances
    assert said.speech.tokens > 0
    assert (said.reference, said.difference, report.difference) == (None, None, None)
    json.dumps(report.to_json(), allow_nan=False)


def test_fp16_passes_beside_fp32(fp16_bundle: Path, fp32_bundle: Path) -> None:
    steps: list[str] = []
    report = verify_bundle(fp16_bundle, fp32_bundle, lambda step, done, total: steps.append(step), TWO)
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
    assert [item.seed for item in report.utterances] == [0, 3]
    assert report.difference.draws == sum(item.difference.draws for item in report.utterances if item.difference)
    assert {check.limit_name for check in report.checks} >= {"min_graph_snr_db", "max_mel_distance_db"}
    assert all(check.passed for check in report.checks)
    assert set(steps) == {"checking files", "speaking with the reference", "speaking", "comparing graphs"}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_bundle_beside_itself_is_equal(fp32_bundle: Path) -> None:
    report = verify_bundle(fp32_bundle, fp32_bundle, config=SHORT)
    found = report.difference
    assert found is not None
    assert (found.tokens_equal, found.first_divergence, found.token_agreement) == (True, None, 1.0)
    assert (found.logits_snr_db, found.waveform_snr_db, found.mel_distance_db) == (200.0, 200.0, 0.0)
    assert (found.loudness_difference_lu, found.silence_increase, found.duration_difference_s) == (0.0, 0.0, 0.0)
    assert [size.ratio for size in report.sizes] == [1.0] * len(report.sizes)


@pytest.mark.parametrize(
    "graph", ["text_expert", "speech_expert", "speech_conditioner", "dit", "vae_decoder", "vae_encoder"]
)
def test_one_damaged_weight_is_found_and_named(graph: str, fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "damaged")
    damage(root, graph, last_matrix(root, graph), None)
    report = verify_bundle(root, fp32_bundle, config=SHORT)
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
        verify_bundle(fp32_bundle, root, config=SHORT)


@pytest.mark.parametrize("graph", ["speech_expert", "dit", "vae_decoder"])
def test_not_a_number_is_found_without_a_reference(graph: str, fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "nan")
    damage(root, graph, last_matrix(root, graph), float("nan"))
    report = verify_bundle(root, config=SHORT)
    assert not report.passed
    assert any(line.startswith(f"graph {graph} (portable") and "NaN" in line for line in report.failures)
    assert any(line.startswith("the bundle cannot speak: ") for line in report.failures)
    assert report.utterances == ()
    json.dumps(report.to_json(), allow_nan=False)


def test_a_reference_that_cannot_speak_is_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "nan")
    damage(root, "dit", last_matrix(root, "dit"), float("nan"))
    with pytest.raises(InputError, match="expected a reference that speaks"):
        verify_bundle(fp32_bundle, root, config=SHORT)


def test_a_reference_of_other_settings_is_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "other")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["settings"]["max_context"] += 1
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"both differ in settings\.max_context;"):
        verify_bundle(fp32_bundle, root, config=SHORT)


def test_a_reference_from_other_files_is_noted(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "other")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["source"] = {}
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    report = verify_bundle(fp32_bundle, root, config=SHORT)
    assert report.passed
    assert "other files" in report.notes[0]


def test_a_graph_that_cannot_be_loaded_is_named(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "unreadable")
    spec = Bundle.open(root).manifest.graph("speech_expert", "portable")  # the runtime itself takes the other flavour
    (root / spec.path).write_bytes(b"no graph")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["files"][spec.path] = {"sha256": hash_file(root / spec.path), "size": 8}
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    report = verify_bundle(root, config=SHORT)
    assert [line.partition(": ")[0] for line in report.failures] == ["graph speech_expert (portable, fp32)"]
    assert len(report.utterances) == 1


def test_nothing_there_is_a_missing_resource(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError):
        verify_bundle(tmp_path / "nothing")


def test_the_command_line_exits_with_5_for_a_damaged_bundle_and_marks_it(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(fp32_bundle, tmp_path / "damaged")
    damage(root, "vae_decoder", last_matrix(root, "vae_decoder"), None)
    short = ["--lines", "1", "--max-tokens", "40", "--recogniser", "none"]
    argv = ["verify", str(root), "--reference", str(fp32_bundle), "--report", str(tmp_path / "report.json"), *short]
    assert main([*argv, "--no-record"]) == 5
    assert readiness(Bundle.open(root)).state == "reference"
    assert main(argv) == 5
    assert "graph vae_decoder (portable, fp32): expected at least 80 dB of" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False
    found = readiness(Bundle.open(root, verify_hashes=True))
    assert (found.state, found.warns) == ("failed", True)
    assert "graph vae_decoder" in found.reason
    sound = copy(fp32_bundle, tmp_path / "sound")
    assert main(["verify", str(sound), *short]) == 0
    assert readiness(Bundle.open(sound)).state == "reference"


def test_a_bundle_that_passed_is_ready(fp16_bundle: Path, fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp16_bundle, tmp_path / "fp16")
    short = ["--lines", "1", "--max-tokens", "40", "--recogniser", "none"]
    assert main(["verify", str(root), *short]) == 0
    assert readiness(Bundle.open(root)).state == "unverified"
    assert main(["verify", str(root), "--reference", str(fp32_bundle), *short]) == 0
    assert readiness(Bundle.open(root)).state == "ready"


def test_a_quantised_bundle_is_ready_after_verification_alone(fp32_bundle: Path, tmp_path: Path) -> None:
    bundle = quantise_bundle(fp32_bundle, tmp_path / "int8", QuantiseConfig("int8-weight"))
    assert (readiness(bundle).state, readiness(bundle).warns) == ("unverified", True)
    found = verify(bundle.root, fp32_bundle, None, SHORT)
    assert readiness(bundle).state == "unverified", "looking is not judging"
    record(found)
    assert found.report.passed, found.report.failures
    assert (readiness(bundle).state, readiness(bundle).warns) == ("ready", False)


def test_limits_of_the_manifest_go_before_those_of_the_precision(fp32_bundle: Path, tmp_path: Path) -> None:
    root = copy(fp32_bundle, tmp_path / "strict")
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["gate"] = {"min_flavour_snr_db": 199.0}
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
    report = verify_bundle(root, config=SHORT)
    assert report.failures
    assert all("at least 199 dB of signal to noise against its portable" in failure for failure in report.failures)


def test_nothing_to_say_is_refused(fp32_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="found no probe"):
        verify_bundle(fp32_bundle, config=VerifyConfig(probes=()))


# the gate alone

GATE = Gate(30.0, 27.0, 0.9, 1.0, 2.0, 0.5, 20.0, 0.9, 0.1, 0.01, 0.1)
SPEECH = SpeechReport(1.0, 25, "stop", -20.0, 0.5, 0.0, silent=False, silent_fraction=0.2)
DIFFERENCE = SpeechDifference(
    tokens_equal=True,
    first_divergence=None,
    draws=40,
    token_agreement=0.9,
    logits_snr_db=50.0,
    waveform_snr_db=40.0,
    mel_distance_db=1.0,
    mel_distance_l2_db=1.5,
    log_spectral_distance_db=2.0,
    loudness_difference_lu=-0.5,
    pitch_error_cents=20.0,
    voicing_agreement=0.9,
    voiced_fraction=0.5,
    silence_increase=0.1,
    clipping_increase=0.01,
    duration_difference_s=0.0,
)


def graph_report(against: str | None, *snr_db: float, broken: tuple[str, ...] = ()) -> GraphReport:
    outputs = tuple(TensorDifference(f"y{place}", snr, 1.0, 0.0, 1.0) for place, snr in enumerate(snr_db))
    return GraphReport("tiny", "ort", "fp16", 1, 0.5 if broken else 1.0, broken, against, outputs)  # type: ignore[arg-type]


def failed(checks: list[Check]) -> list[str]:
    return [check.sentence for check in checks if not check.passed]


def test_limits_themselves_pass() -> None:
    assert failed(graph_checks(graph_report("reference", 30.0), GATE)) == []
    assert failed(graph_checks(graph_report("portable", 27.0), GATE)) == []
    assert graph_checks(graph_report(None), GATE) == []
    assert len(difference_checks(DIFFERENCE, GATE)) == 8
    assert failed(difference_checks(DIFFERENCE, GATE)) == []
    assert difference_checks(DIFFERENCE, Gate()) == []
    assert silence_failures("utterance 1", SPEECH) == []


def test_failures_say_which_graph_and_output() -> None:
    (low,) = failed(graph_checks(graph_report("reference", 40.0, 12.34, 29.99), GATE))
    assert low == (
        "graph tiny (ort, fp16): expected at least 30 dB of signal to noise against the reference, found 12.3 dB; "
        "2 of 3 outputs are below, the worst are y1, y2"
    )
    (near,) = failed(graph_checks(graph_report("reference", 29.999), GATE))
    assert "found 29.9990 dB" in near
    (flavour,) = failed(graph_checks(graph_report("portable", 26.9), GATE))
    assert "against its portable flavour, found 26.9 dB" in flavour
    (broken,) = graph_failures(graph_report("reference", -200.0, broken=("a", "b", "c", "d", "e")))
    assert broken == "graph tiny (ort, fp16): expected numbers, found 50 % NaN or infinity, in a, b, c and 2 more"


def test_codes_are_judged_by_how_many_agree_alone() -> None:
    codes = TensorDifference("codes", 3.0, 0.9, 900.0, 1.0, agreement=0.895)
    report = dataclasses.replace(graph_report("reference", 31.0), outputs=(codes,))
    limits = dataclasses.replace(GATE, min_code_agreement=0.9)
    assert report.worst is None
    assert failed(graph_checks(report, limits)) == [
        "graph tiny (ort, fp16): expected at least 90 % of codes that are the same, found 89.5 %"
    ]
    assert failed(graph_checks(report, dataclasses.replace(limits, min_code_agreement=0.89))) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_agreement": 0.89}, "at least 90 % of draws with the same most likely token, found 89.0 %"),
        ({"mel_distance_db": 1.1}, "at most 1 dB of mel distance, found 1.1 dB"),
        ({"log_spectral_distance_db": 2.1}, "log-spectral distance"),
        ({"loudness_difference_lu": -0.6}, "at most 0.5 LU of loudness difference, found 0.6 LU"),
        ({"loudness_difference_lu": 0.6}, "loudness"),
        ({"pitch_error_cents": 30.0}, "at most 20 cents of median pitch error, found 30.0 cents"),
        ({"voicing_agreement": 0.5}, "frames with the same voicing, found 50.0 %"),
        ({"silence_increase": 0.3}, "silent frames more than"),
        ({"clipping_increase": 0.02}, "samples beyond full scale more than in the reference's speech, found 2.0 %"),
    ],
)
def test_speech_beside_the_reference_has_limits(change: dict[str, float], words: str) -> None:
    (failure,) = failed(difference_checks(dataclasses.replace(DIFFERENCE, **change), GATE))  # type: ignore[arg-type]
    assert words in failure


def test_the_pitch_of_noise_is_not_judged() -> None:
    noise = dataclasses.replace(DIFFERENCE, voiced_fraction=0.05, voicing_agreement=0.0, pitch_error_cents=900.0)
    assert failed(difference_checks(noise, GATE)) == []


def test_silence_fails() -> None:
    silent = dataclasses.replace(SPEECH, silent=True, peak=0.0)
    assert "utterance 2: expected speech, found silence" in silence_failures("utterance 2", silent)[0]


def heard(*errors: int) -> list[SpeechReport]:
    return [dataclasses.replace(SPEECH, words=WordErrors("", count, 10)) for count in errors]


def test_words_are_judged_beside_the_references_own() -> None:
    assert failed(word_checks(heard(1, 2), heard(1, 0), GATE)) == []
    (failure,) = failed(word_checks(heard(3, 2), heard(1, 0), GATE))
    assert "at most 10 % of words wrong more than in the reference's speech, found 20.0 %" in failure
    assert word_checks(heard(10), heard(6), GATE) == []
    assert "60% of the reference's own words" in (words_note(heard(6)) or "")
    assert word_checks([SPEECH], [SPEECH], GATE) == []
    assert words_note([SPEECH]) is None


def test_utterances_are_pooled_by_draws_means_and_worst() -> None:
    other = dataclasses.replace(
        DIFFERENCE,
        tokens_equal=False,
        first_divergence=7,
        draws=120,
        token_agreement=1.0,
        mel_distance_db=3.0,
        waveform_snr_db=10.0,
        loudness_difference_lu=0.2,
        pitch_error_cents=None,
    )
    found = pool([DIFFERENCE, other])
    assert (found.tokens_equal, found.first_divergence, found.draws) == (False, 7, 160)
    assert found.token_agreement == pytest.approx((0.9 * 40 + 120) / 160)
    assert (found.mel_distance_db, found.waveform_snr_db) == (2.0, 10.0)
    assert (found.loudness_difference_lu, found.pitch_error_cents) == (-0.5, 20.0)


def test_a_bundle_of_several_precisions_has_the_gate_of_the_coarsest() -> None:
    assert gate_of(["fp32", "fp16"], GATES) is GATES["fp16"]
    with pytest.raises(ConfigError, match="found int3"):
        gate_of(["fp32", "int3"], GATES)

"""`build`, `export`, `verify`, `doctor` and `bench`: what they hand to the packages below, and what they show.

The packages' functions are replaced at the seam where the verb calls them; their own tests show what they do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_stand_ins import ToneSynthesizer, opener, write_bundle

from voxedge.calibration import verify
from voxedge.calibration.metrics import TensorDifference
from voxedge.calibration.report import GraphReport, SpeechReport, UtteranceReport, VerifyReport
from voxedge.engines.bundle import Bundle
from voxedge.engines.readiness import readiness
from voxedge.engines.stamps import EngineStamp
from voxedge.engines.trt import builder
from voxedge.engines.trt.monitor import BuildProgress
from voxedge.runtime.cli import bench, export
from voxedge.runtime.cli.build import compute_capabilities
from voxedge.runtime.cli.main import main

STAMP = EngineStamp("a" * 64, "b" * 64, "tensorrt_rtx", "1.7", (89, 120), "linux", "x86_64", "", {}, "fp32")


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    module = ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


# build


def test_build_hands_its_flags_on_and_shows_every_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def build_bundle(bundle: Bundle, config: builder.BuildConfig, on_progress: Any, force: bool) -> list[Any]:  # noqa: ANN401
        calls.append((config, force))
        on_progress(BuildProgress("tiny", "tactics", 0.5))
        path = bundle.root / "engines/rtx/tiny.engine"
        return [
            builder.EngineRecord("tiny", path, STAMP, True, ("not built yet",), 1_500_000, 2.5),
            builder.EngineRecord("other", path, STAMP, False, (), 10, 0.0),
        ]

    monkeypatch.setattr(builder, "build_bundle", build_bundle)
    root = write_bundle(tmp_path / "voice").root
    argv = ["build", str(root), "--target", "rtx", "--sm", "8.9,120", "--workspace", "512", "--opt-level", "5"]
    assert main([*argv, "--timing-cache", "t.cache", "--force"]) == 0
    expected = builder.BuildConfig("rtx", (89, 120), 512 << 20, 5, Path("t.cache"))
    assert calls == [(expected, True)]
    out = capsys.readouterr().out
    assert "tiny   built in 2.5 s  1.5 MB    not built yet" in out
    assert "other  up to date" in out
    assert main([*argv, "--json"]) == 0
    assert [engine["graph"] for engine in json.loads(capsys.readouterr().out)["engines"]] == ["tiny", "other"]


def test_build_refuses_devices_for_a_target_that_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_bundle(tmp_path / "voice").root
    assert main(["build", str(root), "--target", "trt", "--sm", "87"]) == 1
    assert "on the device" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "89,", "sm89", "8", "89;120", "1234"])
def test_compute_capabilities_are_two_or_three_digits(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 89,120"):
        compute_capabilities(text)


# export


@dataclass(frozen=True)
class Config:
    """Stands in for `ExportConfig`."""

    precision: str
    max_context: int
    max_seconds: float
    overwrite: bool
    components: tuple[str, ...]
    note: str
    codec_precision: str = "fp32"
    quantise: Any = None


def checkpoint(folder: Path) -> Path:
    (folder / "vae").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(1_000_000))
    (folder / "vae/model.ckpt").write_bytes(bytes(500_000))
    (folder / "config.json").write_text("{}")
    return folder


def test_export_tells_the_disk_that_it_needs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def export_checkpoint(source: Path, output: Path, config: Config, on_progress: Any) -> Bundle:  # noqa: ANN401
        calls.append((source, output, config))
        assert "needs up to about 1.5 MB" in capsys.readouterr().err
        return write_bundle(output, note=config.note)

    replace_module(monkeypatch, "voxedge.export.config", ExportConfig=Config)
    replace_module(monkeypatch, "voxedge.export.systems", export_checkpoint=export_checkpoint)
    source, output = checkpoint(tmp_path / "source"), tmp_path / "deep" / "out"
    argv = ["export", str(source), "-o", str(output), "--precision", "fp16", "--components", "dit, vae"]
    assert main([*argv, "--max_seconds", "12.5", "--force", "--note", "untrained", "--json"]) == 0
    assert calls == [(source, output, Config("fp16", 4096, 12.5, True, ("dit", "vae"), "untrained"))]
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "bundle": str(output),
        "system": "toy",
        "graphs": ["tiny (portable)"],
        "bytes": 12,
        "note": "untrained",
    }


def test_export_without_its_libraries_says_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = importlib.import_module("voxedge.export")
    monkeypatch.setattr("voxedge.export", package)  # that name too is set again by the import below
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("voxedge.export")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["export", str(checkpoint(tmp_path / "source")), "-o", str(tmp_path / "out")]) == 3
    assert "pip install 'voxedge[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code", "words"), [("nothing", 2, "found nothing"), ("empty", 1, "expected weights")])
def test_export_refuses_what_is_no_checkpoint(
    name: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["export", str(tmp_path / name), "-o", str(tmp_path / "out")]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predicted_size_takes_the_checkpoint_for_two_byte_weights(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    assert export.predicted_bytes(source, "fp32") == 3_000_000
    assert export.predicted_bytes(source, "fp16") == 1_500_000
    assert export.predicted_bytes(source, "int8", ("fp32",)) == 3_900_000
    assert export.predicted_bytes(source, "int4-weight", ("fp16",)) == 5_100_000


# verify


def verified(failures: tuple[str, ...]) -> VerifyReport:
    output = TensorDifference("y", snr_db=61.2, cosine=0.9999995, max_error=1.5e-4, finite=1.0)
    graphs = (
        GraphReport("tiny", "portable", "fp16", 3, 1.0, (), "reference", (output,)),
        GraphReport("other", "portable", "fp16", 1, 0.5, ("y",)),
    )
    said = UtteranceReport("Hello.", "", 0, SpeechReport(1.5, 37, "stop", -20.0, 0.5, 0.0, silent=False))
    return VerifyReport("out", None, ("fp16",), graphs, (), (said,), None, (), failures, ("no reference",))


@pytest.mark.parametrize(
    ("failures", "code", "verdict"), [((), 0, "passed"), (("other: expected numbers",), 5, "FAILED")]
)
def test_verify_exits_with_5_when_the_gate_is_closed(
    failures: tuple[str, ...],
    code: int,
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []
    bundle = write_bundle(tmp_path / "voice")

    def stand_in(path: Path, reference: Path | None, on_progress: Any, config: Any) -> verify.Verification:  # noqa: ANN401
        calls.append((path, reference))
        return verify.Verification(verified(failures), bundle, None, ())

    monkeypatch.setattr(verify, "verify", stand_in)
    report = tmp_path / "report.json"
    assert (
        main(["verify", str(bundle.root), "--reference", "exact", "--report", str(report), "--recogniser", "none"])
        == code
    )
    assert readiness(bundle).state == ("reference" if not failures else "failed")
    assert calls == [(bundle.root, Path("exact"))]
    captured = capsys.readouterr()
    out = captured.out
    assert re.search(r"^tiny +portable +reference +61\.2 +1\.000000 +1\.50e-04 +yes$", out, re.MULTILINE)
    assert re.search(r"^other +portable +- +- +- +- +50\.00%$", out, re.MULTILINE)
    assert "utterance 1: 1.50 s of 37 tokens, -20.0 LUFS" in out
    assert "no reference" in captured.err
    assert all(f"- {failure}" in out for failure in failures)
    assert verdict in out
    assert json.loads(report.read_text())["passed"] == (not failures)


def test_verify_checks_hashes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_bundle(tmp_path / "voice").root
    (root / "graphs/tiny.data").write_bytes(b"WEIGHTS")
    assert main(["verify", str(root)]) == 1
    assert "expected sha256" in capsys.readouterr().err


# doctor


def test_doctor_looks_at_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "voxedge" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["cpu_speech"]
    assert all(item["ok"] or item["mend"] for item in data["advice"])


def test_doctor_without_onnx_runtime_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "MEND" in out
    assert "pip install" in out


# bench


def test_bench_keeps_cold_and_warm_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tone = ToneSynthesizer(write_bundle(tmp_path / "voice"))
    monkeypatch.setattr(bench, "open_synthesizer", opener(tone))
    assert main(["bench", "--runs", "3", "--warmup", "2", "--seed", "4", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len([entry for entry in tone.asked if "text" in entry]) == 1 + 2 + 3
    assert data["cold"]["rtf"] == pytest.approx(0.06 / 0.3)
    assert data["warm"]["tokens_per_s"] == {"p50": pytest.approx(200.0), "p95": pytest.approx(200.0)}
    assert data["runs"] == 3
    assert data["peak_memory_bytes"] > 1_000_000
    assert "wall seconds / audio seconds" in data["formulas"]["rtf"]
    assert main(["bench", "--runs", "1", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^RTF +0\.200 +0\.200 +0\.200$", out, re.MULTILINE)
    assert "backend cpu" in out


def test_percentiles_are_linear_between_ranks() -> None:
    assert bench.summary([3.0, 1.0, 2.0, 4.0]) == {"p50": 2.5, "p95": pytest.approx(3.85)}
    assert bench.summary([7.0]) == {"p50": 7.0, "p95": 7.0}

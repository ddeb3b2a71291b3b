"""`voxedge info` on bundles, graphs, engines and audio; every kind in text and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_stand_ins import write_bundle

from voxedge.engines.stamps import EngineStamp, write_stamp
from voxedge.runtime.cli.main import main


def show(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["info", str(path), *flags]) == 0
    return capsys.readouterr().out


def test_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "voice", note="untrained: its voice is noise")
    text = show(bundle.root, capsys)
    assert "toy, made by voxedge tests, 2 files, 12 bytes" in text
    assert "note: untrained: its voice is noise" in text
    assert "tiny   portable  fp32       17     >= 1.20       7 bytes" in text
    assert "sample_rate: 8000" in text
    assert "prompt.system: 'Speak.'" in text
    assert "engines: none built" in text
    data = json.loads(show(bundle.root / "voxedge.json", capsys, "--json"))
    assert data["bundle"] == str(bundle.root)
    assert data["settings"]["strides"] == [2, 4]
    assert data["graphs"][0]["profiles"]["main"]["rows"] == {"min": 1, "opt": 2, "max": 8}


def test_hashes_are_compared_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "voice")
    (bundle.root / "graphs/tiny.data").write_bytes(b"WEIGHTS")
    show(bundle.root, capsys)
    assert main(["info", str(bundle.root), "--hashes"]) == 1
    assert "expected sha256" in capsys.readouterr().err


def test_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "voice")
    text = show(bundle.root / "graphs/tiny.onnx", capsys)
    assert "tiny (portable), fp32, opset 17, weights in graphs/tiny.data" in text
    assert "input   x  float32  [rows, 4]" in text
    assert "main     rows       1 .. 2 .. 8" in text
    assert json.loads(show(bundle.root / "graphs/tiny.onnx", capsys, "--json"))["name"] == "tiny"


def test_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "tiny.engine"
    engine.write_bytes(b"engine")
    stamp = EngineStamp("a" * 64, "b" * 64, "tensorrt", "10.3.0", (87,), "linux", "aarch64", "36.4.3", {}, "fp16")
    write_stamp(engine, stamp)
    text = show(engine, capsys)
    assert "6 bytes, fp16" in text
    assert "built with tensorrt 10.3.0 for SM87, linux aarch64, Jetson Linux 36.4.3" in text
    assert json.loads(show(engine, capsys, "--json"))["stamp"]["compute_capabilities"] == [87]


def test_audio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros((4000, 2)), 8000)
    assert "0.50 s, 8000 Hz, 2 channel(s)" in show(tmp_path / "a.flac", capsys)
    assert json.loads(show(tmp_path / "a.flac", capsys, "--json"))["seconds"] == 0.5


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nothing", 2, "found nothing"),
        ("empty", 2, "not a bundle"),
        ("broken", 1, "expected JSON"),
        ("alone.onnx", 1, "give the bundle"),
        ("alone.engine", 2, "no stamp"),
        ("noise.wav", 1, "expected an audio file"),
        ("notes.txt", 1, "expected a bundle's folder"),
    ],
)
def test_what_is_not_ours_is_refused(
    name: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/voxedge.json").write_text("{")
    for file in ("alone.onnx", "alone.engine", "noise.wav", "notes.txt"):
        (tmp_path / file).write_bytes(b"noise")
    assert main(["info", str(tmp_path / name)]) == code
    assert words in capsys.readouterr().err

"""The command line with the built-in voice: nothing is replaced, sound comes out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxedge.runtime.cli.main import main
from voxedge.runtime.synthesizer import built_in_voice

SCRIPT = str(Path(sys.executable).parent / "voxedge")


def report(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main(["say", *argv, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_seed_gives_the_same_file_in_every_way_of_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report(capsys, "Hello there.", "-f", str(tmp_path / "a.wav"), "--seed", "7")
    for name, flags in {"b": [], "c": ["--memory", "staged"], "d": ["--bundle", str(built_in_voice())]}.items():
        report(capsys, "Hello there.", "-f", str(tmp_path / f"{name}.wav"), "--seed", "7", *flags)
        assert (tmp_path / f"{name}.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    report(capsys, "Hello there.", "-f", str(tmp_path / "e.wav"), "--seed", "8")
    assert (tmp_path / "e.wav").read_bytes() != (tmp_path / "a.wav").read_bytes()
    info = soundfile.info(str(tmp_path / "a.wav"))
    assert info.frames / info.samplerate == pytest.approx(float(str(first["seconds"])))
    assert first["rtf"] == pytest.approx(float(str(first["wall_s"])) / float(str(first["seconds"])))


def test_the_voice_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "Hello.", "-f", str(tmp_path / "a.wav"), "--seed", "7"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: ")
    assert "trained on synthetic speech" in error


def test_raw_samples_are_those_of_the_file(tmp_path: Path) -> None:
    flags = ["Hello there.", "--seed", "7", "--window", "0.5"]
    subprocess.run([SCRIPT, "say", *flags, "-f", "a.wav", "--stream"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([SCRIPT, "say", *flags, "-f", "-"], cwd=tmp_path, check=True, capture_output=True)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    np.testing.assert_array_equal(np.frombuffer(done.stdout, dtype="<i2"), samples.reshape(-1))


def test_max_tokens_cuts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["Hello there.", "-f", str(tmp_path / "a.wav"), "--seed", "7", "--min-tokens", "4", "--max-tokens", "4"]
    assert report(capsys, *argv)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--text", ""], 1, "empty"),
        (["--text", "Hello.", "--backend", "tensorrt"], 3, "--backend cpu"),
        (["--text", "Hello.", "--speech-tokens", "far.json"], 1, "speech"),
        (["nowhere", "Hello."], 2, "nowhere"),
    ],
)
def test_what_cannot_be_said_leaves_no_file(
    argv: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("far.json").write_text("[999999999]")
    assert main(["say", *argv, "-f", "a.wav"]) == code
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far.json"]


def test_ctrl_c_while_speaking_leaves_no_file(tmp_path: Path) -> None:
    text = "This is one of very many sentences. " * 500
    command = [SCRIPT, "say", "--stdin", "-f", "a.wav", "--stream", "--seed", "7", "--max-tokens", "60"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(text.encode())
    process.stdin.close()
    while b"chunk 0" not in (line := process.stderr.readline()):
        assert line, "it ended before the first piece"
    time.sleep(0.05)  # into the second piece; any moment must do
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert b"Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_info_and_bench_take_the_voice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(built_in_voice()), "--hashes"]) == 0
    assert "trained on synthetic speech" in capsys.readouterr().out
    assert main(["bench", "--text", "Hello.", "--runs", "2", "--warmup", "0", "--seed", "7", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["cold"]["rtf"] > 0.0
    assert data["warm"]["rtf"]["p50"] <= data["warm"]["rtf"]["p95"]

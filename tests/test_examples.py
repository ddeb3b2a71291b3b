"""The examples run as they are, and fit on a screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxedge.engines.bundle import Bundle

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCREEN_LINES = 40


def run(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return done


def check_speech(path: Path) -> None:
    samples, rate = soundfile.read(path)
    assert len(samples) > rate / 10
    assert np.abs(samples).max() > 1e-3


def test_say(tmp_path: Path) -> None:
    done = run("say.py", tmp_path, "out.wav")
    assert b"RTF" in done.stdout
    check_speech(tmp_path / "out.wav")


def test_stream(tmp_path: Path) -> None:
    done = run("stream.py", tmp_path)
    samples = np.frombuffer(done.stdout, dtype="<i2")
    assert np.abs(samples).max() > 32
    assert b"last: True" in done.stderr


def test_export_and_say(tmp_path: Path, golden: Callable[[str], Path]) -> None:
    done = run("export_and_say.py", tmp_path, str(golden("moetts_e2e") / "checkpoint"), str(tmp_path))
    assert b"fp32, opset" in done.stdout
    check_speech(tmp_path / "hello.wav")


def test_built_in_voice(tmp_path: Path, golden: Callable[[str], Path]) -> None:
    run("built_in_voice.py", tmp_path, str(golden("moetts_e2e") / "checkpoint"), "voice")
    manifest = Bundle.open(tmp_path / "voice", verify_hashes=True).manifest
    assert "--list-voices" in manifest.note
    assert {graph.precision for graph in manifest.graphs} >= {"int8-weight"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_a_screen_and_is_tested(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= SCREEN_LINES
    assert path.name in Path(__file__).read_text(encoding="utf-8")

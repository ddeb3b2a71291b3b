"""`voxedge batch`: one file for each line, a record of all, and what becomes of lines that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from cli_stand_ins import ToneSynthesizer, opener, write_bundle
from tiny_voice import tiny_voice

from voxedge.runtime.cli import batch
from voxedge.runtime.cli.main import main

LINES = [
    {"text": "One.", "id": "first"},
    {"text": "Two.", "seed": 9, "description": "A deep voice."},
    {"text": "Three."},
]


@pytest.fixture
def voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToneSynthesizer:
    synthesizer = ToneSynthesizer(write_bundle(tmp_path / "bundle"))
    monkeypatch.setattr(batch, "open_synthesizer", opener(synthesizer))
    return synthesizer


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def record(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / batch.RESULTS).read_text().splitlines()]


def test_every_line_has_a_file(voice: ToneSynthesizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = write(tmp_path / "lines.jsonl", LINES), tmp_path / "deep" / "out"
    argv = ["batch", str(tmp_path / "bundle"), str(source), "-d", str(folder), "--seed", "100", "--format", "flac"]
    assert main([*argv, "--together", "2", "--rate", "16000", "--json"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["0002.flac", "0003.flac", "batch.jsonl", "first.flac"]
    assert soundfile.info(folder / "first.flac").samplerate == 16000
    assert voice.asked[0]["bundle"] == tmp_path / "bundle"
    assert voice.asked[1] == {"together": 2}
    assert [(call["text"], call["seed"], call["description"]) for call in voice.asked[2:5]] == [
        ("One.", 101, ""),
        ("Two.", 9, "A deep voice."),
        ("Three.", 103, ""),
    ]
    assert [(row["line"], row["file"], row["seed"]) for row in record(folder)] == [
        (1, "first.flac", 101),
        (2, "0002.flac", 9),
        (3, "0003.flac", 103),
    ]
    report = json.loads(capsys.readouterr().out)
    assert (report["spoken"], report["failed"], report["skipped"]) == (3, 0, 0)
    assert report["seconds"] == pytest.approx(0.9)


def test_a_line_that_fails_does_not_end_the_others(
    voice: ToneSynthesizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "lines.jsonl", [{"text": "One."}, {"text": "fail"}, {"text": "Three."}])
    folder = tmp_path / "out"
    assert main(["batch", str(source), "-d", str(folder)]) == 4
    assert sorted(path.name for path in folder.glob("*.wav")) == ["0001.wav", "0003.wav"]
    assert record(folder)[1] == {
        "line": 2,
        "file": "0002.wav",
        "error": "expected speech, found silence",
        "exit_code": 4,
    }
    told = capsys.readouterr().err
    assert "warning: line 2: expected speech, found silence" in told
    assert "2 spoken, 0 were there, 1 failed" in told
    assert voice.asked[-1] == {"closed": True}


def test_what_is_missing_is_spoken(voice: ToneSynthesizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = write(tmp_path / "lines.jsonl", LINES), tmp_path / "out"
    argv = ["batch", str(source), "-d", str(folder), "--seed", "1"]
    assert main(argv) == 0
    (folder / "0002.wav").unlink()
    kept = (folder / "first.wav").stat().st_mtime_ns
    assert main(argv) == 1
    assert "add --resume to speak what is missing" in capsys.readouterr().err
    assert main([*argv, "--resume", "--dry-run"]) == 0
    assert "0 spoken, 1 would be spoken, 2 were there" in capsys.readouterr().err
    assert not (folder / "0002.wav").exists()
    assert main([*argv, "--resume"]) == 0
    assert (folder / "first.wav").stat().st_mtime_ns == kept
    assert [row["line"] for row in record(folder)] == [1, 2, 3, 2]
    opened = len(voice.asked)
    assert main([*argv, "--resume"]) == 0  # nothing is left, and nothing is loaded
    assert len(voice.asked) == opened
    assert main([*argv, "--force"]) == 0
    assert [row["line"] for row in record(folder)] == [1, 2, 3]


def test_giving_up(voice: ToneSynthesizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "lines.jsonl", [{"text": "fail"}] * 3 + [{"text": "One."}])
    assert main(["batch", str(source), "-d", str(tmp_path / "out"), "--max-failures", "2"]) == 4
    assert "given up after 2 failures; 2 lines were not tried" in capsys.readouterr().err
    assert len(record(tmp_path / "out")) == 2
    assert {"closed": True} in voice.asked


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 1, "found an empty file"),
        ("One.\n", 1, "line 1: expected JSON"),
        ('{"text": "One.", "speed": 2}', 1, "speed"),
        ('{"id": "a"}', 1, "text"),
        ('{"text": "One.", "id": "../a"}', 1, "line 1: expected an `id` of letters"),
        ('{"text": "One.", "seed": -1}', 1, "line 1: expected a `seed` of 0 or more"),
        (
            '{"text": "One.", "id": "0002"}\n{"text": "Two."}',
            1,
            "line 2: expected an `id` of its own, found that of line 1",
        ),
        ('{"text": "One.", "voice": "nobody.wav"}', 2, "line 1: expected a recording"),
        ('{"text": "One.", "language": "Klingon"}', 1, "line 1: "),
        (None, 2, "no such file of lines"),
    ],
)
def test_lines_are_checked_first(
    text: str | None, code: int, words: str, voice: ToneSynthesizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = tmp_path / "lines.jsonl", tmp_path / "out"
    if text is not None:
        source.write_text(text)
    assert main(["batch", str(source), "-d", str(folder)]) == code
    assert words in capsys.readouterr().err
    assert not any("together" in call for call in voice.asked)
    assert list(tmp_path.glob("out/*")) == []


def test_a_line_sounds_as_it_does_alone(tmp_path: Path) -> None:
    """With a real voice."""
    source = write(tmp_path / "lines.jsonl", [{"text": "Hello.", "seed": 5}, {"text": "Good day."}])
    argv = ["--min-tokens", "4", "--max-tokens", "8", "--steps", "2", "--threads", "1"]
    assert main(["batch", str(tiny_voice()), str(source), "-d", str(tmp_path / "out"), "--seed", "40", *argv]) == 0
    for name, text, seed in (("0001", "Hello.", "5"), ("0002", "Good day.", "42")):
        alone = tmp_path / f"{name}.wav"
        assert main(["say", str(tiny_voice()), text, "-f", str(alone), "--seed", seed, *argv]) == 0
        np.testing.assert_array_equal(soundfile.read(alone)[0], soundfile.read(tmp_path / "out" / alone.name)[0])

"""`voxedge bench --compare A B`: in turns, the same work for both, and a ratio with its spread."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from cli_stand_ins import ToneSynthesizer, write_bundle

from voxedge.engines.timing import SpeedRatio
from voxedge.runtime.cli import bench_compare
from voxedge.runtime.cli.console import Console
from voxedge.runtime.cli.main import main


class Logged(ToneSynthesizer):
    """Writes its name into a log that it shares each time that it speaks."""

    log: list[str]

    def synthesize(self, text: str, **options: object) -> object:  # type: ignore[override]
        """Speak as the other does."""
        self.log.append(self.bundle.root.name)
        return super().synthesize(text, **options)


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Logged], list[str]]:
    log: list[str] = []
    found = [Logged(write_bundle(tmp_path / name)) for name in "ab"]
    for voice in found:
        voice.log = log

    def open_synthesizer(path: Path, arguments: argparse.Namespace, console: Console) -> Logged:
        return next(voice for voice in found if voice.bundle.root == path)

    monkeypatch.setattr(bench_compare, "open_synthesizer", open_synthesizer)
    return found, log


def test_both_speak_in_turns_and_say_equally_much(
    voices: tuple[list[Logged], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (first, second), log = voices
    paths = [str(voice.bundle.root) for voice in (first, second)]
    assert main(["bench", "--compare", *paths, "--runs", "3", "--seed", "5", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab" + "ba"  # cold, the round that warms up, three that count
    assert data["bundles"] == {"A": paths[0], "B": paths[1]}
    assert (data["tokens"], data["ratio"]["rounds"], data["seed"]) == (12, 3, 5)
    for voice in (first, second):
        asked = [call["config"].sampling for call in voice.asked if "config" in call]
        assert {(sampling.min_tokens, sampling.max_tokens) for sampling in asked[1:]} == {(12, 12)}
    assert data["warm"]["B"]["rtf"]["p50"] == pytest.approx(0.2)
    assert main(["bench", "--compare", *paths, "--runs", "1"]) == 0
    assert re.search(
        r"^B takes \d+\.\d+ times as long as A \(.* of 1 rounds\); ", capsys.readouterr().out, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.5, 0.7, "keep B"), (1.1, 1.3, "keep A"), (0.9, 1.1, "neither is faster beyond doubt")],
)
def test_a_verdict_needs_three_rounds_of_four(low: float, high: float, words: str) -> None:
    warm = {name: {"p50": 1.0, "p95": 2.0} for name in ("rtf", "first_audio_s", "wall_s", "tokens_per_s")}
    ratio = SpeedRatio((low + high) / 2, low, high, 1.0, 1.0, 9)
    data = {
        "device": "a processor",
        "bundles": {"A": "one", "B": "other"},
        "tokens": 12,
        "warm": {"A": warm, "B": warm},
        "ratio": {name: getattr(ratio, name) for name in ("ratio", "low", "high", "first_s", "second_s", "rounds")},
        "formulas": {},
    }
    assert words in bench_compare.text_of(data)


def test_a_third_bundle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "c", "--compare", "a", "b"]) == 1
    assert "found c beside --compare" in capsys.readouterr().err

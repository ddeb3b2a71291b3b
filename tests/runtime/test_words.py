"""Words that a voice does not know, and the list of its voices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InputError
from voxedge.engines.manifest import dump_manifest, parse_manifest
from voxedge.runtime.cli.main import main
from voxedge.runtime.synthesizer import built_in_voice
from voxedge.runtime.words import unknown_words

KNOWN = ["hello", "new", "world"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, new world!", []),
        ("HELLO hello Hello", []),
        ("A brave new world. Brave!", ["A", "brave"]),
        ("Hello 42 times", ["42", "times"]),
        ("über-hello", ["über"]),
        ("", []),
    ],
)
def test_unknown_words(text: str, expected: list[str]) -> None:
    assert unknown_words(text, KNOWN) == expected


def test_contractions_are_words_and_numbers_are_their_digits() -> None:
    assert unknown_words("It isn't 42, isn't it?", ["it", "isn't", "2", "4"]) == []
    assert unknown_words("It isn't 43.", ["it", "isn", "t", "4"]) == ["isn't", "43"]


def test_no_list_means_a_whole_language() -> None:
    assert unknown_words("anything goes", ()) == []


@pytest.mark.parametrize("words", [["Hello"], ["two words"], [""], [3], "hello", ["4."], ["n''t"]])
def test_a_manifest_with_impossible_words_is_refused(words: object) -> None:
    data = {**dump_manifest(Bundle.open(built_in_voice()).manifest), "words": words}
    with pytest.raises(BundleError, match="words"):
        parse_manifest(data)


def test_say_names_each_unknown_word_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Hello qwertz world, qwertz zebrafish."
    assert main(["say", text, "-f", str(tmp_path / "a.wav"), "--seed", "1", "--max-tokens", "20"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "trained on (" in line]
    assert len(warnings) == 1
    assert "found qwertz, zebrafish;" in warnings[0]


def test_say_is_silent_about_known_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Hello world, good morning Anna."
    assert main(["say", text, "-f", str(tmp_path / "a.wav"), "--seed", "1", "--max-tokens", "20"]) == 0
    assert "trained on (" not in capsys.readouterr().err


def test_list_voices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "--list-voices"]) == 0
    text = capsys.readouterr().out
    assert main(["say", "--list-voices", str(built_in_voice()), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["voices"]
    assert all(f'--description "{voice}"' in text for voice in data["voices"])
    assert {"hello", "world"} <= set(data["words"])
    assert f"{len(data['words'])} words" in text


def test_a_file_is_needed_to_speak(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "Hello."]) == InputError.exit_code
    assert "required: -f/--file" in capsys.readouterr().err

"""Calibration sets: those of the package, and files from users, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from voxedge.calibration.sets import Line, load_set, set_names
from voxedge.engines import json_lines
from voxedge.engines.errors import InputError, MissingResourceError

GOOD = b'{"text": "Good morning."}\n{"text": "Good night.", "description": "A calm voice.", "seed": 7}\n'


def test_sets_of_the_package() -> None:
    assert set_names() == ("default", "demo", "numbers", "short")
    found = {name: load_set(name) for name in set_names()}
    assert len(found["default"].lines) == 64
    for calibration_set in found.values():
        texts = [line.text for line in calibration_set.lines]
        assert len(set(texts)) == len(texts)
        # The demo voice was trained on few descriptions; its set stays among them.
        assert len({line.description for line in calibration_set.lines}) > (5 if calibration_set.name == "demo" else 8)
        assert calibration_set.warning is None
    assert len({calibration_set.sha256 for calibration_set in found.values()}) == len(found)


def test_a_users_file(tmp_path: Path) -> None:
    found = load_set(str(write(tmp_path, GOOD)))
    assert found.lines == (Line("Good morning."), Line("Good night.", "A calm voice.", 7))


def test_the_hash_is_of_what_is_said(tmp_path: Path) -> None:
    other = b'\xef\xbb\xbf\r\n{"text":"Good morning."}\r\n\n{"seed": 7, "description": "A calm voice.", '
    other += b'"text": "Good night."}'
    assert load_set(str(write(tmp_path, GOOD))).sha256 == load_set(str(write(tmp_path, other))).sha256
    changed = GOOD.replace(b"7", b"8")
    assert load_set(str(write(tmp_path, GOOD))).sha256 != load_set(str(write(tmp_path, changed))).sha256


def test_one_line_works_and_warns(tmp_path: Path) -> None:
    found = load_set(str(write(tmp_path, b'{"text": "Hello."}')))
    assert found.lines == (Line("Hello."),)
    assert "has 1 line:" in str(found.warning)
    assert "default, demo, numbers, short" in str(found.warning)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\n \n", "found an empty file"),
        (GOOD + b'{"text": "caf\xe9"}', "line 3: expected UTF-8, found byte 0xe9 at its offset 13"),
        (b"\xff\xfe{\0", "line 1: expected UTF-8"),
        (GOOD + b"Good evening.", "line 3: expected JSON"),
        (b'{"text": "a"', "line 1: expected JSON"),
        (b"[" * 100_000, "line 1: expected JSON"),
        (b'"Good morning."', "line 1: expected an object"),
        (b"{}", "line 1: missing 'text'"),
        (b'{"text": 5}', "line 1.text: expected"),
        (b'{"text": null}', "line 1.text: expected"),
        (b'{"text": "a", "descripton": "b"}', "unknown key 'descripton'.*description"),
        (b'{"text": "a", "description": ["b"]}', "line 1.description: expected"),
        (b'{"text": "a", "seed": 1.5}', "line 1.seed: expected"),
        (b'{"text": "a", "seed": -1}', "line 1: expected a `seed`"),
        (b'{"text": "a", "seed": 1' + b"0" * 30 + b"}", "line 1: expected a `seed`"),
        (b'\n{"text": "  "}', "line 2: expected `text` to have something to say"),
        (b'{"text": "\\ud800"}', "line 1: expected `text` to be valid UTF-8"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_set(str(write(tmp_path, content)))


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"".join(json.dumps({"text": f"Line {number}."}).encode() + b"\n" for number in range(20)))
    monkeypatch.setattr(json_lines, "MAX_LINES", 19)
    with pytest.raises(InputError, match="expected at most 19 lines"):
        load_set(str(path))
    monkeypatch.setattr(json_lines, "MAX_BYTES", 99)
    with pytest.raises(InputError, match="expected at most 99 bytes"):
        load_set(str(path))


def test_names_that_are_no_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean default"):
        load_set("defalt")
    with pytest.raises(MissingResourceError, match="no such calibration set"):
        load_set(str(tmp_path / "none.jsonl"))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "set.jsonl"
    path.write_bytes(content)
    return path

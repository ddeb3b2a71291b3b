"""The frame of the command line: parsing, hints, JSON, exit codes, logs; with verbs that stand in for the real ones."""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from voxedge.engines import errors
from voxedge.runtime.cli import main as cli
from voxedge.runtime.cli.common import Parser, UsageError, kebab_case, nearest, needs_extra, number, whole
from voxedge.runtime.cli.console import Console, table

Run = Callable[[argparse.Namespace, Console], int]
CODES = [
    (errors.InputError, 1),
    (errors.ConfigError, 1),
    (errors.CheckpointError, 1),
    (errors.BundleError, 1),
    (errors.MissingResourceError, 2),
    (errors.BackendUnavailableError, 3),
    (errors.ExportError, 4),
    (errors.BuildError, 4),
    (errors.InferenceError, 4),
    (errors.QualityError, 5),
    (errors.EngineMismatchError, 6),
]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Run], None]]:
    """Put a verb `act` with the flags --steps, --log and words into the command line; it runs the given function."""

    def install(run: Run) -> None:
        def add(verbs: argparse._SubParsersAction[Parser]) -> None:
            parser = verbs.add_parser("act")
            parser.words = "words"
            parser.add_argument("words", nargs="*")
            parser.add_argument("--steps", type=whole(1))
            parser.add_argument("--max-tokens", type=whole(1))
            parser.add_argument("--scale", type=number(0.0, 2.0))
            parser.set_defaults(run=run)

        monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, SimpleNamespace(add=add)))

    yield install
    assert not logging.getLogger("voxedge").handlers, "main() left a log handler behind"


def failing(error: BaseException) -> Run:
    def run(arguments: argparse.Namespace, console: Console) -> int:
        raise error

    return run


def seen(store: list[argparse.Namespace]) -> Run:
    def run(arguments: argparse.Namespace, console: Console) -> int:
        store.append(arguments)
        console.result({"words": arguments.words}, " ".join(arguments.words))
        return 0

    return run


@pytest.mark.parametrize(("kind", "code"), CODES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_failure_has_its_exit_code(
    kind: type[errors.VoxedgeError], code: int, verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(failing(kind("expected A, found B; type C")))
    assert cli.main(["act"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: expected A, found B; type C\n"


@pytest.mark.parametrize("argv", [["--json", "act"], ["act", "--json"]])
def test_a_failure_with_json_is_an_object_on_stdout(
    argv: list[str], verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(failing(errors.BackendUnavailableError("no \u00fcber library")))
    assert cli.main(argv) == 3
    captured = capsys.readouterr()
    expected = {"type": "BackendUnavailableError", "message": "no \u00fcber library", "exit_code": 3}
    assert json.loads(captured.out) == {"error": expected}
    assert "error: no \u00fcber library" in captured.err


def test_an_unexpected_failure_is_one_line_that_names_its_type(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(failing(ZeroDivisionError("float division")))
    assert cli.main(["act"]) == 4
    captured = capsys.readouterr()
    assert captured.err == "error: unexpected ZeroDivisionError: float division; run again with -v for the traceback\n"


def test_verbose_shows_the_traceback(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(failing(ZeroDivisionError("float division")))
    assert cli.main(["act", "-v"]) == 4
    captured = capsys.readouterr()
    assert "Traceback (most recent call last)" in captured.err
    assert captured.err.endswith("its traceback stands above\n")


def test_the_log_file_gets_the_traceback_and_the_message_names_it(
    verb: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(failing(KeyError("layer")))
    log = tmp_path / "voxedge.log"
    assert cli.main(["--log-file", str(log), "act", "-q"]) == 4
    assert f"unexpected KeyError: 'layer'; the traceback is in {log}" in capsys.readouterr().err
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_log_file_that_cannot_be_written_is_an_input_error(
    verb: Callable[[Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store: list[argparse.Namespace] = []
    verb(seen(store))
    assert cli.main(["act", "--log-file", str(tmp_path / "no" / "log")]) == 1
    assert "--log-file" in capsys.readouterr().err
    assert store == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "out.wav"), 4, "the disk is full (out.wav)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.json"), 2, "no such file or folder: x.json"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), 1, "Permission denied: x.json"),
        (MemoryError(), 4, "--memory staged"),
    ],
    ids=["interrupt", "disk full", "not found", "permission", "memory"],
)
def test_what_the_system_refuses_is_explained(
    error: BaseException, code: int, words: str, verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(failing(error))
    assert cli.main(["act"]) == code
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", ["make_parser", "logging_to"])
def test_an_interrupt_outside_of_the_verb_is_130_too(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, name, interrupted)
    assert cli.main(["info", "nothing"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["act", "--stpes", "3"], "did you mean --steps?"),
        (["act", "--max-token=3"], "did you mean --max-tokens?"),
        (["--jsn", "act"], "did you mean --json?"),
        (["acct"], "did you mean act?"),
        (["act", "--steps", "0"], "whole number of at least 1, found '0'"),
        (["act", "--steps", "many"], "whole number of at least 1, found 'many'"),
        (["act", "--scale", "2.5"], "at least 0 and at most 2, found '2.5'"),
        (["act", "--scale", "nan"], "found 'nan'"),
        (["act", "--steps"], "expected one argument"),
        ([], "VERB"),
        (["info", "here", "there"], "unexpected argument 'there'"),
    ],
)
def test_a_wrong_command_line_exits_with_1_and_a_hint(
    argv: list[str], words: str, verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    store: list[argparse.Namespace] = []
    verb(seen(store))
    assert cli.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "--help" in captured.err
    assert captured.out == ""
    assert store == []


def test_a_usage_error_with_json_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["say", "--json", "--nonsense"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


@pytest.mark.parametrize(
    "argv",
    [
        ["-v", "--json", "--no-progress", "act", "a", "--steps", "3", "b"],
        ["act", "a", "b", "--steps", "3", "-v", "--json", "--no_progress"],
        ["--json", "act", "--steps=3", "a", "-v", "b", "--no-progress"],
        ["--no-progress", "act", "a", "--json", "-v", "--steps", "3", "--", "b"],
    ],
)
def test_flags_may_stand_anywhere(
    argv: list[str], verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    store: list[argparse.Namespace] = []
    verb(seen(store))
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == {"words": ["a", "b"]}
    assert store[0].steps == 3
    assert store[0].verbose == 1
    assert store[0].no_progress


def test_after_two_dashes_everything_is_text(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    store: list[argparse.Namespace] = []
    verb(seen(store))
    assert cli.main(["act", "--", "--steps", "-5 degrees"]) == 0
    assert store[0].words == ["--steps", "-5 degrees"]


def test_version_and_help_leave_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("voxedge ")
    assert cli.main(["say", "--help"]) == 0
    assert "--speech-tokens" in capsys.readouterr().out


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("doctor", "export", "build", "say", "verify", "info", "bench"):
        assert cli.main([name, "--help"]) == 0
        assert f"voxedge {name}" in capsys.readouterr().out


def test_snake_case_is_kebab_case() -> None:
    assert kebab_case(["--log_file=a_b", "--top_k", "a_b"]) == ["--log-file=a_b", "--top-k", "a_b"]
    assert kebab_case(["--", "--top_k"]) == ["--", "--top_k"]


def test_nearest_says_nothing_where_nothing_is_near() -> None:
    assert nearest("--zzzz", ["--steps"]) == ""


def test_a_missing_library_becomes_the_command_that_installs_it() -> None:
    with pytest.raises(errors.BackendUnavailableError, match=r"pip install 'voxedge\[export\]'"), needs_extra("export"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_a_missing_module_of_voxedge_itself_is_a_defect_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs_extra("export"):
        raise ModuleNotFoundError("No module named 'voxedge.typo'", name="voxedge.typo")


def test_progress_draws_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    options = cli.GlobalOptions()
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with Console(options).progress() as progress:
            progress("weights", 1, 2)
            progress("weights", 2, 2)
            progress("graphs", 1, 0)
        assert ("weights" in stream.getvalue()) == drawn
        assert ("graphs" in stream.getvalue()) == drawn
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Console(cli.GlobalOptions(progress=False)).progress() as progress:
        progress("weights", 1, 2)
    assert terminal.getvalue() == ""


def test_table_of_nothing_is_empty() -> None:
    assert table([]) == ""


def test_usage_error_is_an_input_error() -> None:
    assert UsageError.exit_code == errors.InputError.exit_code == 1

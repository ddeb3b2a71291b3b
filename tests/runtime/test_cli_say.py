"""`voxedge say`: which text, which bundle, which options, which output; with a synthesizer that makes a tone."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import soundfile
import soxr
from cli_stand_ins import RATE, ToneSynthesizer, opener, write_bundle

from voxedge.engines.errors import InferenceError
from voxedge.engines.loader import BackendName
from voxedge.runtime.cli import say, synthesis
from voxedge.runtime.cli.main import main
from voxedge.runtime.solvers import Kind


@pytest.fixture
def tone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToneSynthesizer:
    """The synthesizer behind `say`; the working folder is empty but for a bundle `voice`."""
    monkeypatch.chdir(tmp_path)
    synthesizer = ToneSynthesizer(write_bundle(tmp_path / "voice"))
    monkeypatch.setattr(say, "open_synthesizer", opener(synthesizer))
    return synthesizer


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    stream = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stream)


def spoken(tone: ToneSynthesizer) -> str:
    return str(next(entry["text"] for entry in tone.asked if "text" in entry))


def test_a_text_becomes_a_file_and_figures_on_stderr(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "Hello.", "-f", "out.wav", "--seed", "440"]) == 0
    samples, rate = soundfile.read("out.wav")
    assert (len(samples), rate) == (2400, RATE)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "out.wav: 0.30 s, seed 440, finish reason stop" in captured.err
    assert "RTF 0.200 (wall 0.06 s / audio 0.30 s, lower is better), first audio after 0.02 s" in captured.err
    assert "backend cpu" in captured.err
    assert tone.asked[0] == {"bundle": None, "backend": "auto", "memory": "auto"}
    assert tone.asked[-1] == {"closed": True}


def test_json_is_one_object_on_stdout_and_nothing_on_stderr(
    tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["say", "Hello.", "-f", "out.flac", "--seed", "3", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert report == {
        "file": "out.flac",
        "seconds": 0.3,
        "sample_rate": RATE,
        "seed": 3,
        "finish_reason": "stop",
        "wall_s": 0.06,
        "rtf": pytest.approx(0.2),
        "first_audio_s": 0.02,
        "tokens": 12,
        "backend": "cpu",
        "note": "",
    }


@pytest.mark.parametrize(
    ("argv", "bundle", "text"),
    [
        (["One."], None, "One."),
        (["voice", "One."], "voice", "One."),
        (["--bundle", "voice", "One."], "voice", "One."),
        (["voice", "--text", "One."], "voice", "One."),
        (["voice", "-f", "o.wav", "One."], "voice", "One."),
        (["-t", "One."], None, "One."),
        (["--text-file", "text.txt"], None, "From a file, \u00fcber."),
        (["voice", "--text-file", "text.txt"], "voice", "From a file, \u00fcber."),
        (["--stdin"], None, "From a pipe."),
        ([], None, "From a pipe."),
        (["voice"], "voice", "From a pipe."),
        (["--", "-5 degrees"], None, "-5 degrees"),
    ],
)
def test_where_text_and_bundle_come_from(
    argv: list[str], bundle: str | None, text: str, tone: ToneSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("text.txt").write_bytes(b"\xef\xbb\xbf" + "From a file, \u00fcber.".encode())
    pipe(monkeypatch, b"From a pipe.")
    assert main(["say", "-f", "out.wav", *argv]) == 0
    assert tone.asked[0]["bundle"] == (None if bundle is None else Path(bundle))
    assert spoken(tone) == text


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["Hello", "world"], 2, "in quotes"),
        (["Hello", "wide", "world"], 1, "in quotes"),
        (["voice", "Hello.", "--bundle", "voice"], 1, "expected one bundle"),
        (["Hello.", "--text-file", "text.txt"], 2, "expected the folder of a bundle"),
        (["--text", "Hello.", "--stdin"], 1, "expected one text, found --text and --stdin"),
        (["--text-file", "none.txt"], 2, "none.txt"),
        (["--text-file", "latin1.txt"], 1, "byte 0xfc at offset 2"),
        (["--text-file", "huge.txt"], 1, "at most 4.19 MB"),
        (["--speech-tokens", "none.json", "Hello."], 2, "none.json"),
        (["--speech-tokens", "latin1.txt", "Hello."], 1, "expected JSON"),
        (["--speech-tokens", "object.json", "Hello."], 1, "JSON list of token ids"),
        (["--speech-tokens", "negative.json", "Hello."], 1, "JSON list of token ids"),
        (["--greedy", "--temperature", "0.5", "Hello."], 1, "found both"),
        (["--top-p", "0", "Hello."], 1, "top_p"),
        (["--solver", "hein", "Hello."], 1, "did you mean heun?"),
        (["--backend", "gpu", "Hello."], 1, "found 'gpu'"),
        (["--min-tokens", "9", "--max-tokens", "3", "Hello."], 1, "max_tokens"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_file(
    argv: list[str], code: int, words: str, tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.txt").write_text("x")
    Path("latin1.txt").write_bytes(b"f\xc3\xbcr".replace(b"\xc3\xbc", b"o\xfc"))
    with Path("huge.txt").open("wb") as stream:
        stream.truncate((4 << 20) + 1)
    Path("object.json").write_text("{}")
    Path("negative.json").write_text("[1, -2]")
    assert main(["say", "-f", "out.wav", *argv]) == code
    assert words in capsys.readouterr().err
    assert not Path("out.wav").exists()


def test_a_pipe_of_other_bytes_names_the_offset(
    tone: ToneSynthesizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"abc\xff")
    assert main(["say", "-f", "out.wav"]) == 1
    assert "byte 0xff at offset 3" in capsys.readouterr().err


def test_an_argument_of_other_bytes_names_the_offset(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", os.fsdecode(b"ab\xff"), "-f", "out.wav"]) == 1
    assert "byte 0xff at offset 2" in capsys.readouterr().err


def test_nothing_to_say_on_a_terminal_shows_what_to_type(
    tone: ToneSynthesizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert main(["say", "-f", "out.wav"]) == 1
    assert 'voxedge say "Hello there." -f hello.wav' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("out.mp3", 1, ".wav, .flac, .ogg"),
        ("none/out.wav", 2, "expected the folder none"),
        ("there.wav", 1, "--force"),
        ("folder.wav", 1, "exists"),
    ],
)
def test_an_impossible_output_is_refused_before_anything_is_loaded(
    name: str, code: int, words: str, tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there.wav").write_bytes(b"precious")
    Path("folder.wav").mkdir()
    assert main(["say", "Hello.", "-f", name]) == code
    assert words in capsys.readouterr().err
    assert tone.asked == []
    assert Path("there.wav").read_bytes() == b"precious"


def test_force_overwrites(tone: ToneSynthesizer) -> None:
    Path("there.wav").write_bytes(b"old")
    assert main(["say", "Hello.", "-f", "there.wav", "--force"]) == 0
    assert soundfile.info("there.wav").frames == 2400


def test_a_failing_run_leaves_the_old_file(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.wav").write_bytes(b"old")
    tone.failure = InferenceError("expected finite samples, found nan")
    assert main(["say", "Hello.", "-f", "there.wav", "--force"]) == 4
    assert Path("there.wav").read_bytes() == b"old"
    assert sorted(path.name for path in Path().iterdir()) == ["there.wav", "voice"]


def test_flags_reach_the_runtime_and_the_others_keep_the_voices_own(tone: ToneSynthesizer) -> None:
    Path("prompt.json").write_text("[12, 7, 80]")
    argv = "say Hello. -f out.wav --seed 5 --steps 8 --cfg 2.5 --solver heun --top_p 0.9 --min-tokens 4 --window 1.5"
    argv += " --description calm --speech-tokens prompt.json --backend cpu --memory staged --threads 1"
    assert main(argv.split()) == 0
    assert tone.asked[0] == {"bundle": None, "backend": "cpu", "memory": "staged"}
    asked = tone.asked[1]
    config = asked["config"]
    assert (asked["description"], asked["seed"], asked["speech_prompt"]) == ("calm", 5, (12, 7, 80))
    assert (config.steps, config.cfg_scale, config.solver, config.window_s) == (8, 2.5, "heun", 1.5)
    assert (config.sampling.top_p, config.sampling.min_tokens) == (0.9, 4)
    assert (config.sampling.temperature, config.sampling.top_k) == (0.7, 25)


def test_greedy_is_temperature_0(tone: ToneSynthesizer) -> None:
    assert main(["say", "Hello.", "-f", "out.wav", "--greedy"]) == 0
    assert tone.asked[1]["config"].sampling.greedy


def test_without_a_seed_one_is_chosen_and_told(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "Hello.", "-f", "out.wav", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == tone.asked[1]["seed"]


def test_a_cut_is_a_warning(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    tone.finish_reason = "length"
    assert main(["say", "Hello.", "-f", "out.wav", "-q"]) == 0
    assert capsys.readouterr().err.startswith("warning: the speech was cut")


def test_streaming_into_a_file_gives_the_same_file_and_tells_each_piece(
    tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["say", "Hello.", "-f", "whole.wav", "--seed", "440"]) == 0
    capsys.readouterr()
    assert main(["say", "Hello.", "-f", "pieces.wav", "--seed", "440", "--stream"]) == 0
    assert capsys.readouterr().err.count("0.10 s of audio after") == 3
    assert Path("whole.wav").read_bytes() == Path("pieces.wav").read_bytes()


def test_rate_resamples_the_file(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "Hello.", "-f", "out.wav", "--rate", "16000", "--json"]) == 0
    found = soundfile.info("out.wav")
    assert (found.samplerate, found.frames) == (16000, 4800)
    assert json.loads(capsys.readouterr().out)["sample_rate"] == 16000


@pytest.mark.parametrize("rate", [RATE, 12000])
def test_raw_samples_go_to_stdout_and_their_format_to_stderr(
    rate: int, tone: ToneSynthesizer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["say", "Hello.", "-f", "-", "--seed", "440", "--rate", str(rate)]) == 0
    captured = capfdbinary.readouterr()
    found = np.frombuffer(captured.out, dtype="<i2")
    whole = tone.synthesize("", seed=440).samples[:, 0]
    expected = whole if rate == RATE else soxr.resample(whole, RATE, rate, quality="HQ")
    assert len(found) == len(expected)
    # Rounding to 16 bit costs half a step of 1 / 32767 at most; soxr in pieces may differ in the last bits of float32.
    np.testing.assert_allclose(found / 32767, expected, atol=0.51 / 32767 + 1e-6)
    assert f"s16le, 1 channel(s), {rate} Hz, seed 440".encode() in captured.err


def test_raw_samples_and_json_exclude_each_other(tone: ToneSynthesizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "Hello.", "-f", "-", "--json"]) == 1
    assert "both write to stdout" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert tone.asked == []


def test_the_choices_are_those_of_the_runtime() -> None:
    assert get_args(Kind) == synthesis.SOLVERS
    assert get_args(BackendName) == synthesis.BACKENDS

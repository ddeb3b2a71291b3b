"""MOSS-TTS from text to sound: exact lengths, streams, voices, long texts, and what cannot be done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.runtime.cli.main import main
from voxedge.runtime.directions import Directions
from voxedge.runtime.languages import LANGUAGES, language_name
from voxedge.runtime.synthesizer import Request, Synthesizer
from voxedge.runtime.systems import moss_rows

TEXT = "Hello there, my friend."
CASES = ("moss_delay", "moss_local_v15")


@pytest.fixture(params=CASES)
def bundle(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Path:
    return exported(request.param, "fp32")


@pytest.fixture
def voice(bundle: Path, codec_bundle: Path) -> Iterator[Synthesizer]:
    with Synthesizer.from_pretrained(bundle, backend="cpu", threads=1, codec=codec_bundle) as synthesizer:
        yield synthesizer


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A second of noise, which is as good as speech to a random codec."""
    path = tmp_path / "voice.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(5).standard_normal(8000), 8000)
    return path


def hop(voice: Synthesizer) -> int:
    return round(voice.sample_rate / voice.codec.frame_rate)


def test_a_duration_is_met_to_the_frame_and_a_stream_has_the_same_samples(voice: Synthesizer) -> None:
    for directions in (Directions(frames=9), Directions(duration_s=1.3)):
        frames = directions.frames or round(1.3 * voice.codec.frame_rate)
        audio = voice.synthesize(TEXT, seed=1, directions=directions)
        assert len(audio.samples) == frames * hop(voice)
        assert audio.finish_reason == "stop"
        streamed = [chunk.samples for chunk in voice.stream(TEXT, seed=1, directions=directions)]
        assert len(streamed) > 2
        np.testing.assert_array_equal(np.concatenate(streamed), audio.samples)


def test_pieces_of_a_long_text_share_a_duration(voice: Synthesizer) -> None:
    audio = voice.synthesize("Hello. There you are. " * 40, seed=1, directions=Directions(frames=70))
    assert len(audio.samples) == 70 * hop(voice)
    with pytest.raises(InputError, match="at least one frame"):
        voice.synthesize("Hello. There you are. " * 400, seed=1, directions=Directions(frames=3))


def test_the_first_sound_comes_with_the_first_whole_frame(voice: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    after = moss_rows.Rows.after

    def counted(self: moss_rows.Rows, prompt: np.ndarray) -> Iterator[np.ndarray]:
        for row in after(self, prompt):
            drawn.append(row)
            yield row

    monkeypatch.setattr(moss_rows.Rows, "after", counted)
    stream = voice.stream(TEXT, seed=1, directions=Directions(frames=20))
    first = next(stream)
    assert len(first.samples) == hop(voice)
    channels = len(drawn[0]) - 1
    start = next(number for number, row in enumerate(drawn) if is_speech(row, voice))
    # The delay model's last channel speaks n - 1 rows behind its first; a local model needs one row.
    assert len(drawn) - start == (channels if "delay" in str(voice.bundle.root) else 1)
    stream.close()


def is_speech(row: np.ndarray, voice: Synthesizer) -> bool:
    return bool(row[0] == voice.bundle.manifest.settings["ids"]["gen_slot"])


def test_a_prefix_is_not_heard(voice: Synthesizer) -> None:
    codes = np.random.default_rng(0).integers(0, 32, (6, voice.codec.codebooks)).astype(np.int32)
    directions = Directions(frames=7, prefix=codes, prefix_text="hello")
    audio = voice.synthesize("and so on", seed=1, directions=directions)
    assert len(audio.samples) == 7 * hop(voice)
    alone = voice.synthesize("and so on", seed=1, directions=Directions(frames=7))
    assert not np.array_equal(audio.samples, alone.samples)


def test_codes_need_no_codec(voice: Synthesizer, bundle: Path) -> None:
    asked = Directions(frames=8)
    with Synthesizer.from_pretrained(bundle, backend="cpu", threads=1) as alone:
        codes = alone.codes(TEXT, seed=4, directions=asked)
    audio = voice.synthesize(TEXT, seed=4, directions=asked)
    assert codes.reshape(-1).tolist() == list(audio.speech_tokens)
    np.testing.assert_array_equal(voice.codec.decode(codes.T).shape, audio.samples.shape)


def test_pieces_are_short_enough_to_be_spoken(voice: Synthesizer) -> None:
    """A text of several times the longest speech is cut into pieces, not cut off."""
    longest = voice.default_config.sampling.max_tokens
    short = dataclasses.replace(voice.default_config.sampling, temperature=1.0, min_tokens=2, max_tokens=longest // 10)
    config = dataclasses.replace(voice.default_config, sampling=short)
    pieces = voice._utterances(Request("Hello. There you are. " * 30, config=config), 0)
    assert len(pieces) > 3
    assert pieces[0].share[0] == 0.0
    assert pieces[-1].share[1] == 1.0


def test_staged_memory_changes_nothing_but_memory(voice: Synthesizer, bundle: Path, codec_bundle: Path) -> None:
    asked = Directions(frames=6)
    with Synthesizer.from_pretrained(bundle, backend="cpu", memory="staged", threads=1, codec=codec_bundle) as staged:
        for text in (TEXT, "Again."):
            found = staged.synthesize(text, seed=2, directions=asked).samples
            np.testing.assert_array_equal(found, voice.synthesize(text, seed=2, directions=asked).samples)


def test_a_speaking_directory_without_a_codec_says_so(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        Synthesizer.from_pretrained(bundle, backend="cpu") as synthesizer,
        pytest.raises(MissingResourceError) as error,
    ):
        synthesizer.synthesize(TEXT)
    assert "MOSS-Audio-Tokenizer" in str(error.value)
    assert "--codec DIR" in str(error.value)
    assert main(["say", str(bundle), TEXT, "-f", str(tmp_path / "a.wav"), "--backend", "cpu"]) == 2
    assert "MOSS-Audio-Tokenizer" in capsys.readouterr().err


def test_say_with_a_recording(
    bundle: Path, codec_bundle: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--codec", str(codec_bundle), "--voice", str(recording), "--seed", "3", "--backend", "cpu"]
    asked = ["--duration", "2", "--language", "zh", "--threads", "1", "--json"]
    for name, more in (("whole.wav", []), ("streamed.wav", ["--stream"])):
        assert main(["say", str(bundle), TEXT, "-f", str(tmp_path / name), *common, *asked, *more]) == 0
        assert json.loads(capsys.readouterr().out)["seconds"] == 2.0
    assert (tmp_path / "whole.wav").read_bytes() == (tmp_path / "streamed.wav").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--duration", "0"], "expected a duration above 0"),
        (["--duration", "-3"], "expected a duration above 0"),
        (["--duration", "nan"], "expected a number"),
        (["--duration", "5000"], "expected room for text in"),
        (["--tokens", "0"], "expected frames of 1 or more"),
        (["--tokens", "5", "--duration", "1"], "found both"),
        (["--language", "Klingon"], "expected a language"),
        (["--language", "Frensh"], "did you mean 'French'"),
        (["--codebooks", "99"], "this model has no more"),
        (["--codebooks", "0"], "expected codebooks of 1 or more"),
        (["--said", "hello"], "expected --go-on-from"),
    ],
)
def test_what_cannot_be_asked_for(
    flags: list[str],
    message: str,
    exported: Callable[..., Path],
    codec_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = exported("moss_local_v15", "fp32")
    where = ["-f", str(tmp_path / "a.wav"), "--codec", str(codec_bundle), "--backend", "cpu"]
    assert main(["say", str(bundle), TEXT, *where, *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.wav").exists()


def test_a_voice_that_is_not_there(
    exported: Callable[..., Path], codec_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported("moss_local_v15", "fp32")
    where = ["-f", str(tmp_path / "a.wav"), "--codec", str(codec_bundle), "--backend", "cpu"]
    assert main(["say", str(bundle), TEXT, *where, "--voice", "nobody"]) == 2
    assert "expected a recording, or a voice of" in capsys.readouterr().err


def test_languages() -> None:
    assert [language_name(code) for code in LANGUAGES] == list(LANGUAGES.values())
    assert [language_name(name) for name in LANGUAGES.values()] == list(LANGUAGES.values())

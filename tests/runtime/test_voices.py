"""Voices: what a recording goes through, which recordings are refused, and a bundle that can always be verified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InputError, MissingResourceError
from voxedge.runtime.cli.main import main
from voxedge.runtime.codec import Codec
from voxedge.runtime.voices import (
    MAX_REFERENCE_S,
    add_voice,
    normalise_loudness,
    open_voice,
    record_voice,
    reference_audio,
    remove_voice,
    voice_paths,
)


@pytest.fixture
def bundle(codec_bundle: Path, tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    shutil.copytree(codec_bundle, target)
    return target


@pytest.fixture(scope="module")
def codec(codec_bundle: Path) -> Codec:
    return Codec.from_pretrained(codec_bundle, backend="cpu", threads=1)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "voice.wav"
    soundfile.write(path, tone(1.0, 8000), 8000)
    return path


def tone(seconds: float, rate: int, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220.0 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_loudness(golden: Callable[[str], Path]) -> None:
    """Equal, unless the mean was added up in an order that moves the level by a step of FP32 at 20 dB, 1.9e-6 dB."""
    seen = 0
    for case in ("moss_delay", "moss_local_v15", "moss_local_v15_abs"):
        try:
            folder = golden(case)
        except pytest.skip.Exception:
            continue
        with np.load(folder / "io.npz") as arrays:
            for name in (name for name in arrays.files if name.startswith("loud") and name.endswith("_in")):
                found = normalise_loudness(arrays[name].T)  # [T, channels] or [T]
                np.testing.assert_allclose(found, arrays[name.replace("_in", "_out")].T, rtol=4e-7, atol=0)
                seen += 1
    if not seen:
        pytest.skip("no golden case with recordings of loudness")


def test_loudness_by_its_formula() -> None:
    for level_db, wanted_db in ((-40.0, -37.0), (-21.0, -20.0), (-20.0, -20.0), (-18.5, -20.0), (0.0, -3.0)):
        samples = np.full(100, 10.0 ** (level_db / 20.0), np.float32)
        found_db = 20.0 * np.log10(float(normalise_loudness(samples)[0]))
        assert found_db == pytest.approx(wanted_db, abs=1e-3)
    assert not normalise_loudness(np.zeros((0, 1), np.float32)).size


def test_any_rate_and_channels(codec: Codec, tmp_path: Path) -> None:
    """The channels' mean, at the codec's rate, at the right loudness."""
    for rate, channels in ((8000, 1), (44100, 2), (codec.sample_rate, 3)):
        path = tmp_path / f"{rate}.flac"
        samples = tone(1.0, rate)
        soundfile.write(path, np.stack([samples * (1 + (channel == 1)) for channel in range(channels)], 1), rate)
        found = reference_audio(path, codec)
        assert found.shape == (pytest.approx(codec.sample_rate, abs=1), codec.channels)
    renamed = tmp_path / "sound.txt"  # the content decides, not the name
    shutil.copy(tmp_path / "8000.flac", renamed)
    np.testing.assert_array_equal(reference_audio(renamed, codec), reference_audio(tmp_path / "8000.flac", codec))


def write_nan(path: Path) -> None:
    samples = tone(1.0, 8000)
    samples[17] = np.nan
    soundfile.write(path, samples, 8000, subtype="FLOAT")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing in it": (lambda path: soundfile.write(path, np.zeros(0), 8000), "holds none"),
    "0.1 seconds": (lambda path: soundfile.write(path, tone(0.1, 8000), 8000), "0.10 s"),
    "10 minutes": (lambda path: soundfile.write(path, np.zeros(600 * 8000, np.int16), 8000), "600.0 s; cut it"),
    "silence": (lambda path: soundfile.write(path, np.zeros(8000), 8000), "silence"),
    "NaN": (write_nan, "NaN"),
    "text": (lambda path: path.write_text("This is not a recording. " * 40), "cannot read it"),
    "empty file": (lambda path: path.write_bytes(b""), "cannot read it"),
    "half a header": (lambda path: path.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt "), "cannot read it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_recordings_that_are_no_voice(
    kind: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, message = BAD[kind]
    path = tmp_path / "bad.wav"
    write(path)
    before = (bundle / "voxedge.json").read_bytes()
    assert main(["voice", "add", str(bundle), "anna", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert (bundle / "voxedge.json").read_bytes() == before
    assert not (bundle / "voices").exists()


def test_a_recording_of_the_longest_length(codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(MAX_REFERENCE_S, codec.sample_rate), codec.sample_rate)
    assert record_voice(path, codec).duration_s == pytest.approx(MAX_REFERENCE_S, abs=1.0 / codec.frame_rate)


def test_voices_come_and_go(bundle: Path, codec: Codec, recording: Path) -> None:
    voice = record_voice(recording, codec, "hello")
    opened = add_voice(Bundle.open(bundle), "anna", voice)
    opened = add_voice(opened, "ben-2", record_voice(recording, codec, codebooks=2))
    assert list(voice_paths(opened)) == ["anna", "ben-2"]
    Bundle.open(bundle, verify_hashes=True)
    found = open_voice(opened, "anna", codec)
    np.testing.assert_array_equal(found.codes, voice.codes)
    assert (found.text, found.recording) == ("hello", voice.recording)
    assert len(open_voice(opened, "ben-2", codec).codes) == 2
    opened = remove_voice(opened, "anna")
    assert list(voice_paths(opened)) == ["ben-2"]
    assert len(list((bundle / "voices").iterdir())) == 1
    Bundle.open(bundle, verify_hashes=True)
    with pytest.raises(MissingResourceError, match="ben-2"):
        open_voice(opened, "anna", codec)
    assert codec.decode(voice.codes).shape == (len(voice.codes[0]) * codec.settings.hop, codec.channels)


def test_a_voice_is_replaced_only_on_demand(bundle: Path, codec: Codec, recording: Path) -> None:
    opened = add_voice(Bundle.open(bundle), "anna", record_voice(recording, codec))
    other = record_voice(recording, codec, codebooks=1)
    with pytest.raises(InputError, match="--force"):
        add_voice(opened, "anna", other)
    # From a stale view: what another process added meanwhile stays.
    stale = Bundle.open(bundle)
    add_voice(opened, "ben", other)
    opened = add_voice(stale, "anna", other, overwrite=True)
    assert list(voice_paths(opened)) == ["anna", "ben"]
    assert len(open_voice(opened, "anna", codec).codes) == 1
    assert add_voice(opened, "anna", other, overwrite=True) == opened


@pytest.mark.parametrize("name", ["", "../anna", "a/b", "anna.b", "a" * 65, "-a", "änna", "a\n"])
def test_names(name: str, bundle: Path, codec: Codec, recording: Path) -> None:
    with pytest.raises(InputError, match="expected a name"):
        add_voice(Bundle.open(bundle), name, record_voice(recording, codec))


def test_a_voice_that_was_changed(bundle: Path, codec: Codec, recording: Path) -> None:
    opened = add_voice(Bundle.open(bundle), "anna", record_voice(recording, codec))
    path = opened.path(voice_paths(opened)["anna"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="was changed"):
        open_voice(Bundle.open(bundle), "anna", codec)


def test_a_codec_elsewhere(
    fp32_bundle: Path,
    codec_bundle: Path,
    codec: Codec,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bundle without a codec of its own takes voices of one that is named."""
    target = tmp_path / "speaker"
    shutil.copytree(fp32_bundle, target)
    words = ["voice", "add", str(target), "anna", str(recording)]
    assert main(words) == 1
    assert "expected a bundle with a codec" in capsys.readouterr().err
    assert main([*words, "--codec", str(tmp_path / "none")]) == 2
    assert main([*words, "--codec", str(codec_bundle), "-t", "hello"]) == 0
    assert open_voice(Bundle.open(target, verify_hashes=True), "anna", codec).text == "hello"
    capsys.readouterr()
    assert main(["voice", "list", str(target), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["voices"]) == ["anna"]
    assert main(["voice", "remove", str(target), "ben"]) == 2
    assert main(["voice", "remove", str(target), "anna"]) == 0

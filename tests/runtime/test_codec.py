"""The codec's runtime and its verb: shapes, streams, limits; the numbers themselves are checked in tests/parity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

from voxedge.engines.errors import BundleError, ConfigError, InputError
from voxedge.runtime.cli.main import main
from voxedge.runtime.code_files import ENTRY, FORMAT, CodeFile, read_codes
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import CodecSettings


@pytest.fixture(scope="module")
def codec(codec_bundle: Path) -> Codec:
    return Codec.from_pretrained(codec_bundle, backend="cpu", threads=1)


def noise(codec: Codec, frames: int = 25) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (0.1 * rng.standard_normal((frames * codec.settings.hop, codec.channels))).astype(np.float32)


def random_codes(codec: Codec, frames: int, codebooks: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, codec.settings.codebook_size, (codebooks or codec.codebooks, frames))


def test_there_and_back(codec: Codec) -> None:
    samples = noise(codec)
    codes = codec.encode(samples)
    assert codes.shape == (codec.codebooks, 25)
    assert codec.decode(codes).shape == samples.shape
    np.testing.assert_array_equal(codec.encode(samples[:, 0]), codes)
    np.testing.assert_array_equal(codec.encode(samples[: -codec.settings.hop // 2]), codes[:, :-1])


def test_codebooks_that_are_not_used_add_nothing(codec: Codec) -> None:
    """Nor does their count have to stay the same in a stream."""
    codes = random_codes(codec, 4)
    with codec.stream() as stream:
        parts = [stream.feed(codes[:1, :2]), stream.feed(codes[:, 2:])]
    np.testing.assert_allclose(parts[0], codec.decode(codes[:1])[: len(parts[0])], atol=1e-4)
    assert np.abs(parts[0] - codec.decode(codes)[: len(parts[0])]).max() > 1e-3


def test_nothing_is_decoded_to_nothing(codec: Codec) -> None:
    with codec.stream() as stream:
        assert stream.feed(random_codes(codec, 0)).shape == (0, codec.channels)
    with pytest.raises(InputError, match="open stream"):
        stream.feed(random_codes(codec, 1))


@pytest.mark.parametrize("value", [-1, "size", "more"])
def test_codes_that_do_not_exist(codec: Codec, value: object) -> None:
    codes = random_codes(codec, 3)
    codes[0, 1] = value if isinstance(value, int) else codec.settings.codebook_size + (value == "more")
    with pytest.raises(InputError, match=r"expected codes of 0 \.\. "):
        codec.decode(codes)


def test_more_codebooks_than_there_are(codec: Codec) -> None:
    with pytest.raises(InputError, match=f"of 1 .. {codec.codebooks} codebooks"):
        codec.decode(random_codes(codec, 3, codec.codebooks + 1))
    with pytest.raises(InputError, match=f"1 .. {codec.codebooks} codebooks, found {codec.codebooks + 1}"):
        codec.encode(noise(codec), codec.codebooks + 1)


def test_samples_that_are_none(codec: Codec) -> None:
    for samples, message in (
        (noise(codec)[: codec.settings.hop - 1], "at least"),
        (noise(codec, 0), "at least"),
        (np.full((codec.settings.hop, codec.channels), np.nan, np.float32), "finite"),
        (np.zeros((codec.settings.hop, codec.channels + 1), np.float32), "channel"),
        (noise(codec)[None], "channel"),
    ):
        with pytest.raises(InputError, match=message):
            codec.encode(samples)


@pytest.mark.parametrize("field", ["sample_rate", "hop", "codebooks", "codebook_size", "channels"])
def test_settings_are_checked(field: str) -> None:
    good = {"sample_rate": 24000, "hop": 1920, "codebooks": 32, "codebook_size": 1024, "context": 125, "channels": 1}
    CodecSettings(**good, fingerprint="")
    with pytest.raises(ConfigError, match=field):
        CodecSettings(**{**good, field: 0}, fingerprint="")


def test_a_bundle_without_a_codec(fp32_bundle: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle with a codec"):
        Codec.from_pretrained(fp32_bundle, backend="cpu")


# files of codes


def test_a_file_of_codes(codec: Codec, tmp_path: Path) -> None:
    codes = random_codes(codec, 9, 2).astype(np.int32)
    path = tmp_path / "codes.safetensors"
    path.write_bytes(CodeFile(codes, codec.settings.fingerprint, codec.frame_rate, "hello").to_bytes())
    found = read_codes(path, codec)
    np.testing.assert_array_equal(found.codes, codes)
    assert (found.text, found.duration_s) == ("hello", 9 / codec.frame_rate)


def entry(form: str, fingerprint: str) -> dict[str, str]:
    return {ENTRY: json.dumps({"format": form, "fingerprint": fingerprint})}


def hostile(codec: Codec) -> dict[str, tuple[Callable[[Path], object], str]]:
    """Files that are no codes of this codec, and a word of what is said about them."""
    good = random_codes(codec, 5).astype(np.int32)
    words = entry(FORMAT, codec.settings.fingerprint)
    wrong = np.full((codec.codebooks, 5), codec.settings.codebook_size, np.int32)
    giant = (1 << 62).to_bytes(8, "little") + b"{}"
    return {
        "empty": (lambda path: path.write_bytes(b""), "cannot read"),
        "text": (lambda path: path.write_text("hello " * 50), "cannot read"),
        "giant header": (lambda path: path.write_bytes(giant), "cannot read"),
        "no words": (lambda path: save_file({"codes": good}, path, {ENTRY: "[1]"}), "written by voxedge"),
        "broken words": (lambda path: save_file({"codes": good}, path, {ENTRY: "["}), "cannot read"),
        "deep words": (lambda path: save_file({"codes": good}, path, {ENTRY: "[" * 100_000}), "cannot read"),
        "foreign": (lambda path: save_file({"codes": good}, path), "written by voxedge"),
        "other tensors": (lambda path: save_file({"codes": good, "x": good}, path, words), "written by voxedge"),
        "other codec": (
            lambda path: save_file({"codes": good}, path, entry(FORMAT, "f" * 64)),
            "of this codec",
        ),
        "floats": (lambda path: save_file({"codes": good.astype(np.float32)}, path, words), "float32"),
        "out of range": (lambda path: save_file({"codes": wrong}, path, words), "another codec"),
        "no frames": (lambda path: save_file({"codes": good[:, :0]}, path, words), "at least one frame"),
        "one axis": (lambda path: save_file({"codes": good[0]}, path, words), "codebooks"),
        "large": (lambda path: path.open("wb").truncate(1 << 40), "at most"),
    }


def test_hostile_files_of_codes(codec: Codec, codec_bundle: Path, tmp_path: Path) -> None:
    for number, (label, (write, message)) in enumerate(hostile(codec).items()):
        path = tmp_path / f"{number}.safetensors"
        write(path)
        with pytest.raises(InputError, match=message):
            read_codes(path, codec)
        assert main(["codec", "decode", str(codec_bundle), str(path), str(tmp_path / "out.wav")]) == 1, label
    assert not (tmp_path / "out.wav").exists()


# the verb


def test_the_verb_there_and_back(
    codec: Codec, codec_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wave, codes, made = tmp_path / "in.wav", tmp_path / "codes.safetensors", tmp_path / "out.wav"
    soundfile.write(wave, noise(codec), codec.sample_rate, subtype="FLOAT")
    assert main(["codec", "encode", str(codec_bundle), str(wave), str(codes), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["codebooks"], report["frames"]) == (codec.codebooks, 25)
    np.testing.assert_array_equal(read_codes(codes, codec).codes, codec.encode(noise(codec)))
    assert main(["codec", "decode", str(codec_bundle), str(codes), str(made), "--codebooks", "2"]) == 0
    samples, rate = soundfile.read(made, dtype="float32", always_2d=True)
    assert rate == codec.sample_rate
    expected = np.clip(codec.decode(read_codes(codes, codec).codes[:2]), -1.0, 1.0)
    np.testing.assert_allclose(samples, expected, atol=1.0 / 32768 + 1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("encode {bundle} {wave} {folder}/out.txt", 1, "ends in .safetensors"),
        ("encode {bundle} {wave} {wave}.safetensors/x.safetensors", 2, "make it first"),
        ("encode {bundle} {folder}/none.wav {folder}/out.safetensors", 2, "none"),
        ("encode {folder}/none {wave} {folder}/out.safetensors", 2, "found nothing"),
        ("encode {bundle} {wave} {folder}/out.safetensors --codebooks 1000", 1, "codebooks"),
        ("encode {bundle} {wave} {folder}/out.safetensors --codebooks 0", 1, "whole number"),
        ("decode {bundle} {wave} {folder}/out.wav", 1, "cannot read"),
        ("decode {bundle} {folder}/none.safetensors {folder}/out.wav", 2, "file of codes"),
        ("decode {bundle} {wave} {folder}/out.mp3", 1, "ends in .wav"),
        ("turn {bundle}", 1, "expected one of encode, decode"),
    ],
)
def test_what_cannot_be_done(
    codec: Codec,
    codec_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
    message: str,
) -> None:
    wave = tmp_path / "in.wav"
    soundfile.write(wave, noise(codec), codec.sample_rate)
    filled = words.format(bundle=codec_bundle, wave=wave, folder=tmp_path)
    assert main(["codec", *filled.split()]) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav"]


def test_an_existing_file_stays(codec: Codec, codec_bundle: Path, tmp_path: Path) -> None:
    wave, codes = tmp_path / "in.wav", tmp_path / "codes.safetensors"
    soundfile.write(wave, noise(codec), codec.sample_rate)
    codes.write_text("mine")
    assert main(["codec", "encode", str(codec_bundle), str(wave), str(codes)]) == 1
    assert codes.read_text() == "mine"
    assert main(["codec", "encode", str(codec_bundle), str(wave), str(codes), "--force"]) == 0
    assert read_codes(codes, codec).codes.shape[0] == codec.codebooks

"""Records, files and checks of sound."""

from __future__ import annotations

import io
import os
import resource
import stat
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxedge.engines.errors import InferenceError, InputError, MissingResourceError, VoxedgeError
from voxedge.runtime.audio import Audio, AudioChunk, Samples, Timing, check_audio, read_audio, resample
from voxedge.runtime.audio_files import encode_audio

TIMING = Timing(wall_s=1.0, audio_s=0.5, first_audio_s=0.1, tokens=12)


def tone(duration_s: float = 0.5, rate: int = 48_000, channels: int = 1, hertz: float = 440.0) -> Samples:
    time = np.arange(round(duration_s * rate)) / rate
    one = 0.5 * np.sin(2 * np.pi * hertz * time)
    return np.stack([one * (0.5**channel) for channel in range(channels)], axis=1).astype(np.float32)  # [T, channels]


def audio_of(samples: Samples, rate: int = 48_000) -> Audio:
    return Audio(samples=samples, sample_rate=rate, seed=1, finish_reason="stop", timing=TIMING)


def test_audio_unpacks_and_knows_its_length() -> None:
    audio = audio_of(tone())
    samples, rate = audio
    assert samples is audio.samples and rate == 48_000
    assert audio.duration_s == 0.5 and TIMING.rtf == 2.0
    assert Timing(wall_s=1.0, audio_s=0.0, first_audio_s=0.0).rtf == float("inf")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".WAV"])
def test_saved_files_read_back(tmp_path: Path, suffix: str, channels: int) -> None:
    original = tone(channels=channels)
    audio_of(original).save(tmp_path / f"x{suffix}")
    samples, rate = read_audio(tmp_path / f"x{suffix}", mono=False)
    assert rate == 48_000 and samples.shape == original.shape and samples.dtype == np.float32
    if suffix == ".ogg":  # lossy: the error power stays 20 dB below the signal's
        assert np.mean((samples - original) ** 2) < 0.01 * np.mean(original**2)
    else:  # half a step of rounding, and 32767 / 32768 of gain
        assert np.abs(samples - original).max() < 1.1 / 32_768


def test_wav_holds_exactly_the_pcm(tmp_path: Path) -> None:
    audio = audio_of(np.array([[0.0], [1.0], [-1.0], [3.0], [-3.0], [0.25]], dtype=np.float32), 24_000)
    audio.save(tmp_path / "x.wav")
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (24_000, 2, 1)
        assert file.readframes(6) == audio.to_pcm16()
    values = np.frombuffer(audio.to_pcm16(), dtype="<i2")
    assert values.tolist() == [0, 32_767, -32_767, 32_767, -32_767, 8192]
    chunk = AudioChunk(samples=audio.samples, sample_rate=24_000, index=0, is_last=True, finish_reason="stop")
    assert chunk.to_pcm16() == audio.to_pcm16()


def test_same_samples_give_the_same_bytes() -> None:
    assert encode_audio(tone(), 48_000, ".wav") == encode_audio(tone(), 48_000, ".wav")


def test_long_ogg_is_written(tmp_path: Path) -> None:
    audio_of(tone(duration_s=120.0, rate=16_000), 16_000).save(tmp_path / "x.ogg")
    assert soundfile.info(tmp_path / "x.ogg").frames == 120 * 16_000


def test_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="found one"):
        audio_of(tone()).save(path)
    assert path.read_bytes() == b"mine"
    audio_of(tone()).save(path, overwrite=True)
    assert path.read_bytes().startswith(b"RIFF")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.wav"]


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        audio_of(tone()).save(tmp_path / "x.wav")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.wav").stat().st_mode) == 0o640


def test_full_disk_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel refuses the rest of the file
    try:
        with pytest.raises(VoxedgeError, match=r"cannot write .*x\.wav \(48044 bytes\)"):
            audio_of(tone()).save(path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.wav"]


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    audio = audio_of(tone())
    with pytest.raises(InputError, match=r"\.wav, \.flac, \.ogg, found '\.mp3'"):
        audio.save(tmp_path / "x.mp3")
    with pytest.raises(InputError, match="no suffix"):
        audio.save(tmp_path / "x")
    with pytest.raises(MissingResourceError, match="mkdir -p"):
        audio.save(tmp_path / "absent" / "x.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(InputError, match="found the folder"):
        audio.save(tmp_path / "folder.wav", overwrite=True)
    with pytest.raises(InputError, match="FLAC cannot hold 9 channels"):
        audio_of(tone(channels=9)).save(tmp_path / "x.flac")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.wav"]


def test_reading_mixes_and_converts(tmp_path: Path) -> None:
    audio_of(tone(channels=2)).save(tmp_path / "x.flac")
    samples, rate = read_audio(tmp_path / "x.flac", sample_rate=16_000)
    assert rate == 16_000 and samples.shape == (8000, 1)
    # The mean of two tones of amplitude 0.5 and 0.25, away from the ends where the filter has no past.
    assert np.abs(samples[2000:6000]).max() == pytest.approx(0.375, rel=0.01)


def test_reading_refuses_what_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="absent"):
        read_audio(tmp_path / "absent.wav")
    (tmp_path / "text.wav").write_text("not sound")
    with pytest.raises(InputError, match="cannot read it"):
        read_audio(tmp_path / "text.wav")
    (tmp_path / "zero.raw").write_bytes(b"")
    with pytest.raises(InputError, match="cannot read it"):
        read_audio(tmp_path / "zero.raw")
    audio_of(tone(duration_s=0.0)).save(tmp_path / "empty.wav")
    with pytest.raises(InputError, match="holds none"):
        read_audio(tmp_path / "empty.wav")
    audio_of(tone(duration_s=2.0)).save(tmp_path / "long.wav")
    with pytest.raises(InputError, match=r"at most 1 s, found 2\.0 s"):
        read_audio(tmp_path / "long.wav", max_duration_s=1.0)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match="NaN"):
        read_audio(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "wide.wav", np.zeros((10, 9)), 16_000)
    with pytest.raises(InputError, match="found 9 at 16000 Hz"):
        read_audio(tmp_path / "wide.wav")


def test_reading_survives_a_truncated_file(tmp_path: Path) -> None:
    content = encode_audio(tone(), 48_000, ".flac")
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    try:
        samples, _ = read_audio(tmp_path / "cut.flac")
    except InputError:
        return
    assert 0 < len(samples) <= 24_000


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 48_000, format="FLAC")
    (tmp_path / "x.wav").write_bytes(buffer.getvalue())
    assert read_audio(tmp_path / "x.wav")[0].shape == (24_000, 1)


def test_resampling_keeps_a_tone() -> None:
    found = resample(tone(rate=48_000), 48_000, 24_000)
    assert found.dtype == np.float32 and found.shape == (12_000, 1)
    # Away from the ends a tone far below both Nyquist rates passes within 0.1 %.
    np.testing.assert_allclose(found[1000:-1000], tone(rate=24_000)[1000:-1000], atol=5e-4)
    same = tone()
    assert resample(same, 48_000, 48_000) is same
    with pytest.raises(InputError, match="got 0"):
        resample(same, 48_000, 0)


def test_check_finds_clipping_and_silence() -> None:
    samples = np.zeros((1000, 2), dtype=np.float32)
    assert check_audio(samples).silent and check_audio(samples[:0]).silent
    samples[0, 0] = 2e-4
    assert not check_audio(samples).silent
    samples[:5, 1] = -1.5
    found = check_audio(samples)
    assert (found.peak, found.clipped_fraction, found.silent) == (1.5, 5 / 2000, False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_refuses_what_is_no_number(bad: float) -> None:
    samples = tone()
    samples[7] = bad
    with pytest.raises(InferenceError, match=f"found {bad} at sample 7"):
        check_audio(samples)

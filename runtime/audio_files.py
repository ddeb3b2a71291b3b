"""Sound files: samples in, a file out, and the other way; and the change of sample rate between the two.

In: float32 samples [T, channels], or a path. Out: a complete file or none, or samples that were checked.
Does not know: models, voices, how samples came to be. Files that are read are hostile: sizes are checked before memory
is taken.
"""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from voxedge.engines.errors import InputError, MissingResourceError, VoxedgeError

Samples = npt.NDArray[np.float32]

MAX_INPUT_S = 60.0
"""Longest recording that `read_audio` takes unless told otherwise, in seconds; voices need far less."""

_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_RATES_HZ = (1_000, 384_000)
_MAX_CHANNELS = 8
_BLOCK = 65_536  # libvorbis overflows its stack when it is given minutes at once (libsndfile issue 130)


def to_pcm16(samples: Samples) -> bytes:
    """16-bit little-endian PCM, channels interleaved; what is beyond full scale is clipped.

    Example:
        >>> to_pcm16(np.array([[0.0], [1.0], [-2.0]], dtype=np.float32)).hex()
        '0000ff7f0180'
    """
    return _pcm16(samples).tobytes()


def write_audio(path: str | Path, samples: Samples, sample_rate: int, overwrite: bool = False) -> None:
    """Write a WAV or FLAC (16 bit) or Ogg Vorbis file, as the suffix says.

    The file appears complete or not at all: it is written under another name in the same folder and renamed.

    Args:
        path: Where to; ends in `.wav`, `.flac` or `.ogg`.
        samples: [T, channels] or [T], full scale 1.
        sample_rate: In Hz.
        overwrite: Whether an existing file may be replaced.

    Raises:
        InputError: The suffix is unknown, or the file exists and may not be replaced.
        MissingResourceError: The folder does not exist.
        VoxedgeError: The disk is full or may not be written to.
    """
    target = Path(path)
    content = encode_audio(samples, sample_rate, target.suffix)
    if target.is_dir():
        raise InputError(f"expected a file name to write to, found the folder {target}; name a file in it")
    if not target.parent.is_dir():
        raise MissingResourceError(f"expected the folder {target.parent} to exist; type: mkdir -p '{target.parent}'")
    if target.exists() and not overwrite:
        raise InputError(f"expected no file at {target}, found one; name another file or allow overwriting")
    _replace(target, content)


def encode_audio(samples: Samples, sample_rate: int, suffix: str) -> bytes:
    """The bytes of a sound file, in memory.

    Args:
        samples: [T, channels] or [T], full scale 1.
        sample_rate: In Hz.
        suffix: `.wav`, `.flac` or `.ogg`.

    Raises:
        InputError: The suffix is unknown, or the format cannot hold this rate or count of channels.
    """
    if suffix.lower() not in _FORMATS:
        raise InputError(f"expected a name ending in {', '.join(_FORMATS)}, found {suffix or 'no suffix'!r}")
    kind, subtype = _FORMATS[suffix.lower()]
    pcm = _pcm16(samples)
    buffer = io.BytesIO()
    channels = 1 if pcm.ndim == 1 else pcm.shape[1]
    try:
        with soundfile.SoundFile(buffer, "w", sample_rate, channels, subtype, format=kind) as file:
            for start in range(0, len(pcm), _BLOCK):
                file.write(pcm[start : start + _BLOCK])
    except (soundfile.SoundFileError, ValueError) as error:
        raise InputError(f"{kind} cannot hold {channels} channels at {sample_rate} Hz: {error}; try .wav") from error
    return buffer.getvalue()


def read_audio(
    path: str | Path, sample_rate: int | None = None, mono: bool = True, max_duration_s: float = MAX_INPUT_S
) -> tuple[Samples, int]:
    """Read a recording.

    Args:
        path: Any file that libsndfile knows: WAV, FLAC, Ogg, MP3, AIFF; the content decides, not the name.
        sample_rate: Rate to convert to, in Hz; None keeps the file's.
        mono: Whether to average the channels into one.
        max_duration_s: Longest recording that is accepted, in seconds.

    Returns:
        Samples [T, channels], full scale 1, and their rate in Hz.

    Raises:
        MissingResourceError: There is no such file.
        InputError: It is no sound file, empty, too long, or holds values that are no numbers.
    """
    source = Path(path)
    if not source.is_file():
        raise MissingResourceError(f"expected a sound file at {source}, found none; check the path")
    try:
        with source.open("rb") as stream, soundfile.SoundFile(stream) as file:
            _check_header(source, file, max_duration_s)
            samples: Samples = file.read(dtype="float32", always_2d=True)  # [T, channels]
            rate = int(file.samplerate)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{source}: expected a sound file (WAV, FLAC, Ogg, MP3), cannot read it: {error}") from error
    if len(samples) == 0:
        raise InputError(f"{source}: expected sound, the file holds none; record again")
    if not np.isfinite(samples).all():
        raise InputError(f"{source}: expected numbers, found values that are NaN or infinite; save it as 16-bit WAV")
    if mono:
        samples = samples.mean(axis=1, keepdims=True, dtype=np.float32)  # [T, 1]
    return (samples, rate) if sample_rate is None else (resample(samples, rate, sample_rate), sample_rate)


def resample(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    """Change the sample rate; band-limited (soxr, high quality).

    Args:
        samples: [T, channels] or [T].
        from_rate: Rate of `samples`, in Hz.
        to_rate: Rate of the result, in Hz.

    Returns:
        About T * to_rate / from_rate samples; the very array where the rates agree.
    """
    for rate in (from_rate, to_rate):
        if not _RATES_HZ[0] <= rate <= _RATES_HZ[1]:
            raise InputError(f"expected a sample rate of {_RATES_HZ[0]} .. {_RATES_HZ[1]} Hz, got {rate}")
    if from_rate == to_rate:
        return samples
    converted: Samples = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    return converted


def _pcm16(samples: Samples) -> npt.NDArray[np.int16]:
    # 32767 both ways: symmetric, and full scale itself does not overflow.
    scaled: npt.NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
    return scaled


def _check_header(source: Path, file: soundfile.SoundFile, max_duration_s: float) -> None:
    if not _RATES_HZ[0] <= file.samplerate <= _RATES_HZ[1] or not 1 <= file.channels <= _MAX_CHANNELS:
        raise InputError(
            f"{source}: expected 1 .. {_MAX_CHANNELS} channels at {_RATES_HZ[0]} .. {_RATES_HZ[1]} Hz, "
            f"found {file.channels} at {file.samplerate} Hz"
        )
    if file.frames > max_duration_s * file.samplerate:
        duration_s = file.frames / file.samplerate
        raise InputError(f"{source}: expected at most {max_duration_s:g} s, found {duration_s:.1f} s; cut it shorter")


def _replace(target: Path, content: bytes) -> None:
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # 0o666 less the umask, as for any file that a user makes; tempfile's 0o600 would stay with the result.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise VoxedgeError(
            f"cannot write {target} ({len(content)} bytes): {error.strerror}; free space or write elsewhere"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)

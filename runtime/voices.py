"""Voices: a short recording of somebody, made ready for a codec, encoded, and kept in a bundle.

In: a sound file of any rate and count of channels. Out: codes under a name; they stand in `voices/` of the bundle, and
the manifest knows their hash. Does not speak.

The path of a recording is that of the models' training (MOSS-TTS, reference audio): resample, mix, set the loudness,
encode.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from voxedge.engines.bundle import Bundle
from voxedge.engines.bundle_edit import change_files
from voxedge.engines.errors import BundleError, InputError, MissingResourceError
from voxedge.engines.files import hash_bytes, hash_file
from voxedge.runtime.audio import check_audio
from voxedge.runtime.audio_files import read_audio
from voxedge.runtime.code_files import MAX_TEXT, SUFFIX, CodeFile, read_codes
from voxedge.runtime.codec import Codec, Samples

VOICES_FOLDER = "voices"
MIN_REFERENCE_S = 0.5
MAX_REFERENCE_S = 30.0
"""The models were trained with recordings of up to half a minute."""
LOUDNESS_DB = -20.0
"""Mean power that recordings are moved towards, relative to full scale."""
MAX_GAIN_DB = 3.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(rf"{VOICES_FOLDER}/([A-Za-z0-9][A-Za-z0-9_-]{{0,63}})\.[0-9a-f]{{12}}{re.escape(SUFFIX)}")


def normalise_loudness(samples: Samples) -> Samples:
    """Move the mean power to -20 dB of full scale, by at most 3 dB; one gain for all channels.

    The level is rounded to FP32 where the reference does it, so that recordings come out bit for bit.

    Args:
        samples: [T, channels] or [T].
    """
    power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
    level_db = np.float32(10.0) * np.float32(np.log10(float(np.float32(power) + np.float32(1e-9))))
    gain_db = min(max(float(np.float32(LOUDNESS_DB) - level_db), -MAX_GAIN_DB), MAX_GAIN_DB)
    louder: Samples = samples * np.float32(10.0 ** (gain_db / 20.0))
    return louder


def read_for(path: Path, codec: Codec, max_duration_s: float) -> Samples:
    """Read a recording at a codec's rate and with its channels, and change nothing else.

    A mono recording is used for every channel; of more channels than the codec has, one takes their mean and several
    take the first ones.

    Args:
        path: A sound file.
        codec: Says the rate and the channels.
        max_duration_s: Longest recording that is accepted, in seconds.

    Returns:
        [T, channels].

    Raises:
        MissingResourceError: There is no such file.
        InputError: It is no sound file, empty, too long, or holds values that are no numbers.
    """
    samples, _ = read_audio(path, codec.sample_rate, mono=codec.channels == 1, max_duration_s=max_duration_s)
    if samples.shape[1] == 1:
        return np.repeat(samples, codec.channels, 1)
    return samples[:, : codec.channels]


def reference_audio(path: Path, codec: Codec) -> Samples:
    """Read a recording of a voice and make it ready for a codec.

    Args:
        path: A sound file; the content decides, not the name.
        codec: Says the rate and the channels.

    Returns:
        [T, channels] at the codec's rate.

    Raises:
        MissingResourceError: There is no such file.
        InputError: It is no sound file, too short, too long, silent, or holds values that are no numbers.
    """
    samples = read_for(path, codec, MAX_REFERENCE_S)
    duration_s = len(samples) / codec.sample_rate
    if duration_s < MIN_REFERENCE_S:
        raise InputError(
            f"{path}: expected {MIN_REFERENCE_S:g} .. {MAX_REFERENCE_S:g} s of a voice, found {duration_s:.2f} s; "
            "take a longer recording, 5 to 15 s are best"
        )
    if check_audio(samples).silent:
        raise InputError(f"{path}: expected a voice, found silence; record again, nearer to the microphone")
    return normalise_loudness(samples)


def record_voice(path: Path, codec: Codec, text: str = "", codebooks: int | None = None) -> CodeFile:
    """Encode a recording of a voice.

    Args:
        path: A sound file.
        codec: Encodes it.
        text: What is said in it.
        codebooks: How many codes of a frame to keep; None for all.

    Raises:
        MissingResourceError: There is no such file.
        InputError: The recording, the text or the count of codebooks cannot be used.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"expected at most {MAX_TEXT} characters that are said in the recording, found {len(text)}")
    codes = codec.encode(reference_audio(path, codec), codebooks)
    return CodeFile(codes, codec.settings.fingerprint, codec.frame_rate, text, hash_file(path))


def voice_paths(bundle: Bundle) -> dict[str, str]:
    """Relative paths of a bundle's voices by their names, in order."""
    matches = [(match[1], path) for path in bundle.manifest.files if (match := _FILE.fullmatch(path))]
    return dict(sorted(matches))


def check_name(bundle: Bundle, name: str, overwrite: bool) -> None:
    """Find out before a recording is encoded that it could not be kept under this name.

    Raises:
        InputError: The name cannot be used, or is taken.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"expected a name of letters, digits, - and _, 64 at most, found {name[:80]!r}")
    if name in voice_paths(bundle) and not overwrite:
        raise InputError(f"{bundle.root} has a voice {name!r} already; add --force to replace it, or take another name")


def add_voice(bundle: Bundle, name: str, voice: CodeFile, overwrite: bool = False) -> Bundle:
    """Keep a voice in a bundle.

    Args:
        bundle: The bundle.
        name: Letters, digits, `-` and `_`.
        voice: The codes.
        overwrite: Whether a voice of this name may be replaced.

    Raises:
        InputError: The name cannot be used, or is taken.
        VoxedgeError: The disk is full or may not be written to.
    """
    check_name(bundle, name, overwrite)
    old = voice_paths(bundle).get(name)
    content = voice.to_bytes()
    # The hash in the name: a voice that is replaced gets another file, so the manifest is right at every moment.
    path = f"{VOICES_FOLDER}/{name}.{hash_bytes(content)[:12]}{SUFFIX}"
    if path == old:
        return bundle
    return change_files(bundle, {path: content}, () if old is None else (old,))


def remove_voice(bundle: Bundle, name: str) -> Bundle:
    """Take a voice out of a bundle.

    Raises:
        MissingResourceError: It has no voice of this name.
    """
    return change_files(bundle, {}, (_path(bundle, name),))


def open_voice(bundle: Bundle, name: str, codec: Codec) -> CodeFile:
    """Read a voice of a bundle; its hash is compared.

    Raises:
        MissingResourceError: The bundle has no voice of this name.
        BundleError: The file is not what the manifest says.
        InputError: The voice is of another codec.
    """
    path = _path(bundle, name)
    found = hash_file(bundle.path(path))
    if found != bundle.manifest.files[path].sha256:
        raise BundleError(f"{bundle.path(path)}: the voice was changed after it was added; add it again with --force")
    return read_codes(bundle.path(path), codec)


def _path(bundle: Bundle, name: str) -> str:
    known = voice_paths(bundle)
    if name not in known:
        raise MissingResourceError(
            f"expected a voice of {bundle.root} ({', '.join(known) or 'it has none'}), found {name!r}; "
            f"add one with `voxedge voice add {bundle.root} NAME RECORDING`"
        )
    return known[name]

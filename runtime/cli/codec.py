"""`voxedge codec`: a recording to the codes of an audio codec, and codes to sound.

In: a bundle with a codec, and a sound file or a file of codes. Out: the other one, complete or not at all; figures on
stderr (on stdout with --json).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from voxedge.engines.errors import InputError
from voxedge.engines.files import hash_file, write_atomically
from voxedge.runtime.cli.common import Verbs, add_actions, whole
from voxedge.runtime.cli.console import Console
from voxedge.runtime.cli.say import check_output
from voxedge.runtime.cli.synthesis import BACKENDS

if TYPE_CHECKING:
    from voxedge.runtime.codec import Codec

MAX_INPUT_S = 3600.0


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("codec", help="sound to codes and back")
    actions = add_actions(parser)
    encode = actions.add_parser("encode", help="describe a recording by codes")
    encode.add_argument("bundle", type=Path, metavar="BUNDLE", help="one with a codec")
    encode.add_argument("source", type=Path, metavar="RECORDING", help="any sound file, up to an hour")
    encode.add_argument("target", type=Path, metavar="CODES", help="a new .safetensors file")
    encode.set_defaults(run=run_encode)
    decode = actions.add_parser("decode", help="make the sound that codes describe")
    decode.add_argument("bundle", type=Path, metavar="BUNDLE", help="one with a codec")
    decode.add_argument("source", type=Path, metavar="CODES", help="a file that `codec encode` or `voice add` made")
    decode.add_argument("target", type=Path, metavar="SOUND", help="a new .wav, .flac or .ogg file")
    decode.set_defaults(run=run_decode)
    for action in (encode, decode):
        action.add_argument("--codebooks", type=whole(1), metavar="N", help="only the first N; fewer is coarser")
        action.add_argument("--force", action="store_true", help="overwrite the file")
        add_codec_flags(action)


def add_codec_flags(parser: argparse.ArgumentParser) -> None:
    """Add where and how a codec runs."""
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="only auto may fall back, and it says so")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads")


def open_codec(bundle: Path, arguments: argparse.Namespace) -> Codec:
    """The codec of a bundle, with the flags that were given."""
    from voxedge.runtime.codec import Codec

    return Codec.from_pretrained(bundle, backend=arguments.backend, threads=arguments.threads)


def run_encode(arguments: argparse.Namespace, console: Console) -> int:
    """Encode a recording."""
    from voxedge.runtime.code_files import SUFFIX, CodeFile
    from voxedge.runtime.voices import read_for

    target: Path = arguments.target
    check_output(target, arguments.force, (SUFFIX,))
    codec = open_codec(arguments.bundle, arguments)
    samples = read_for(arguments.source, codec, MAX_INPUT_S)
    started = time.perf_counter()
    codes = codec.encode(samples, arguments.codebooks)
    wall_s = time.perf_counter() - started
    settings = codec.settings
    made = CodeFile(codes, settings.fingerprint, codec.frame_rate, recording=hash_file(arguments.source))
    write_atomically(target, made.to_bytes())
    data = {
        "file": str(target),
        "codebooks": len(codes),
        "frames": codes.shape[1],
        "seconds": made.duration_s,
        "wall_s": wall_s,
    }
    text = f"{target}: {codes.shape[1]} frames of {len(codes)} codes, {made.duration_s:.2f} s, in {wall_s:.2f} s"
    console.result(data, text)
    return 0


def run_decode(arguments: argparse.Namespace, console: Console) -> int:
    """Decode a file of codes, as a stream, so that the progress is known."""
    import numpy as np

    from voxedge.runtime.audio import check_audio
    from voxedge.runtime.audio_files import write_audio
    from voxedge.runtime.code_files import read_codes

    check_output(arguments.target, arguments.force)
    codec = open_codec(arguments.bundle, arguments)
    codes = read_codes(arguments.source, codec).codes
    count = len(codes) if arguments.codebooks is None else arguments.codebooks
    if count > len(codes):
        raise InputError(f"{arguments.source}: expected {count} codebooks, found {len(codes)}; lower --codebooks")
    started = time.perf_counter()
    parts = []
    with codec.stream() as stream, console.progress() as progress:
        for start in range(0, codes.shape[1], stream.state.max_frames):
            parts.append(stream.feed(codes[:count, start : start + stream.state.max_frames]))
            progress("decoding", min(start + stream.state.max_frames, codes.shape[1]), codes.shape[1])
    samples = np.concatenate(parts)
    wall_s = time.perf_counter() - started
    found = check_audio(samples)
    if found.clipped_fraction > 0.0:
        console.warn(f"{100 * found.clipped_fraction:.2g} % of the samples are beyond full scale and were clipped")
    write_audio(arguments.target, samples, codec.sample_rate, arguments.force)
    seconds = len(samples) / codec.sample_rate
    data = {"file": str(arguments.target), "seconds": seconds, "wall_s": wall_s, "rtf": wall_s / seconds}
    console.result(data, f"{arguments.target}: {seconds:.2f} s, RTF {wall_s / seconds:.3f} with loading")
    return 0

"""The flags that say what speech should be like: voice, language, length, sounds, and how much of the codec is used.

In: parsed arguments, and an open synthesizer where recordings must be encoded. Out: `Directions`; a flag that was not
given leaves the choice to the model. Does not speak.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from voxedge.engines.errors import MissingResourceError
from voxedge.runtime.cli.common import UsageError, number

if TYPE_CHECKING:
    from voxedge.runtime.code_files import CodeFile
    from voxedge.runtime.directions import Directions
    from voxedge.runtime.synthesizer import Synthesizer

_TEXTS = ("quality", "sound_event", "ambient_sound")


def add_direction_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a system may be told besides the text."""
    group = parser.add_argument_group("what it should be like (where the system follows it)")
    group.add_argument(
        "--voice",
        action="append",
        default=[],
        metavar="VOICE",
        help="a recording, or a voice of BUNDLE; may be repeated",
    )
    group.add_argument("--go-on-from", metavar="VOICE", help="a recording, or a voice of BUNDLE, that TEXT continues")
    group.add_argument("--said", metavar="TEXT", help="what is said there, unless the voice was added with its text")
    group.add_argument("--language", metavar="NAME", help="English name or ISO 639 code, such as Chinese or zh")
    # Numbers that no speech can have are refused by `Directions`, in words and for the API as well.
    group.add_argument("--duration", type=number(-1e12, 1e12), metavar="S", help="length of the speech, met exactly")
    group.add_argument("--tokens", type=int, metavar="N", help="the same in frames of the codec")
    group.add_argument("--codebooks", type=int, metavar="N", help="use the first N: faster, and rougher")
    group.add_argument("--quality", metavar="TEXT", help="of the recording")
    group.add_argument("--sound-event", metavar="TEXT")
    group.add_argument("--ambient-sound", metavar="TEXT")


def directions(arguments: argparse.Namespace) -> Directions:
    """What was asked for but the voices.

    Raises:
        InputError: A language is unknown.
        ConfigError: A length or a count is out of its range.
        UsageError: A text without the recording that it belongs to.
    """
    from voxedge.runtime.directions import Directions  # it loads numpy: not for `--help`

    if arguments.said is not None and arguments.go_on_from is None:
        raise UsageError("expected --go-on-from with --said, found --said alone; it tells what a recording says")
    return Directions(
        language=arguments.language,
        duration_s=arguments.duration,
        frames=arguments.tokens,
        codebooks=arguments.codebooks,
        **{name: getattr(arguments, name) for name in _TEXTS},
    )


def with_voices(asked: Directions, arguments: argparse.Namespace, synthesizer: Synthesizer) -> Directions:
    """The same with the voices that were named.

    Raises:
        InputError: A recording cannot be used, or nothing is known of what it says.
        MissingResourceError: There is no such voice.
    """
    if arguments.voice:
        codes = tuple(_voice(name, synthesizer).codes.T for name in arguments.voice)
        asked = dataclasses.replace(asked, references=codes)
    if arguments.go_on_from is not None:
        prefix = _voice(arguments.go_on_from, synthesizer)
        said = prefix.text if arguments.said is None else arguments.said
        if not said:
            raise UsageError(f"expected --said TEXT: nothing is known of what {arguments.go_on_from} says")
        asked = dataclasses.replace(asked, prefix=prefix.codes.T, prefix_text=said)
    return asked


def _voice(name: str, synthesizer: Synthesizer) -> CodeFile:
    """A voice of the bundle, a file of codes, or a recording."""
    from voxedge.runtime.code_files import SUFFIX, read_codes
    from voxedge.runtime.voices import open_voice, record_voice, voice_paths

    known, path = voice_paths(synthesizer.bundle), Path(name)
    if name in known:
        return open_voice(synthesizer.bundle, name, synthesizer.codec)
    if not path.is_file():
        raise MissingResourceError(
            f"expected a recording, or a voice of {synthesizer.bundle.root} ({', '.join(known) or 'it has none'}), "
            f"found neither under {name[:80]!r}"
        )
    return read_codes(path, synthesizer.codec) if path.suffix == SUFFIX else record_voice(path, synthesizer.codec)

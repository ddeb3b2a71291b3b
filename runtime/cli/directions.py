"""The flags that say what speech should be like: language, length, sounds, and how much of the codec is used.

In: parsed arguments. Out: `Directions`; a flag that was not given leaves the choice to the model. Does not speak.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from voxedge.runtime.cli.common import number

if TYPE_CHECKING:
    from voxedge.runtime.directions import Directions

_TEXTS = ("quality", "sound_event", "ambient_sound")


def add_direction_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a system may be told besides the text."""
    group = parser.add_argument_group("what it should be like (where the system follows it)")
    group.add_argument("--language", metavar="NAME", help="English name or ISO 639 code, such as Chinese or zh")
    # Numbers that no speech can have are refused by `Directions`, in words and for the API as well.
    group.add_argument("--duration", type=number(-1e12, 1e12), metavar="S", help="length of the speech, met exactly")
    group.add_argument("--tokens", type=int, metavar="N", help="the same in frames of the codec")
    group.add_argument("--codebooks", type=int, metavar="N", help="use the first N: faster, and rougher")
    group.add_argument("--quality", metavar="TEXT", help="of the recording")
    group.add_argument("--sound-event", metavar="TEXT")
    group.add_argument("--ambient-sound", metavar="TEXT")


def directions(arguments: argparse.Namespace) -> Directions:
    """What was asked for.

    Raises:
        InputError: A language is unknown.
        ConfigError: A length or a count is out of its range.
    """
    from voxedge.runtime.directions import Directions  # it loads numpy: not for `--help`

    return Directions(
        language=arguments.language,
        duration_s=arguments.duration,
        frames=arguments.tokens,
        codebooks=arguments.codebooks,
        **{name: getattr(arguments, name) for name in _TEXTS},
    )

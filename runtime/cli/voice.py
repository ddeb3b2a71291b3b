"""`voxedge voice`: add recordings of voices to a bundle, list them, take them out.

In: a bundle, a name, a recording. Out: the bundle with one voice more or fewer; it can be verified at every moment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from voxedge.runtime.cli.codec import add_codec_flags, open_codec
from voxedge.runtime.cli.common import Verbs, add_actions, whole
from voxedge.runtime.cli.console import Console, table


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    actions = add_actions(verbs.add_parser("voice", help="the voices of a bundle"))
    new = actions.add_parser("add", help="keep a recording as a voice")
    new.add_argument("bundle", type=Path, metavar="BUNDLE")
    new.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    new.add_argument("recording", type=Path, metavar="RECORDING", help="half a second to half a minute of one voice")
    new.add_argument("-t", "--text", default="", metavar="TEXT", help="what is said in it; needed to go on from it")
    new.add_argument("--codec", type=Path, metavar="DIR", help="bundle of the codec, where BUNDLE has none")
    new.add_argument("--codebooks", type=whole(1), metavar="N", help="keep only the first N codes of a frame")
    new.add_argument("--force", action="store_true", help="replace a voice of this name")
    add_codec_flags(new)
    new.set_defaults(run=run_add)
    listed = actions.add_parser("list", help="show the voices")
    listed.add_argument("bundle", type=Path, metavar="BUNDLE")
    listed.set_defaults(run=run_list)
    removed = actions.add_parser("remove", help="take a voice out")
    removed.add_argument("bundle", type=Path, metavar="BUNDLE")
    removed.add_argument("name", metavar="NAME")
    removed.set_defaults(run=run_remove)


def run_add(arguments: argparse.Namespace, console: Console) -> int:
    """Encode a recording and keep it."""
    from voxedge.engines.bundle import Bundle
    from voxedge.runtime.voices import add_voice, check_name, record_voice, voice_paths

    bundle = Bundle.open(arguments.bundle)
    check_name(bundle, arguments.name, arguments.force)
    codec = open_codec(arguments.codec or arguments.bundle, arguments)
    voice = record_voice(arguments.recording, codec, arguments.text, arguments.codebooks)
    changed = add_voice(bundle, arguments.name, voice, arguments.force)
    path = voice_paths(changed)[arguments.name]
    data = {"voice": arguments.name, "file": str(changed.path(path)), "seconds": voice.duration_s}
    console.result(data, f"{changed.root}: voice {arguments.name}, {voice.duration_s:.2f} s")
    return 0


def run_list(arguments: argparse.Namespace, console: Console) -> int:
    """Show the voices."""
    from voxedge.engines.bundle import Bundle
    from voxedge.runtime.voices import voice_paths

    bundle = Bundle.open(arguments.bundle)
    voices = voice_paths(bundle)
    rows = [(name, path) for name, path in voices.items()]
    console.result({"bundle": str(bundle.root), "voices": voices}, table(rows, ("voice", "file")) if rows else "none")
    return 0


def run_remove(arguments: argparse.Namespace, console: Console) -> int:
    """Take a voice out."""
    from voxedge.engines.bundle import Bundle
    from voxedge.runtime.voices import remove_voice

    changed = remove_voice(Bundle.open(arguments.bundle), arguments.name)
    console.result({"voice": arguments.name}, f"{changed.root}: voice {arguments.name} removed")
    return 0

"""`voxedge say`: speak a text into a file, or as raw samples into a pipe.

In: a text, and a bundle unless the built-in voice will do. Out: a wav, flac or ogg file, or 16-bit PCM on stdout as it
is made; figures on stderr (on stdout with --json). A run that fails leaves no file.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.errors import BundleError, InputError, MissingResourceError
from voxedge.engines.files import read_json
from voxedge.runtime.cli.common import UsageError, Verbs, whole
from voxedge.runtime.cli.console import Console
from voxedge.runtime.cli.directions import add_direction_flags, directions, with_voices
from voxedge.runtime.cli.synthesis import CUT, add_engine_flags, add_voice_flags, open_synthesizer, synthesis_config
from voxedge.runtime.cli.text import bundle_and_text
from voxedge.runtime.words import unknown_words

if TYPE_CHECKING:
    from voxedge.runtime.synthesizer import Synthesizer

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
RAW = "-"
_NAMED = 20  # unknown words that are named
_LISTED = 400  # words that --list-voices prints for people
_MAX_TOKENS_BYTES = 16 << 20
_EXAMPLE = 'voxedge say "Hello there." -f hello.wav'


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("say", help="speak a text", epilog=f"Example: {_EXAMPLE}")
    parser.words = "words"
    parser.add_argument("words", nargs="*", metavar="[BUNDLE] TEXT", help="without a bundle: the built-in voice")
    parser.add_argument("--bundle", type=Path, metavar="DIR")
    parser.add_argument("-t", "--text", metavar="TEXT")
    parser.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8")
    parser.add_argument("--stdin", action="store_true", help="read the text from a pipe; so does giving no text")
    parser.add_argument("-f", "--file", metavar="FILE", help=".wav, .flac, .ogg; - for raw s16le")
    parser.add_argument("--list-voices", action="store_true", help="tell the bundle's descriptions and words, and end")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--rate", type=whole(1000), metavar="HZ", help="resample the output")
    parser.add_argument("--stream", action="store_true", help="tell about every piece of audio as it is made")
    parser.add_argument("--speech-tokens", type=Path, metavar="FILE", help="speech prompt: a JSON list of token ids")
    add_voice_flags(parser)
    add_direction_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Speak."""
    from voxedge.runtime.cli import speak  # it loads numpy and libsndfile: not for `--help`
    from voxedge.runtime.noise import fresh_seed

    if arguments.list_voices:
        return _list_voices(arguments, console)
    if arguments.file is None:
        raise UsageError("the following arguments are required: -f/--file; type `voxedge say --help` for all options")
    if arguments.file == RAW and console.options.as_json:
        raise UsageError("expected --json or -f -, found both, and both write to stdout; name a file")
    if arguments.file != RAW:
        check_output(Path(arguments.file), arguments.force)
    bundle, text = bundle_and_text(arguments)
    asked = directions(arguments)
    prompt = () if arguments.speech_tokens is None else read_tokens(arguments.speech_tokens)
    with open_synthesizer(bundle, arguments, console) as synthesizer:
        _tell_unknown(text, synthesizer, console)
        seed = fresh_seed() if arguments.seed is None else arguments.seed
        config = synthesis_config(synthesizer, arguments)
        spoken = with_voices(asked, arguments, synthesizer)
        request = speak.Request(text, arguments.description, seed, config, prompt, spoken)
        if arguments.file == RAW:
            speak.speak_raw(synthesizer, request, arguments.rate, console)
            return 0
        audio = speak.speak(synthesizer, request, console) if arguments.stream else request.audio(synthesizer)
        audio = speak.resampled(audio, arguments.rate)
        audio.save(Path(arguments.file), overwrite=arguments.force)
        _show({"file": arguments.file, **speak.figures(audio, synthesizer)}, console)
    return 0


def check_output(path: Path, force: bool, suffixes: Sequence[str] = AUDIO_SUFFIXES) -> None:
    """Find out before a long run that its result could not be written.

    Raises:
        UsageError: The file's kind is unknown.
        MissingResourceError: Its folder does not exist.
        InputError: It exists and may not be overwritten, or is a folder.
    """
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"expected a file name that ends in {', '.join(suffixes)}, found {str(path)!r}")
    if not path.parent.is_dir():
        raise MissingResourceError(f"expected the folder {path.parent} for {path.name}, found nothing; make it first")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(f"{path} exists; choose another name or add --force")


def read_tokens(path: Path) -> tuple[int, ...]:
    """Speech tokens from a JSON list.

    Raises:
        MissingResourceError: There is no such file.
        InputError: It is not a list of whole numbers that are 0 or more.
    """
    if not path.exists():
        raise MissingResourceError(f"no such file of speech tokens: {path}")
    try:
        data = read_json(path, _MAX_TOKENS_BYTES)
    except BundleError as error:  # the same checks hold, but this is no bundle
        raise InputError(str(error)) from error
    if not isinstance(data, list) or not all(type(token) is int and token >= 0 for token in data):
        raise InputError(f"{path}: expected a JSON list of token ids such as [12, 7, 80]")
    return tuple(data)


def _list_voices(arguments: argparse.Namespace, console: Console) -> int:
    """The descriptions and words of the built-in voice, or of a bundle that is the only word."""
    from voxedge.engines.bundle import Bundle
    from voxedge.runtime.synthesizer import built_in_voice

    folder = arguments.bundle or (Path(arguments.words[0]) if arguments.words else built_in_voice())
    manifest = Bundle.open(folder).manifest
    lines = [f"{folder}: {manifest.system}", *([manifest.note] if manifest.note else []), ""]
    lines += [f'  --description "{voice}"' for voice in manifest.voices] or ["  no voices are named"]
    if len(manifest.words) > _LISTED:
        lines += ["", f"Trained on {len(manifest.words)} words; all of them with: voxedge say --list-voices --json"]
    elif manifest.words:
        wrapped = textwrap.wrap(" ".join(manifest.words), 100, initial_indent="  ", subsequent_indent="  ")
        lines += ["", f"Its {len(manifest.words)} words:", *wrapped]
    data = {
        "bundle": str(folder),
        "system": manifest.system,
        "note": manifest.note,
        "voices": list(manifest.voices),
        "words": list(manifest.words),
    }
    console.result(data, "\n".join(lines))
    return 0


def _tell_unknown(text: str, synthesizer: Synthesizer, console: Console) -> None:
    """Warn about words that the voice was never taught."""
    known = synthesizer.bundle.manifest.words
    unknown = unknown_words(text, known)
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        console.warn(
            f"expected words that this voice was trained on ({len(known)} words), found {', '.join(unknown[:_NAMED])}"
            f"{more}; it may stumble there; see: voxedge say --list-voices"
        )


def _show(report: dict[str, Any], console: Console) -> None:
    """Figures for people on stderr, or the object on stdout."""
    if report["finish_reason"] == "length":
        console.warn(CUT)
    if console.options.as_json:
        console.result(report, "")
        return
    console.note(
        f"{report['file']}: {report['seconds']:.2f} s, seed {report['seed']}, finish reason {report['finish_reason']}\n"
        f"RTF {report['rtf']:.3f} (wall {report['wall_s']:.2f} s / audio {report['seconds']:.2f} s, lower is better), "
        f"first audio after {report['first_audio_s']:.2f} s, both with loading; "
        f"backend {report['backend']}"
    )

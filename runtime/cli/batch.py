"""`voxedge batch`: speak the lines of a file, each into a file of its own.

In: a JSONL file whose lines say what flags of `say` would say, and a folder. Out: one audio file for each line and
`batch.jsonl` with the figures of each, written as it goes, so that an interrupted run can go on. A line that fails does
not end the others; the exit code is then that of the first failure.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.errors import ConfigError, InputError, MissingResourceError, VoxedgeError
from voxedge.runtime.cli.common import UsageError, Verbs, whole
from voxedge.runtime.cli.console import Console
from voxedge.runtime.cli.directions import add_direction_flags, directions, with_voices
from voxedge.runtime.cli.say import AUDIO_SUFFIXES
from voxedge.runtime.cli.synthesis import CUT, add_engine_flags, add_voice_flags, open_synthesizer, synthesis_config

if TYPE_CHECKING:
    from voxedge.runtime.audio import Audio
    from voxedge.runtime.requests import Request
    from voxedge.runtime.synthesizer import Synthesizer

RESULTS = "batch.jsonl"
"""Figures of every line, in the folder of the audio."""
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_LINE = '{"text": "Good morning.", "id": "morning", "description": "A calm voice.", "seed": 7}'
_EXAMPLE = "voxedge batch lines.jsonl -d spoken"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file; what it leaves out is that of the flags."""

    text: str
    id: str | None = None
    """Name of the audio file without its ending; the number of the line where None."""
    description: str | None = None
    seed: int | None = None
    """None takes --seed plus the number of the line; without --seed a fresh one."""
    voice: str | None = None
    language: str | None = None
    duration: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not _ID.fullmatch(self.id):
            raise ConfigError(f"expected an `id` of letters, digits, '.', '_' and '-', found {self.id[:80]!r}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"expected a `seed` of 0 or more, found {self.seed}")


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be spoken into which file."""

    number: int
    """Of the line, from 1."""
    line: Line
    path: Path


@dataclass(slots=True)
class Tally:
    """What became of a batch."""

    skipped: int = 0
    spoken: int = 0
    seconds: float = 0.0
    """Of audio."""
    failures: int = 0
    exit_code: int = 0
    """That of the first failure."""

    def count(self, result: Audio | VoxedgeError) -> None:
        """One more line."""
        if isinstance(result, VoxedgeError):
            self.failures += 1
            self.exit_code = self.exit_code or result.exit_code
        else:
            self.spoken += 1
            self.seconds += result.duration_s


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("batch", help="speak the lines of a file", epilog=f"Example: {_EXAMPLE}")
    parser.words = "words"
    parser.add_argument("words", nargs="*", metavar="[BUNDLE] LINES", help=f"one JSON object on each line: {_LINE}")
    parser.add_argument("-d", "--directory", type=Path, required=True, metavar="DIR", help="made where it is missing")
    parser.add_argument("--format", choices=[suffix[1:] for suffix in AUDIO_SUFFIXES], default="wav")
    parser.add_argument("--together", type=whole(1), default=1, metavar="N", help="texts in step, where the system can")
    parser.add_argument("--resume", action="store_true", help="leave out lines whose file is there")
    parser.add_argument("--force", action="store_true", help="overwrite files")
    parser.add_argument("--dry-run", action="store_true", help="check the lines and tell what would be spoken")
    parser.add_argument("--max-failures", type=whole(1), metavar="N", help="give up after so many")
    parser.add_argument("--rate", type=whole(1000), metavar="HZ", help="resample the output")
    add_voice_flags(parser)
    add_direction_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Speak all lines."""
    if not 1 <= len(arguments.words) <= 2:
        raise UsageError(f"expected [BUNDLE] LINES, found {len(arguments.words)} words; type `{_EXAMPLE}`")
    *bundle, source = map(Path, arguments.words)
    jobs = read_jobs(source, arguments.directory, f".{arguments.format}")
    left = [job for job in jobs if not (arguments.resume and job.path.exists())]
    _require_absent([job.path for job in left], arguments)
    tally = Tally(skipped=len(jobs) - len(left))
    if arguments.dry_run:
        _show(tally, arguments, 0.0, len(left), console)
        return 0
    arguments.directory.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    if left:
        with open_synthesizer(bundle[0] if bundle else None, arguments, console) as synthesizer:
            requests = requests_of(left, synthesizer, arguments)
            _speak(left, requests, synthesizer, arguments, console, tally)
    _show(tally, arguments, time.perf_counter() - started, 0, console)
    return tally.exit_code


def read_jobs(source: Path, folder: Path, suffix: str) -> list[Job]:
    """The lines of a file, and where each is spoken into.

    Raises:
        MissingResourceError: There is no such file.
        InputError: A line cannot be used, or two have one name.
    """
    from voxedge.engines.json_lines import read_json_lines

    if not source.is_file():
        raise MissingResourceError(f"no such file of lines: {source}; its lines are such as {_LINE}")
    lines = read_json_lines(source, Line, _LINE)
    width = max(4, len(str(lines[-1][0])))
    jobs = [Job(number, line, folder / f"{line.id or f'{number:0{width}d}'}{suffix}") for number, line in lines]
    places: dict[Path, int] = {}
    for job in jobs:
        if job.path in places:
            known = places[job.path]
            raise InputError(f"{source}, line {job.number}: expected an `id` of its own, found that of line {known}")
        places[job.path] = job.number
    return jobs


def requests_of(jobs: Sequence[Job], synthesizer: Synthesizer, arguments: argparse.Namespace) -> list[Request]:
    """What to ask of the voice; recordings are encoded once.

    Raises:
        VoxedgeError: A line asks for what is not there; names the line.
    """
    from voxedge.runtime.noise import fresh_seed
    from voxedge.runtime.requests import Request

    config = synthesis_config(synthesizer, arguments)
    known: dict[tuple[Any, ...], Any] = {}
    requests = []
    for job in jobs:
        line, flags = job.line, argparse.Namespace(**vars(arguments))
        for name in ("language", "duration", "tokens"):
            setattr(flags, name, getattr(line, name) if getattr(line, name) is not None else getattr(flags, name))
        flags.voice = [line.voice] if line.voice is not None else flags.voice
        key = (flags.language, flags.duration, flags.tokens, *flags.voice)
        try:
            known[key] = known.get(key) or with_voices(directions(flags), flags, synthesizer)
        except VoxedgeError as error:
            raise type(error)(f"line {job.number}: {error}") from error
        base = fresh_seed() if arguments.seed is None else arguments.seed + job.number
        seed = base if line.seed is None else line.seed
        description = arguments.description if line.description is None else line.description
        requests.append(Request(line.text, description, seed, config, directions=known[key]))
    return requests


def _require_absent(paths: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Find out before a long run that its results could not be written."""
    folder = arguments.directory
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder, found the file {folder}; name another --directory")
    present = [path for path in (*paths, folder / RESULTS) if path.exists()]
    if present and not (arguments.force or arguments.resume):
        raise InputError(
            f"{present[0]} exists, and {len(present) - 1} more; add --resume to speak what is missing, or --force"
        )


def _speak(
    jobs: Sequence[Job],
    requests: Sequence[Request],
    synthesizer: Synthesizer,
    arguments: argparse.Namespace,
    console: Console,
    tally: Tally,
) -> None:
    """Speak, save, and write down what became of every line."""
    mode = "a" if arguments.resume else "w"
    results = synthesizer.synthesize_batch(requests, together=arguments.together)
    with (arguments.directory / RESULTS).open(mode, encoding="utf-8") as record, console.progress() as progress:
        for done, (job, result) in enumerate(zip(jobs, _saved(jobs, results, arguments), strict=True), 1):
            tally.count(result)
            record.write(json.dumps(_figures(job, result), ensure_ascii=False) + "\n")
            record.flush()
            if isinstance(result, VoxedgeError):
                console.warn(f"line {job.number}: {result}")
            elif result.finish_reason == "length":
                console.warn(f"line {job.number}: {CUT}")
            progress("speaking", done, len(jobs))
            if arguments.max_failures is not None and tally.failures >= arguments.max_failures:
                console.warn(f"given up after {tally.failures} failures; {len(jobs) - done} lines were not tried")
                return


def _saved(
    jobs: Sequence[Job], results: Iterator[Audio | VoxedgeError], arguments: argparse.Namespace
) -> Iterator[Audio | VoxedgeError]:
    """Every result, in its file; one that cannot be written is a failure like others."""
    from voxedge.runtime.cli.speak import resampled

    for job, result in zip(jobs, results, strict=True):
        outcome = result
        if not isinstance(result, VoxedgeError):
            try:
                resampled(result, arguments.rate).save(job.path, overwrite=arguments.force)
            except VoxedgeError as error:
                outcome = error
        yield outcome


def _figures(job: Job, result: Audio | VoxedgeError) -> dict[str, Any]:
    """What the record says of a line."""
    found: dict[str, Any] = {"line": job.number, "file": job.path.name}
    if isinstance(result, VoxedgeError):
        return {**found, "error": str(result), "exit_code": result.exit_code}
    timing = {"wall_s": result.timing.wall_s, "rtf": result.timing.rtf}
    return {**found, "seconds": result.duration_s, "seed": result.seed, "finish_reason": result.finish_reason, **timing}


def _show(tally: Tally, arguments: argparse.Namespace, wall_s: float, planned: int, console: Console) -> None:
    """Figures for people on stderr, or the object on stdout."""
    report = {
        "directory": str(arguments.directory),
        "spoken": tally.spoken,
        "planned": planned,
        "skipped": tally.skipped,
        "failed": tally.failures,
        "seconds": tally.seconds,
        "wall_s": wall_s,
        "rtf": wall_s / tally.seconds if tally.seconds else None,
    }
    if console.options.as_json:
        console.result(report, "")
        return
    parts = [f"{tally.spoken} spoken", *([f"{planned} would be spoken"] if arguments.dry_run else [])]
    parts += [f"{tally.skipped} were there", f"{tally.failures} failed"]
    rtf = f"; {tally.seconds:.2f} s in {wall_s:.2f} s, RTF {wall_s / tally.seconds:.3f}" if tally.seconds else ""
    console.note(f"{arguments.directory}: {', '.join(parts)}{rtf}")

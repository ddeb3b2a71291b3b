"""The console script `voxedge`: one verb per module, one exit code per kind of failure.

In: `argv`. Out: an exit code; results on stdout, all else on stderr. Exit codes: 0 done, 1 bad input or usage, 2 what
was named does not exist, 3 a library or device is missing, 4 the run failed, 5 the quality gate failed, 6 an engine
does not fit this device, 130 interrupted, 141 the reader of stdout went away. Does not know what a verb does.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys

from voxedge.engines.errors import InputError, MissingResourceError, VoxedgeError
from voxedge.runtime.cli import (
    batch,
    bench,
    build,
    calibrate,
    codec,
    doctor,
    export,
    info,
    quantise,
    say,
    verify,
    voice,
)
from voxedge.runtime.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_READER_GONE,
    GlobalOptions,
    Parser,
    add_global_flags,
    global_options,
    kebab_case,
)
from voxedge.runtime.cli.console import Console, logging_to

VERBS = (doctor, export, calibrate, quantise, build, say, batch, voice, codec, verify, info, bench)
"""In the order of the work; each module has `add(verbs)`, which sets `run` to a function of (arguments, console)."""

_LOG = logging.getLogger(__name__)
_EXIT_FAILED = VoxedgeError.exit_code


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="voxedge",
        description="Large neural text-to-speech on Jetson, desktop GPUs and plain CPUs.",
        epilog="Exit codes: 0 done, 1 bad input or usage, 2 not found, 3 backend missing, 4 run failed, "
        "5 quality gate failed, 6 engine does not fit, 130 interrupted, 141 reader of stdout gone.",
    )
    add_global_flags(parser)
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True, parser_class=Parser)
    for verb in VERBS:
        verb.add(verbs)
    for subparser in verbs.choices.values():
        add_global_flags(subparser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    words = kebab_case(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    except KeyboardInterrupt as error:  # before the verb began, or after it ended
        return _fail(Console(GlobalOptions()), error, "interrupted", EXIT_INTERRUPTED)
    return code


def _run(words: list[str]) -> int:
    console = Console(GlobalOptions(as_json="--json" in words))  # until the words are understood
    try:
        arguments = make_parser().parse_args(words)
        console = Console(global_options(arguments))
        with logging_to(console.options):
            return _guarded(arguments, console)
    except VoxedgeError as error:
        return _fail(console, error, str(error), error.exit_code)
    except SystemExit as leaving:  # after --help and --version
        return int(leaving.code or 0)


def _guarded(arguments: argparse.Namespace, console: Console) -> int:
    """Run the verb; whatever goes wrong becomes a message and an exit code, the traceback goes to the log."""
    try:
        return int(arguments.run(arguments, console))
    except BrokenPipeError:
        raise
    except VoxedgeError as error:
        _LOG.debug("%s", type(error).__name__, exc_info=error)
        return _fail(console, error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _fail(console, error, "interrupted", EXIT_INTERRUPTED)
    except (OSError, MemoryError) as error:
        _LOG.info("%s", type(error).__name__, exc_info=error)
        return _fail(console, error, *_explain_system(error))
    except Exception as error:  # a defect of voxedge: say so in one line, keep the traceback for the log
        _LOG.info("unexpected %s", type(error).__name__, exc_info=error)
        return _fail(console, error, f"unexpected {type(error).__name__}: {error}{_where(console)}", _EXIT_FAILED)


def _fail(console: Console, error: BaseException, message: str, exit_code: int) -> int:
    console.failure(type(error).__name__, message, exit_code)
    return exit_code


def _explain_system(error: OSError | MemoryError) -> tuple[str, int]:
    """Message and exit code for what the operating system refused."""
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or for `say` try --memory staged", _EXIT_FAILED
    if error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}); free some space and try again", _EXIT_FAILED
    if isinstance(error, FileNotFoundError):
        return f"no such file or folder: {error.filename}", MissingResourceError.exit_code
    if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)):
        return f"{error.strerror}: {error.filename}", InputError.exit_code
    return str(error), _EXIT_FAILED


def _where(console: Console) -> str:
    if console.options.log_file is not None:
        return f"; the traceback is in {console.options.log_file}"
    return "; its traceback stands above" if console.options.verbosity else "; run again with -v for the traceback"


def _reader_gone() -> int:
    """Keep the interpreter from complaining about a closed stdout once more when it exits."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something that is no file
        return EXIT_READER_GONE
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stdout)
    os.close(null)
    return EXIT_READER_GONE


if __name__ == "__main__":
    sys.exit(main())

"""The parser of the command line: flags that may stand anywhere, usage errors that say what to type.

In: `argv`. Out: an `argparse.Namespace`, or a `UsageError`. Global flags work before and after the verb, snake_case
spellings count as kebab-case. Does not run anything and prints nothing but `--help` and `--version`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from voxedge.engines.errors import BackendUnavailableError, InputError

EXIT_INTERRUPTED = 130
"""128 + SIGINT: Ctrl-C."""
EXIT_READER_GONE = 141
"""128 + SIGPIPE: whoever read our stdout closed it."""


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What a verb's `add` gets: the place where its parser goes."""


class UsageError(InputError):
    """The command line itself is wrong: an unknown flag or verb, a missing or an impossible value."""


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The flags that every verb has."""

    verbosity: int = 0
    """How often -v was given: 1 shows what happens, 2 every detail and tracebacks."""
    quiet: bool = False
    """Only warnings and errors on stderr."""
    as_json: bool = False
    """One JSON object on stdout instead of text for people."""
    log_file: Path | None = None
    """Where every message goes too, with tracebacks, whatever -v and -q say."""
    progress: bool = True
    """Progress bars, where stderr is a terminal."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` instead of leaving with code 2, which here means something else."""

    words: str | None = None
    """Name of a list of positional arguments that may stand between flags too; argparse alone takes the first few."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of ArgumentParser, add_parser() passes them
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UsageError(f"{message}; type `{self.prog} --help` for all options")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse a flag that this very parser does not know, naming the nearest one that it does."""
        parsed, left = super().parse_known_args(args, namespace)
        end = left.index("--") if "--" in left else len(left)
        words, flags = left[:end] + left[end + 1 :], [word for word in left[:end] if word.startswith("-")]
        if flags:
            self.error(f"unknown flag {flags[0]!r}{nearest(flags[0].split('=', 1)[0], self._flags())}")
        if words and self.words is None:
            self.error(f"unexpected argument {words[0]!r}")
        if words:
            getattr(parsed, str(self.words)).extend(words)
        return parsed, []

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - argparse's own signature
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = nearest(str(value), names)
            raise argparse.ArgumentError(action, f"expected one of {', '.join(names)}, found {value!r}{hint}")


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` for the known word that looks most alike, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def add_global_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `GlobalOptions`; SUPPRESS keeps a verb's silence from undoing what stood before the verb."""
    group = parser.add_argument_group("output")
    quiet = argparse.SUPPRESS
    group.add_argument("-v", "--verbose", action="count", default=quiet, help="say more; -vv everything")
    group.add_argument("-q", "--quiet", action="store_true", default=quiet, help="only warnings and errors on stderr")
    group.add_argument("--json", action="store_true", default=quiet, help="print one JSON object on stdout")
    group.add_argument("--log-file", type=Path, metavar="FILE", default=quiet, help="append every message to FILE")
    group.add_argument("--no-progress", action="store_true", default=quiet, help="no progress bars")
    group.add_argument("--version", action="version", version=f"voxedge {version()}")


def add_actions(parser: Parser) -> Verbs:
    """A place for the words that may follow a verb; give each of them its `run`."""
    return parser.add_subparsers(metavar="ACTION", dest="action", required=True, parser_class=Action)


class Action(Parser):
    """The parser of a word that follows a verb; it has the global flags, too."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(**options)
        add_global_flags(self)


def global_options(arguments: argparse.Namespace) -> GlobalOptions:
    """The global flags of a parsed command line."""
    return GlobalOptions(
        verbosity=getattr(arguments, "verbose", 0),
        quiet=getattr(arguments, "quiet", False),
        as_json=getattr(arguments, "json", False),
        log_file=getattr(arguments, "log_file", None),
        progress=not getattr(arguments, "no_progress", False),
    )


def kebab_case(argv: Sequence[str]) -> list[str]:
    """Spell flags with dashes (`--log_file=a_b` becomes `--log-file=a_b`); what follows a bare `--` is text.

    Example:
        >>> kebab_case(["say", "--top_k", "5", "--", "--not_a_flag"])
        ['say', '--top-k', '5', '--', '--not_a_flag']
    """
    end = argv.index("--") if "--" in argv else len(argv)
    return [_dashes(argument) if index < end else argument for index, argument in enumerate(argv)]


def _dashes(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def version() -> str:
    """The installed version of voxedge."""
    return importlib.metadata.version("voxedge")


def whole(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number not below `minimum`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, found {text!r}")
        return value

    return convert


def number(minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a finite number within `minimum` and `maximum`, both allowed."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (minimum <= value <= maximum) or value == float("inf"):
            limit = f" and at most {maximum:g}" if maximum < float("inf") else ""
            raise argparse.ArgumentTypeError(f"expected a number of at least {minimum:g}{limit}, found {text!r}")
        return value

    return convert


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failing import into the command that installs what is missing.

    Raises:
        BackendUnavailableError: A library of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "voxedge").split(".")[0] == "voxedge":
            raise
        raise BackendUnavailableError(
            f"expected the libraries of the {extra!r} extra, found no module {error.name!r}; "
            f"type: pip install 'voxedge[{extra}]'"
        ) from error

"""Read configuration files (JSON, YAML) as plain data, and take typed fields out of them.

In: a path of at most 10 MB. Out: mappings of plain values, and `Section`, which checks type and range of each field and
can refuse keys nobody asked for. Never instantiates a class that a file names. Does not know: models.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.file_access import SourceFile

MAX_CONFIG_BYTES = 10_000_000
MAX_INTEGER = 2**31 - 1


def load_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file by its suffix.

    Returns:
        The mapping at its top level.

    Raises:
        CheckpointError: too large, not parseable, duplicate keys, or no mapping.
        MissingResourceError: there is no such file.
    """
    return _load_yaml(path) if path.suffix in (".yaml", ".yml") else load_json(path)


def load_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object; raises as `load_config`."""
    return parse_json(_content(path, max_bytes), str(path))


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object without duplicate keys, NaN or infinities.

    Raises:
        CheckpointError: anything else.
    """
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{where}: not valid JSON ({str(error)[:120]}); restore the original file") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(parsed).__name__}")
    return parsed


def _content(path: Path, max_bytes: int) -> bytes:
    file = SourceFile.of(path)
    if file.size > max_bytes:
        raise CheckpointError(f"{path}: expected at most {max_bytes} bytes of configuration, found {file.size}")
    with file.opened() as descriptor:
        return file.read(descriptor, 0, file.size).tobytes()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate keys {[name for name, count in counts.items() if count > 1][:6]}")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml  # only YAML-configured systems need it

    class Loader(yaml.SafeLoader):
        """The safe loader without merge keys, which can grow a small file without bound."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("merge keys `<<` are not supported")

    try:
        parsed = yaml.load(_content(path, MAX_CONFIG_BYTES), Loader=Loader)  # noqa: S506 - a safe loader by inheritance
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid YAML ({str(error)[:120]}); restore the original file") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: expected a YAML mapping, found {type(parsed).__name__}")
    return parsed


def _shown(value: object) -> str:
    """A value for a message: short even where a few lines of YAML stand for a giant structure."""
    short = reprlib.Repr()
    short.maxlevel = 2
    try:
        return short.repr(value)[:80]
    except ValueError:  # an integer of more digits than Python prints
        return f"a giant {type(value).__name__}"


class Section:
    """One mapping of a configuration file, with checked access that remembers which keys were asked for."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise CheckpointError(f"{where}: expected an object with text keys, found {_shown(values)}")
        self._values: dict[str, Any] = values
        self.where = where
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def raw(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - what a file holds
        """The unchecked value; null counts as absent."""
        self._asked.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def fail(self, key: str, expected: str) -> CheckpointError:
        """The error to raise for a field that is not what it must be."""
        return CheckpointError(f"{self.where}: `{key}`: expected {expected}, found {_shown(self._values.get(key))}")

    def integer(self, key: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """An integer in a range; required without a default."""
        value = self.raw(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.fail(key, f"an integer from {minimum} to {maximum}")
        return int(value)

    def number(self, key: str, default: float | None = None, minimum: float = 0.0) -> float:
        """A finite number of at least `minimum`; required without a default."""
        value = self.raw(key, default)
        if type(value) not in (int, float) or not minimum <= value < 1e300:  # NaN fails every comparison
            raise self.fail(key, f"a number of at least {minimum}")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false; required without a default."""
        value = self.raw(key, default)
        if type(value) is not bool:
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None, choices: Collection[str] = ()) -> str:
        """A text, optionally one of a few; required without a default."""
        value = self.raw(key, default)
        if not isinstance(value, str) or (choices and value not in choices):
            raise self.fail(key, f"one of {', '.join(choices)}" if choices else "a text")
        return value

    def integers(self, key: str, minimum: int = 1, maximum: int = MAX_INTEGER) -> tuple[int, ...]:
        """A list of 1 to 64 integers in a range."""
        values = self.raw(key)
        if not isinstance(values, list) or not 1 <= len(values) <= 64:
            raise self.fail(key, "a list of integers")
        if not all(type(value) is int and minimum <= value <= maximum for value in values):
            raise self.fail(key, f"integers from {minimum} to {maximum}")
        return tuple(values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty when absent."""
        values = self.raw(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.fail(key, "a list of texts")
        return tuple(values)

    def section(self, key: str, default: dict[str, Any] | None = None) -> Section:
        """A nested object; required without a default."""
        return Section(self.raw(key, default), f"{self.where}: {key}")

    def ignore(self, keys: Iterable[str]) -> None:
        """Keys that are known and do not matter for inference."""
        self._asked.update(keys)

    def refuse_unless(self, key: str, allowed: tuple[object, ...], why: str) -> None:
        """Refuse an option whose value is none of the allowed ones; absent and null are always allowed."""
        value = self.raw(key)
        if value is not None and not any(type(value) is type(each) and value == each for each in allowed):
            raise CheckpointError(f"{self.where}: `{key}` = {_shown(value)} is not supported: {why}")

    def finish(self) -> None:
        """Refuse keys that nobody asked for: they may change what the model computes."""
        unknown = sorted(set(self._values) - self._asked)
        if unknown:
            raise CheckpointError(
                f"{self.where}: unknown options {', '.join(unknown[:12])}; known are "
                f"{', '.join(sorted(self._asked))}; remove them if they do not matter for inference"
            )

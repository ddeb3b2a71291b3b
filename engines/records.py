"""Frozen dataclasses from untrusted JSON, and back.

In: a dataclass type and what `json.loads` gave. Out: an instance whose every field was checked, or a `ConfigError` that
names the place, what was expected and what was found. Unknown keys are errors: a misspelt option must not be ignored.
Knows scalars, `X | None`, `Literal`, `tuple[X, ...]`, `Mapping[str, X]`, `Any` and nested dataclasses; nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from voxedge.engines.errors import BundleError, ConfigError

T = TypeVar("T")

TINY, LARGEST = 1e-9, 1e9
"""What stands for `above 0`, and what no figure of a voice comes near."""

_ACCEPTED: Mapping[type, tuple[type, ...]] = {float: (int, float)}


def from_bundle(kind: type[T], data: object, where: str) -> T:
    """`from_dict` of what a bundle holds.

    Raises:
        BundleError: A key is unknown or missing, or a value has the wrong type or is out of its range.
    """
    try:
        return from_dict(kind, data, where)
    except ConfigError as error:
        raise BundleError(str(error)) from error


def from_dict(kind: type[T], data: object, where: str) -> T:
    """Build a dataclass from decoded JSON.

    Args:
        kind: The dataclass to build.
        data: Decoded JSON; must be an object.
        where: Name of the place for messages, such as `voxedge.json`.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object with the fields of {kind.__name__}, found {_show(data)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(str(key), fields)}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    missing = [name for name, field in fields.items() if name not in values and _required(field)]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(map(repr, missing))}; found the keys {sorted(data)}")
    return kind(**values)


def to_dict(record: object) -> dict[str, Any]:
    """Plain JSON types of a dataclass; tuples become lists, fields that hold None are left out."""
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    pairs = ((field.name, getattr(record, field.name)) for field in fields)
    return {name: _plain(value) for name, value in pairs if value is not None}


def check_range(record: object, where: str, **least: float) -> None:
    """Refuse numbers that nothing can be done with: below what is named here, or beyond `LARGEST`.

    Raises:
        ConfigError: names the first such field.
    """
    for name, lowest in least.items():
        value = getattr(record, name)
        if not lowest <= value <= LARGEST:
            limits, found = f"from {lowest:g} to {LARGEST:g}", str(value)[:40]
            raise ConfigError(f"{where}: expected {name} {limits}, found {found}; export the bundle again")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: object, where: str) -> object:  # noqa: ANN401 - a type annotation has no static type
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool):
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, arguments))}, found {_show(value)}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, found {_show(value)}")
        return {str(key): _convert(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(arguments: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    for kind in kinds:
        try:
            return _convert(kind, value, where)
        except ConfigError:
            if len(kinds) == 1:
                raise
    raise ConfigError(f"{where}: expected {' or '.join(kind.__name__ for kind in kinds)}, found {_show(value)}")


def _convert_tuple(arguments: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, found {_show(value)}")
    if arguments[-1] is not Ellipsis and len(arguments) != len(value):
        raise ConfigError(f"{where}: expected {len(arguments)} entries, found {len(value)}")
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_scalar(kind: type, value: object, where: str) -> object:
    if not isinstance(value, _ACCEPTED.get(kind, kind)) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {_show(value)}")
    if kind is not float:
        return value
    number = float(value) if abs(value) <= sys.float_info.max else math.inf  # type: ignore[arg-type]
    if not math.isfinite(number):  # JSON reads 1e999 as infinity
        raise ConfigError(f"{where}: expected a finite number, found {_show(value)}")
    return number


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _nearest(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {sorted(known)}"


def _show(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"

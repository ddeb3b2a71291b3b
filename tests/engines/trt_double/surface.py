"""What a version of TensorRT shows: every other name raises, as it does in the real bindings."""

# ruff: noqa: ANN401 - a double of bindings without static types
from __future__ import annotations

import enum
from typing import Any, ClassVar

from tensorrt_surface import API, members

VALUES = {
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "TensorIOMode": {"NONE": 0, "INPUT": 1, "OUTPUT": 2},
}
"""Of enumerations whose numbers matter; the others count from 0."""


class Guarded:
    """An object that has the public names of its class in one version, and no others."""

    _trt: ClassVar[Any] = None
    _members: ClassVar[frozenset[str]] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in type(self)._members:
            raise AttributeError(f"TensorRT {type(self)._trt.__version__}: {type(self).__name__} has no {name}")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in type(self)._members:
            raise AttributeError(f"TensorRT {type(self)._trt.__version__}: {type(self).__name__} has no {name}")
        super().__setattr__(name, value)


def guarded(cls: type, version: str, trt: Any) -> type:
    """A class of the double as one version has it."""
    return type(cls.__name__, (cls,), {"_trt": trt, "_members": frozenset(members(version, cls.__name__))})


def enumeration(name: str, version: str) -> type[enum.IntEnum]:
    """An enumeration as one version has it."""
    names = sorted(set(API[version][name].split()) - {"__init__", "name", "value"})
    known = VALUES.get(name, {})
    return enum.IntEnum(name, {item: known.get(item, index) for index, item in enumerate(names)})  # type: ignore[return-value]


def is_enumeration(name: str, version: str) -> bool:
    """Whether the bindings show a class as an enumeration."""
    return {"name", "value"} <= members(version, name)

"""A double of a TensorRT that is not installed: TensorRT-RTX showing only the names that the other version has.

It is used where tests say so, never by the package. Its engines are TensorRT-RTX engines; what it proves is that
voxedge's code for TensorRT 10.3 to 11.4 reaches for nothing that those versions lack.
"""

# ruff: noqa: ANN401 - what it wraps has no static types
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

API = json.loads((Path(__file__).parents[1] / "data/tensorrt_api.json").read_text())
"""Version -> class -> its members, separated by blanks; read off the official bindings."""


def members(version: str, name: str) -> set[str]:
    """Member names of a class; empty where the version has no such class."""
    return set(API[version].get(name, "").split())


class Shown:
    """An object of the real library that has only the attributes of the version's class."""

    def __init__(self, real: Any, name: str, version: str) -> None:
        object.__setattr__(self, "_inner", (real, name, version))

    def __getattr__(self, attribute: str) -> Any:
        real, name, version = object.__getattribute__(self, "_inner")
        if attribute not in members(version, name):
            raise AttributeError(f"TensorRT {version}: {name} has no {attribute}")
        return show(getattr(real, attribute), version)

    def __setattr__(self, attribute: str, value: Any) -> None:
        real, name, version = object.__getattribute__(self, "_inner")
        if attribute not in members(version, name):
            raise AttributeError(f"TensorRT {version}: {name} has no {attribute}")
        setattr(real, attribute, hide(value))


class ShownModule:
    """The module `tensorrt` of a version."""

    def __init__(self, real: Any, version: str) -> None:
        self._real, self._version = real, version

    def __getattr__(self, name: str) -> Any:
        if name not in API[self._version]:
            raise AttributeError(f"TensorRT {self._version} has no {name}")
        real = getattr(self._real, name)
        if name in ("ILogger", "IProgressMonitor"):  # derived from, so it must be the real class
            return real
        if name in ("Builder", "OnnxParser", "Runtime"):
            return lambda *values: show(real(*map(hide, values)), self._version)
        return Shown(real, name, self._version)


def show(value: Any, version: str) -> Any:
    """Wrap what the real library gave, where it is an object of a class of its own."""
    if callable(value) and not isinstance(value, type):
        return lambda *values: show(value(*map(hide, values)), version)
    name = type(value).__name__
    enumerated = hasattr(type(value), "__members__")
    opaque = enumerated or name in ("IHostMemory", "Dims") or not type(value).__module__.startswith("tensorrt")
    return value if opaque else Shown(value, name, version)


def hide(value: Any) -> Any:
    """Unwrap, for a call into the real library."""
    return object.__getattribute__(value, "_inner")[0] if isinstance(value, Shown) else value

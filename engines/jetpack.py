"""Which JetPack brings what, by the Jetson Linux release that a device reports.

In: an L4T version such as `36.4.3`. Out: a `JetPack` row, or None for anything else. Data only; touches no files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JetPack:
    """One JetPack release."""

    name: str
    """Its version, such as `6.2`."""
    l4t: tuple[int, ...]
    """Oldest Jetson Linux release that belongs to it."""
    python: str
    """The system's Python, which TensorRT's bindings are built for."""
    cuda: str
    """CUDA that it brings."""
    tensorrt: tuple[int, ...]
    """TensorRT that it brings."""
    boards: str
    """Modules that it runs on."""

    @property
    def supported(self) -> bool:
        """Whether its TensorRT (10.3 or newer) can build voxedge's graphs."""
        return self.tensorrt >= (10, 3)


JETPACKS = (
    JetPack("4.6", (32, 7), "3.6", "10.2", (8, 2, 1), "Nano, TX2, Xavier"),
    JetPack("5.1", (35, 2), "3.8", "11.4", (8, 5, 2), "Xavier, Orin"),
    JetPack("6.0", (36, 3), "3.10", "12.2", (8, 6, 2), "Orin"),
    JetPack("6.1", (36, 4, 0), "3.10", "12.6", (10, 3), "Orin"),
    JetPack("6.2", (36, 4, 3), "3.10", "12.6", (10, 3), "Orin"),
    JetPack("6.2.1", (36, 4, 4), "3.10", "12.6", (10, 3), "Orin"),
    JetPack("7.0", (38, 2), "3.12", "13.0", (10, 13, 3), "Thor"),
    JetPack("7.1", (38, 4), "3.12", "13.0", (10, 13, 3), "Thor"),
    JetPack("7.2", (39, 1), "3.12", "13.2", (10, 16, 2), "Orin, Thor"),
)
"""Oldest first."""


def find_jetpack(l4t: str) -> JetPack | None:
    """The JetPack of a Jetson Linux release; None for an empty one and for a generation that is not in the table.

    Example:
        >>> find_jetpack("36.4.3").name
        '6.2'
    """
    if not l4t:
        return None
    version = tuple(int(part) for part in l4t.split(".") if part.isdigit())
    fitting = [row for row in JETPACKS if row.l4t[0] == version[0] and row.l4t <= version]
    return fitting[-1] if fitting else None

"""Every failure that voxedge reports on purpose, each with the exit code of the command line.

In: nothing. Out: one exception tree under `VoxedgeError`. A message says what was expected, what was found and what to
type next. Does not print, log or exit; `runtime.cli` turns an exception into a message and its code.
"""

from __future__ import annotations

from typing import ClassVar


class VoxedgeError(Exception):
    """Base of all expected failures; a plain one is a failed run."""

    exit_code: ClassVar[int] = 4


class InputError(VoxedgeError):
    """What the user gave (text, audio, an option) cannot be used."""

    exit_code = 1


class ConfigError(InputError):
    """A configuration value or a key is not valid."""


class CheckpointError(InputError):
    """A checkpoint is damaged, incomplete or of an unsupported kind."""


class BundleError(InputError):
    """A bundle's manifest or one of its files is damaged or not what the manifest says."""


class MissingResourceError(VoxedgeError):
    """A file, folder or voice that was named does not exist."""

    exit_code = 2


class BackendUnavailableError(VoxedgeError):
    """A library or device that was asked for is not there; nothing else was used in its place."""

    exit_code = 3


class ExportError(VoxedgeError):
    """Tracing or writing a graph failed."""


class BuildError(VoxedgeError):
    """An engine could not be compiled."""


class InferenceError(VoxedgeError):
    """A graph failed to run, or gave values that are no audio."""


class QualityError(VoxedgeError):
    """A bundle does not meet its quality gate."""

    exit_code = 5


class EngineMismatchError(VoxedgeError):
    """An engine was built for another device, library version or graph."""

    exit_code = 6

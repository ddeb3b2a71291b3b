"""What calibration knows of every activation that a quantiser needs, and the one file that keeps it.

In: `TensorStatistics` of values of a bundle's portable FP32 graphs, or a file of them. Out: `Statistics` that are asked
by graph and value, and a safetensors file with its provenance. Does not run graphs (see `calibration.collect`) and
does not choose scales (see `calibration.quantise`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from voxedge.engines.errors import ConfigError, InputError, MissingResourceError
from voxedge.engines.files import hash_bytes, write_atomically
from voxedge.engines.manifest import Manifest
from voxedge.engines.records import from_dict, to_dict

BINS = 2048
"""Of the histogram of |x|; a power of two, so that bins merge in pairs."""
SAMPLE_ROWS = 128
"""Most rows of a value that are kept whole."""
FORMAT_VERSION = 1

_ARRAYS = ("counts", "channel_max", "channel_mean", "samples")
_AGAIN = "; run `voxedge calibrate` again"

Key = tuple[str, str]
"""Graph and value."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where statistics come from."""

    bundle_sha256: str
    """`bundle_hash` of the FP32 bundle that spoke."""
    set_name: str
    """A set of voxedge's, or the user's file."""
    set_sha256: str
    """Of what was said, whatever the file looked like."""
    lines: int
    """Utterances."""
    seed: int
    """Of tokens and latents."""
    max_tokens: int
    """Speech tokens of one utterance at most."""
    voxedge: str
    """Version."""
    onnxruntime: str
    """Version; another one may round differently."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorStatistics:
    """One activation, over everything that was said."""

    axis: int
    """Which axis holds the C input channels of the consumer: -1 for MatMul, 1 for Conv and ConvTranspose."""
    minimum: float
    maximum: float
    count: int
    """Numbers seen."""
    limit: float
    """Upper end of the histogram, a power of two above every |x|."""
    counts: npt.NDArray[np.int64]
    """[BINS], how many |x| lie in each bin of the width `limit / BINS`."""
    channel_max: npt.NDArray[np.float32]
    """[C], largest |x| of each channel."""
    channel_mean: npt.NDArray[np.float32]
    """[C], mean |x| of each channel."""
    samples: npt.NDArray[np.float16]
    """[n, C], up to `SAMPLE_ROWS` rows drawn evenly from all; for searches. Clipped to what FP16 holds."""

    def __post_init__(self) -> None:
        channels = self.channel_max.shape
        fits = (
            self.counts.shape == (BINS,)
            and len(channels) == 1
            and self.channel_mean.shape == channels
            and self.samples.shape[1:] == channels
            and len(self.samples) <= SAMPLE_ROWS
        )
        if not fits or self.counts.min() < 0 or int(self.counts.sum()) != self.count:
            raise ConfigError("expected a histogram of all numbers and one figure for each channel")
        finite = all(map(math.isfinite, (self.minimum, self.maximum, self.limit)))
        if not finite or not 0 <= self.largest < self.limit or self.minimum > self.maximum:
            raise ConfigError(f"expected finite ordered bounds, found {self.minimum}, {self.maximum}, {self.limit}")

    @property
    def largest(self) -> float:
        """Largest |x|."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def channels(self) -> int:
        """C."""
        return len(self.channel_max)


class Statistics:
    """Activations of one bundle by graph and value.

    Example:
        >>> found = Statistics.load("stats.safetensors")  # doctest: +SKIP
        >>> found.tensor("dit", "/Add:0").largest  # doctest: +SKIP
        4.25
    """

    def __init__(
        self, provenance: Provenance, keys: Iterable[Key], read: Callable[[Key], TensorStatistics | None]
    ) -> None:
        self.provenance = provenance
        self.keys = tuple(keys)
        """Every graph and value that is known."""
        self._read = read

    @classmethod
    def of(cls, provenance: Provenance, tensors: Mapping[Key, TensorStatistics]) -> Statistics:
        """Statistics that are in memory."""
        return cls(provenance, tensors, tensors.get)

    def tensor(self, graph: str, value: str) -> TensorStatistics | None:
        """What is known of a value of a portable FP32 graph; None where it was not looked at.

        Raises:
            InputError: The file is damaged.
        """
        return self._read((graph, value))

    def check(self, manifest: Manifest) -> None:
        """Refuse to be used for another bundle.

        Raises:
            InputError: They were collected from another one.
        """
        expected = bundle_hash(manifest)
        if expected != self.provenance.bundle_sha256:
            raise InputError(
                f"expected statistics of this bundle ({expected[:12]}), found those of another one "
                f"({self.provenance.bundle_sha256[:12]}, set {self.provenance.set_name}); "
                "run `voxedge calibrate` on the FP32 bundle that is to be quantised"
            )

    def save(self, path: Path) -> None:
        """Write one safetensors file in one step; the old file stays until the new one is whole."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        entries = []
        for graph, value in self.keys:
            found = self.tensor(graph, value)
            if found is None:
                continue
            scalars = {"axis": found.axis, "minimum": found.minimum, "maximum": found.maximum}
            entries.append({"graph": graph, "value": value, **scalars, "count": found.count, "limit": found.limit})
            arrays |= {f"{graph}|{value}|{name}": np.ascontiguousarray(getattr(found, name)) for name in _ARRAYS}
        described = {"format_version": FORMAT_VERSION, "provenance": to_dict(self.provenance), "tensors": entries}
        write_atomically(path, save(arrays, {"statistics": json.dumps(described, allow_nan=False)}))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Open a file; its arrays are read when they are asked for.

        Raises:
            MissingResourceError: There is no such file.
            InputError: It holds no statistics, or is damaged.
        """
        if not Path(path).is_file():
            raise MissingResourceError(
                f"expected statistics at {path}, found no file; write them with `voxedge calibrate BUNDLE -o {path}`"
            )
        try:
            file: Any = safe_open(str(path), framework="numpy")
            described = _File(**json.loads((file.metadata() or {})["statistics"]))
            provenance = from_dict(Provenance, described.provenance, f"{path}: provenance")
            entries = {(entry.graph, entry.value): entry for entry in described.entries(str(path))}
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
            raise InputError(f"{path}: expected statistics of voxedge, found {error}{_AGAIN}") from error
        return cls(provenance, entries, lambda key: _read(path, file, entries.get(key)))


def bundle_hash(manifest: Manifest) -> str:
    """SHA-256 over the portable graphs and their weights, which is all that activations depend on."""
    portable = sorted((spec.name, spec.path, spec.data) for spec in manifest.graphs if spec.flavour == "portable")
    parts = [[name, manifest.files[path].sha256, manifest.files[data].sha256] for name, path, data in portable]
    return hash_bytes(json.dumps(parts).encode())


@dataclass(frozen=True, slots=True)
class _Entry:
    """Scalars of one value in a file."""

    graph: str
    value: str
    axis: int
    minimum: float
    maximum: float
    count: int
    limit: float


@dataclass(frozen=True, slots=True)
class _File:
    """The description in a file."""

    format_version: int
    provenance: object
    tensors: object

    def entries(self, path: str) -> Iterable[_Entry]:
        if self.format_version != FORMAT_VERSION or not isinstance(self.tensors, list):
            raise ConfigError(f"format_version {self.format_version!r} in place of {FORMAT_VERSION}")
        return [from_dict(_Entry, item, f"{path}: tensors[{index}]") for index, item in enumerate(self.tensors)]


def _read(path: str | Path, file: Any, entry: _Entry | None) -> TensorStatistics | None:  # noqa: ANN401 - no types
    if entry is None:
        return None
    try:
        arrays = [file.get_tensor(f"{entry.graph}|{entry.value}|{name}") for name in _ARRAYS]
        kinds = [array.dtype for array in arrays]
        if kinds != [np.int64, np.float32, np.float32, np.float16]:
            raise ConfigError(f"the dtypes {kinds}")
        return TensorStatistics(entry.axis, entry.minimum, entry.maximum, entry.count, entry.limit, *arrays)
    except (SafetensorError, ConfigError, ValueError) as error:
        raise InputError(
            f"{path}: the statistics of {entry.graph}, {entry.value} are damaged: {error}{_AGAIN}"
        ) from error

"""The bundle's manifest: what every graph takes and gives, at which sizes, and which files belong to the bundle.

In: decoded `voxedge.json`. Out: frozen records, checked one by one and against each other. Does not touch the disk
(see `engines.bundle`) and does not know any TTS system: `settings` is read by `runtime.systems`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from voxedge.engines.errors import BundleError, ConfigError
from voxedge.engines.gate import Gate
from voxedge.engines.records import from_dict, to_dict

FORMAT_VERSION = 1
MANIFEST_NAME = "voxedge.json"

Flavour = Literal["portable", "ort"]
DType = Literal["float32", "float16", "int32", "int64", "int8", "uint8", "bool"]
LayerPrecision = Literal["fp32", "fp16", "int8", "int8-weight", "int4-weight"]
"""Of one layer: `int8` rounds weights and activations, `int8-weight` and `int4-weight` the weights alone."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DimRange:
    """Sizes that one symbolic dimension may take; an engine is tuned for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"expected 0 <= min <= opt <= max, found {self.min}, {self.opt}, {self.max}")


Profile = Mapping[str, DimRange]
"""One optimisation profile: a range for every symbolic dimension of the graph's inputs."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    """Sizes; a string names a symbolic dimension, whose ranges stand in the graph's profiles."""

    def __post_init__(self) -> None:
        if any(isinstance(size, int) and size < 0 for size in self.shape):
            raise ConfigError(f"tensor {self.name}: expected sizes of 0 or more, found {list(self.shape)}")

    def sizes(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its symbolic dimensions replaced by `dims`."""
        return tuple(size if isinstance(size, int) else dims[size] for size in self.shape)

    def fits(self, shape: Sequence[int], dims: dict[str, int]) -> bool:
        """Whether a tensor of this shape can stand here; a symbolic dimension that is new gets its size in `dims`."""
        return len(shape) == len(self.shape) and all(
            size == (dims.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
            for size, wanted in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """How one layer's weights are stored."""

    precision: LayerPrecision
    """Type of the weights, and of the activations where it is `int8`."""
    block: int | None = None
    """Input channels that share a scale; None where a whole output channel does, or where there are no scales."""

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ConfigError(f"expected a block of 1 or more, found {self.block}")


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX graph of a bundle, in one flavour."""

    name: str
    """What it computes, such as `speech_expert`; unique together with `flavour`."""
    flavour: Flavour
    """`portable`: operators of TensorRT 10.1 only. `ort`: fused operators of ONNX Runtime."""
    path: str
    """The .onnx file, relative to the bundle."""
    data: str
    """Its weights, beside it; flavours of one graph share the file."""
    precision: str
    """Of the matrix products: `fp32`, `fp16`, ..."""
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, Mapping[str, DimRange]] = field(default_factory=dict)
    """Named optimisation profiles; each bounds every symbolic dimension of the inputs."""
    min_onnxruntime: str = "1.20"
    """Oldest ONNX Runtime that has the graph's operators."""
    layers: Mapping[str, LayerSpec] = field(default_factory=dict)
    """Precision of every node with weights, by the node's path; empty where all have the graph's."""
    weight_uses: int = 1
    """How often one call reads the same weights; above 1 for a graph that is unrolled over its steps."""

    def __post_init__(self) -> None:
        dims = {size for tensor in self.inputs for size in tensor.shape if isinstance(size, str)}
        for name, profile in self.profiles.items():
            if set(profile) != dims:
                raise ConfigError(
                    f"graph {self.name}, profile {name}: expected ranges for {sorted(dims)}, found {sorted(profile)}"
                )
        if not self.profiles:
            raise ConfigError(f"graph {self.name}: expected at least one profile; a builder never guesses sizes")

    def input(self, name: str) -> TensorSpec:
        """The input called `name`."""
        return _named(self.inputs, name, f"graph {self.name} has no input")

    def output(self, name: str) -> TensorSpec:
        """The output called `name`."""
        return _named(self.outputs, name, f"graph {self.name} has no output")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Checksum and size of one file."""

    sha256: str
    size: int
    """Bytes."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256) or self.size < 0:
            raise ConfigError(f"expected 64 hex digits and a size, found {self.sha256[:70]!r} and {self.size}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a bundle says about itself."""

    format_version: int
    system: str
    """Which system it speaks with, such as `moe_tts`."""
    settings: Mapping[str, Any]
    """The system's own settings; see `runtime.systems`."""
    graphs: tuple[GraphSpec, ...]
    files: Mapping[str, FileRecord]
    """Every file of the bundle but the manifest and what is built on the device, by relative path."""
    source: Mapping[str, FileRecord] = field(default_factory=dict)
    """The checkpoint's files that it was made from."""
    created_by: str = ""
    """Name and version of the program that wrote it."""
    note: str = ""
    """One sentence for people, such as that the voice is untrained."""
    words: tuple[str, ...] = ()
    """Words that the voice was trained on, in lower case; none where it was trained on a whole language."""
    voices: tuple[str, ...] = ()
    """Descriptions of the voices that the model is best at, for people to choose from."""
    gate: Gate | None = None
    """Limits of `voxedge verify` for this bundle alone; None takes those of its precision."""

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"expected format_version {FORMAT_VERSION}, found {self.format_version}; "
                "export the checkpoint again with this voxedge, or install the voxedge that wrote the bundle"
            )
        _check_words(self.words)
        for path in (*self.files, *(p for graph in self.graphs for p in (graph.path, graph.data))):
            check_relative(path)
        keys = [(graph.name, graph.flavour) for graph in self.graphs]
        if len(set(keys)) != len(keys):
            raise ConfigError(f"expected one graph for each name and flavour, found {keys}")
        for graph in self.graphs:
            for path in (graph.path, graph.data):
                if path not in self.files:
                    raise ConfigError(f"graph {graph.name} names {path!r}, which is not among `files`")

    def graph(self, name: str, flavour: Flavour = "portable") -> GraphSpec:
        """The graph called `name`: in `flavour` where that exists, else portable.

        Raises:
            BundleError: There is no such graph.
        """
        found = {graph.flavour: graph for graph in self.graphs if graph.name == name}
        graph = found.get(flavour) or found.get("portable")
        if graph is None:
            raise BundleError(f"expected a graph {name!r}, found {sorted({g.name for g in self.graphs})}")
        return graph


@dataclass(frozen=True, slots=True)
class ManifestDraft:
    """A manifest before its files were counted and hashed."""

    system: str
    """Which system the bundle speaks with, such as `moe_tts`."""
    settings: Mapping[str, Any]
    """The system's own settings; plain JSON types."""
    graphs: tuple[GraphSpec, ...]
    """Every graph; its files must have been written."""
    source: Mapping[str, FileRecord] = field(default_factory=dict)
    """The checkpoint's files that it was made from."""
    created_by: str = ""
    """Name and version of the program that wrote it."""
    note: str = ""
    """One sentence for people."""
    words: tuple[str, ...] = ()
    """Words that the voice was trained on; none for a whole language."""
    voices: tuple[str, ...] = ()
    """Descriptions of its voices."""
    gate: Gate | None = None
    """Limits of `voxedge verify` for this bundle alone."""

    def finish(self, records: Mapping[str, FileRecord]) -> Manifest:
        """The manifest of a bundle with these files.

        Raises:
            ConfigError: It contradicts itself, for instance by a graph whose file is missing.
        """
        return Manifest(
            format_version=FORMAT_VERSION,
            system=self.system,
            settings=self.settings,
            graphs=self.graphs,
            files=records,
            source=self.source,
            created_by=self.created_by,
            note=self.note,
            words=self.words,
            voices=self.voices,
            gate=self.gate,
        )


def parse_manifest(data: object) -> Manifest:
    """Read a decoded `voxedge.json`.

    Raises:
        BundleError: Anything in it is missing, unknown, of the wrong type or inconsistent.
    """
    try:
        return from_dict(Manifest, data, MANIFEST_NAME)
    except ConfigError as error:
        raise BundleError(str(error)) from error


def dump_manifest(manifest: Manifest) -> dict[str, Any]:
    """The JSON form of a manifest."""
    return to_dict(manifest)


def check_relative(path: str) -> None:
    """Refuse a path that could leave the bundle.

    Raises:
        ConfigError: The path is absolute, empty, has a `..` or a backslash, or is not in normal form.
    """
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or str(pure) != path:
        raise ConfigError(f"expected a plain relative path inside the bundle, found {path[:200]!r}")


def _check_words(words: Sequence[str]) -> None:
    """Refuse what no word of a text could ever be equal to.

    Raises:
        ConfigError: names the first that is not in lower case, empty, or no single word.
    """
    for word in words:
        if word != word.lower() or not all(part.isalnum() for part in word.split("'")):
            raise ConfigError(f"expected `words` of letters or digits in lower case, found {word[:40]!r}")


def _named(tensors: tuple[TensorSpec, ...], name: str, failure: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise BundleError(f"{failure} {name!r}; it has {[tensor.name for tensor in tensors]}")


def replace_files(manifest: Manifest, files: Mapping[str, FileRecord]) -> Manifest:
    """The manifest with another list of files."""
    return dataclasses.replace(manifest, files=dict(files))

"""What an engine file was built from, for which device and by which library: compared before it is deserialised.

In: an engine file with its JSON stamp beside it, and the stamp that is wanted here. Out: readable differences, or an
`EngineMismatchError` with the command that builds the right one. Never opens the engine itself: the message that a
library gives for a foreign engine explains nothing, and deserialising one is not safe.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from voxedge.engines import files
from voxedge.engines.errors import BundleError, ConfigError, EngineMismatchError
from voxedge.engines.manifest import DimRange, FileRecord
from voxedge.engines.records import from_dict, to_dict

EngineFlavour = Literal["tensorrt", "tensorrt_rtx"]

_MAX_STAMP_BYTES = 1 << 20
_AMPERE = 80
_LABELS = {
    "graph_sha256": "graph (sha256)",
    "data_sha256": "weights (sha256)",
    "flavour": "library",
    "version": "library version",
    "os": "operating system",
    "arch": "processor architecture",
    "l4t": "Jetson Linux",
    "precision": "precision",
}


@dataclass(frozen=True, slots=True)
class EngineStamp:
    """Everything that decides whether an engine fits."""

    graph_sha256: str
    """Of the .onnx file."""
    data_sha256: str
    """Of its weights."""
    flavour: EngineFlavour
    """Which library built it."""
    version: str
    """That library's version; engines are not portable between versions."""
    compute_capabilities: tuple[int, ...]
    """The devices that it was built for, such as 87 for Orin."""
    os: str
    """Operating system, such as `linux`."""
    arch: str
    """Processor architecture, such as `aarch64`."""
    l4t: str
    """Jetson Linux release; empty elsewhere."""
    profiles: Mapping[str, Mapping[str, DimRange]]
    """The graph's optimisation profiles."""
    precision: str
    """Of the graph, as in the manifest."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Builder options; only those that are wanted are compared, so loading an engine asks for none."""
    voxedge_version: str = ""
    """For people; a new voxedge alone makes no engine stale."""


@dataclass(frozen=True, slots=True)
class StampFile:
    """The JSON beside an engine."""

    stamp: EngineStamp
    """What the engine was built from and for."""
    engine: FileRecord
    """The engine file."""


def stamp_path(engine: Path) -> Path:
    """Where the stamp of an engine file lies."""
    return engine.with_name(engine.name + ".json")


def write_stamp(engine: Path, stamp: EngineStamp) -> None:
    """Write the stamp of an engine file that is in its place."""
    record = StampFile(stamp, FileRecord(files.hash_file(engine), engine.stat().st_size))
    files.write_atomically(stamp_path(engine), _encode(record))


def write_engine(engine: Path, data: bytes | memoryview, stamp: EngineStamp) -> None:
    """Write an engine file and its stamp; interrupted, it leaves the old pair, or neither."""
    path, view = stamp_path(engine), memoryview(data).cast("B")
    record = StampFile(stamp, FileRecord(files.hash_bytes(view), len(view)))
    partial = files.write_partial(engine, view)
    try:
        path.unlink(missing_ok=True)  # a kill from here on leaves no stamp, and so no engine that counts as fresh
        partial.replace(engine)
        files.write_atomically(path, _encode(record))
    except BaseException:
        partial.unlink(missing_ok=True)
        if not path.exists():
            engine.unlink(missing_ok=True)
        raise


def read_stamp(engine: Path) -> StampFile | None:
    """The stamp of an engine file; None where the engine or its stamp is missing.

    Raises:
        BundleError: The stamp is damaged, or the engine file has another size than the stamp says.
    """
    path = stamp_path(engine)
    if not engine.is_file() or not path.is_file():
        return None
    try:
        record = from_dict(StampFile, files.read_json(path, _MAX_STAMP_BYTES), str(path))
    except ConfigError as error:
        raise BundleError(str(error)) from error
    size = engine.stat().st_size
    if size != record.engine.size:
        raise BundleError(f"{engine}: expected {record.engine.size} bytes, found {size}")
    return record


def compare(stamp: EngineStamp, wanted: EngineStamp) -> list[str]:
    """Readable differences that make an engine unfit; empty when it fits.

    An engine for more devices than wanted fits; options that `wanted` does not name are not compared.
    """
    differences = [
        f"{label}: built with {_short(getattr(stamp, name))}, wanted {_short(getattr(wanted, name))}"
        for name, label in _LABELS.items()
        if getattr(stamp, name) != getattr(wanted, name)
    ]
    if not _covers(stamp, wanted.compute_capabilities):
        differences.append(f"device: built for {_devices(stamp)}, wanted {_devices(wanted)}")
    differences += _compare_profiles(stamp, wanted)
    for name, value in wanted.options.items():
        found = stamp.options.get(name)
        if found != value:
            differences.append(f"option {name}: built with {found}, wanted {value}")
    return differences


def find_differences(engine: Path, wanted: EngineStamp) -> list[str]:
    """Why the engine file cannot be used as it is; empty when it can. Damaged and missing files are reasons too."""
    try:
        record = read_stamp(engine)
    except BundleError as error:
        return [str(error)]
    if record is None:
        return ["not built yet" if not engine.is_file() else "it has no stamp, so nobody knows what it was built from"]
    return compare(record.stamp, wanted)


def check_engine(engine: Path, wanted: EngineStamp, command: str) -> None:
    """Refuse an engine that does not fit; to be called before every deserialisation.

    Args:
        engine: The engine file.
        wanted: What is needed here; without options.
        command: The command that builds it, see `build_command`.

    Raises:
        EngineMismatchError: It is missing, damaged, or built for something else.
    """
    differences = find_differences(engine, dataclasses.replace(wanted, options={}))
    if differences:
        raise EngineMismatchError(f"{engine} cannot be used: {'; '.join(differences)}. Type: {command}")


def build_command(bundle: Path, target: str, compute_capabilities: tuple[int, ...] = ()) -> str:
    """The command line that builds a bundle's engines.

    Example:
        >>> build_command(Path("moe-tts"), "rtx", (89, 120))
        'voxedge build moe-tts --target rtx --sm 89,120'
    """
    devices = f" --sm {','.join(map(str, compute_capabilities))}" if compute_capabilities else ""
    return f"voxedge build {bundle} --target {target}{devices}"


def _encode(record: StampFile) -> bytes:
    return json.dumps(to_dict(record), indent=1).encode("utf-8")


def _compare_profiles(stamp: EngineStamp, wanted: EngineStamp) -> list[str]:
    if set(stamp.profiles) != set(wanted.profiles):
        return [f"profiles: built with {sorted(stamp.profiles)}, wanted {sorted(wanted.profiles)}"]
    return [
        f"profile {profile}, {dim}: built for {_range(stamp.profiles[profile].get(dim))}, wanted {_range(wanted_range)}"
        for profile, dims in wanted.profiles.items()
        for dim, wanted_range in dims.items()
        if stamp.profiles[profile].get(dim) != wanted_range
    ]


def _covers(stamp: EngineStamp, devices: tuple[int, ...]) -> bool:
    if stamp.options.get("compatibility") == "ampere+":
        return all(device >= _AMPERE for device in devices)
    return set(devices) <= set(stamp.compute_capabilities)


def _range(dim: DimRange | None) -> str:
    return f"{dim.min}..{dim.opt}..{dim.max}" if dim else "nothing"


def _devices(stamp: EngineStamp) -> str:
    return ", ".join(f"SM{number}" for number in stamp.compute_capabilities) or "nothing"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text or "none"

"""Read safetensors files and sharded folders of them, header first, values on demand.

In: a `.safetensors` file or a `.safetensors.index.json`. Out: names and `LazyTensor`s. The header is checked completely
before anything is believed: its length, JSON, types, shapes, and that the tensors tile the data exactly, as the format
demands. Does not know: models, and never maps a file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from voxedge.engines.errors import CheckpointError
from voxedge.engines.source_files import FileTensor, SourceFile
from voxedge.export.checkpoint.config_file import load_json, parse_json
from voxedge.export.checkpoint.file_access import MAX_NAME_BYTES
from voxedge.export.checkpoint.tensors import MAX_AXES, LazyTensor, item_bytes

MAX_HEADER_BYTES = 100_000_000
INDEX_SUFFIX = ".safetensors.index.json"
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Read the header of one file.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: the file is damaged, or is no safetensors file.
        MissingResourceError: there is no such file.
    """
    file = SourceFile.of(path)
    header, data_start = _header(file)
    header.pop("__metadata__", None)
    tensors = {key: _entry(file, data_start, key, fields) for key, fields in header.items()}
    _check_tiling(file, data_start, list(tensors.values()))
    return dict(tensors)


def read_sharded(index_path: Path) -> tuple[dict[str, LazyTensor], tuple[Path, ...]]:
    """Read all shards that an index names.

    Args:
        index_path: the `.safetensors.index.json`.

    Returns:
        Tensors by name, and the shards in order of their names.

    Raises:
        CheckpointError: a shard is missing, outside the folder or damaged, or index and shards disagree.
    """
    weight_map = _weight_map(index_path)
    names = sorted(set(weight_map.values()))
    shards = [index_path.parent / name for name in names]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{index_path}: expected {len(shards)} shards, missing {', '.join(missing[:12])}; download what is missing"
        )
    tensors: dict[str, LazyTensor] = {}
    for shard in shards:
        found = read_safetensors(shard)
        _compare_shard(shard, found, {key for key, name in weight_map.items() if name == shard.name})
        tensors.update(found)
    return tensors, tuple(shards)


def _weight_map(index_path: Path) -> dict[str, str]:
    weight_map = load_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: expected an object `weight_map` of tensor names to file names")
    for key, name in weight_map.items():
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}
        if not plain or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise CheckpointError(
                f"{index_path}: {key!r}: expected the plain name of a file beside it, found {str(name)[:80]!r}"
            )
    return weight_map


def _compare_shard(shard: Path, found: dict[str, LazyTensor], expected: set[str]) -> None:
    missing, extra = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or extra:
        raise CheckpointError(
            f"{shard}: expected the tensors that the index places here; missing {missing[:6]}, not in the index "
            f"{extra[:6]}; index and shards come from different downloads: download all of them again"
        )


def _header(file: SourceFile) -> tuple[dict[str, Any], int]:
    hint = "download the file again"
    if file.size < 8:
        raise CheckpointError(f"{file.path}: expected a safetensors file, found only {file.size} bytes; {hint}")
    with file.opened() as descriptor:
        length = int.from_bytes(file.read(descriptor, 0, 8).tobytes(), "little")
        if length > min(MAX_HEADER_BYTES, file.size - 8):
            raise CheckpointError(
                f"{file.path}: expected a header of at most {min(MAX_HEADER_BYTES, file.size - 8)} bytes, the file "
                f"claims {length}; it is cut off or no safetensors file: {hint}"
            )
        raw = file.read(descriptor, 8, length).tobytes()
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{file.path}: expected a JSON header, found {raw[:16]!r}; {hint}")
    header = parse_json(raw, str(file.path))
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file.path}: expected texts in `__metadata__`; {hint}")
    return header, 8 + length


def _entry(file: SourceFile, data_start: int, key: str, fields: object) -> FileTensor:
    where = f"{file.path}: {key!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets; download the file again")
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{where}: expected one of the types {', '.join(DTYPES)}, found {fields['dtype']!r}; "
            "use the float16, bfloat16 or float32 release of this checkpoint"
        )
    shape, offsets = _integers(fields["shape"], where), _integers(fields["data_offsets"], where)
    addressable = math.prod(length for length in shape if length) < 2**60  # an empty tensor can claim any length
    if len(shape) > MAX_AXES or len(offsets) != 2 or not addressable:
        raise CheckpointError(f"{where}: expected at most {MAX_AXES} axes and two offsets; download the file again")
    start, end = offsets
    expected = math.prod(shape) * item_bytes(dtype)
    if start > end or data_start + end > file.size or end - start != expected:
        raise CheckpointError(
            f"{where}: expected {expected} bytes for {dtype} {shape} within the file's {file.size} bytes, "
            f"found data_offsets {start}..{end}; download the file again"
        )
    return FileTensor(file, key, shape, dtype, data_start + start)


def _integers(values: object, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise CheckpointError(f"{where}: expected a list of non-negative integers, found {str(values)[:80]}")
    return tuple(values)


def _check_tiling(file: SourceFile, data_start: int, tensors: list[FileTensor]) -> None:
    """The format demands that the tensors cover the data without overlap, hole or remainder."""
    position = data_start
    for tensor in sorted(tensors, key=lambda each: (each.offset, math.prod(each.shape))):
        if tensor.offset != position:
            kind = "overlaps another tensor" if tensor.offset < position else "leaves a hole before it"
            raise CheckpointError(f"{tensor.name}: {kind} in {file.path}; download the file again")
        position += math.prod(tensor.shape) * item_bytes(tensor.dtype)
    if position != file.size:
        raise CheckpointError(
            f"{file.path}: expected {position} bytes after its header, found {file.size}; download the file again"
        )

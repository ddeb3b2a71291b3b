"""Read torch's zip files lazily: the pickle tells names and layouts, the values are read from the file on demand.

In: a `.pt`, `.pth`, `.ckpt` or `.bin` file. Out: names and `LazyTensor`s. The pickle is read with torch's restricted
reader (`weights_only=True`) under fake tensors, so no code runs and no weight is loaded; there is no other way in. No
other module of this package imports torch. Does not know: models.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.file_access import SourceFile
from voxedge.export.checkpoint.strided import StridedTensor, checked_view, row_major
from voxedge.export.checkpoint.tensors import ITEM_BYTES, LazyTensor

MAX_PICKLE_BYTES = 100_000_000
MAX_DEPTH = 8
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_MAGIC = b"PK\x03\x04"
ADVICE = (
    "load it once in the program that wrote it and save the weights alone with safetensors.torch.save_file, "
    "or download it again if it should be fine"
)


@dataclass(frozen=True, slots=True)
class Storage:
    """One uncompressed member of the zip file."""

    start: int
    """First byte of the data in the file."""
    size: int
    """Bytes of data."""
    checksum: int
    """CRC-32 of the data."""


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """Read the names and layouts of a torch file.

    Returns:
        Tensors by name: of the file's `state_dict` if it has one, of its only mapping of tensors, or of all mappings
        with dotted names.

    Raises:
        CheckpointError: the file is damaged, of the old format, compressed, byte-swapped, or its pickle needs code.
        MissingResourceError: there is no such file.
    """
    file = SourceFile.of(path)
    storages = _storages(file)
    state = _state_dict(_load(path), path)
    tensors = {key: _lazy(file, key, tensor, storages) for key, tensor in state}
    if not tensors:
        raise CheckpointError(f"{path}: expected named tensors, found none; {ADVICE}")
    return dict(tensors)


def _load(path: Path) -> object:
    try:
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # a damaged pickle can raise anything at all
        raise CheckpointError(
            f"{path}: expected a torch file of plain tensors, but it cannot be read without running code from it "
            f"({type(error).__name__}: {str(error).strip()[:160]}); {ADVICE}"
        ) from error


def _storages(file: SourceFile) -> dict[int, Storage]:
    """All members of the zip file by the place of their data."""
    with file.opened() as descriptor:
        if file.size < 4 or file.read(descriptor, 0, 4).tobytes() != LOCAL_MAGIC:
            raise CheckpointError(f"{file.path}: expected a zip file as torch writes since version 1.6; {ADVICE}")
        members = _members(file)
        storages = {}
        for member in members:
            magic, name_length, extra_length = LOCAL_HEADER.unpack(
                file.read(descriptor, member.header_offset, LOCAL_HEADER.size).tobytes()
            )
            start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
            if magic != LOCAL_MAGIC or start + member.file_size > file.size:
                raise CheckpointError(f"{file.path}: member {member.filename!r} lies outside the file; {ADVICE}")
            storages[start] = Storage(start, member.file_size, member.CRC)
    return storages


def _members(file: SourceFile) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
            orders = [member for member in members if member.filename.endswith("/byteorder")]
            swapped = any(member.file_size > 16 or archive.read(member) != b"little" for member in orders)
    except Exception as error:  # zipfile raises a dozen types for damaged directories
        raise CheckpointError(f"{file.path}: damaged zip file ({str(error)[:160]}); {ADVICE}") from error
    if swapped:
        raise CheckpointError(f"{file.path}: expected little-endian tensors, found byte-swapped ones; {ADVICE}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise CheckpointError(f"{file.path}: member {member.filename!r} is compressed; {ADVICE}")
        if member.filename.endswith("/data.pkl") and member.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{file.path}: its pickle has {member.file_size} bytes, too many for names; {ADVICE}")
    return members


def _state_dict(loaded: object, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Find the tensors in what training programs put around them."""
    for _ in range(MAX_DEPTH):
        if not isinstance(loaded, Mapping) or any(isinstance(each, torch.Tensor) for each in loaded.values()):
            break
        inner = [each for each in loaded.values() if isinstance(each, Mapping)]
        if isinstance(loaded.get("state_dict"), Mapping):
            loaded = loaded["state_dict"]
        elif len(inner) == 1:
            loaded = inner[0]
        else:
            break
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path}: expected a mapping of names to tensors, found {type(loaded).__name__}; {ADVICE}"
        )
    return _flatten(loaded, "", 0)


def _flatten(mapping: Mapping[object, object], prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in mapping.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth < MAX_DEPTH:
            yield from _flatten(value, f"{prefix}{key}.", depth + 1)


def _lazy(file: SourceFile, key: str, tensor: torch.Tensor, storages: Mapping[int, Storage]) -> StridedTensor:
    where = f"{file.path}: {key}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where}: expected a dense tensor of a plain type, found {dtype}; {ADVICE}")
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    if 0 in shape:
        return StridedTensor(file, key, shape, row_major(shape), dtype, 0)
    storage = storages.get(getattr(tensor.untyped_storage(), "_checkpoint_offset", None) or -1)
    if storage is None:
        raise CheckpointError(f"{where}: its values are not where the file's directory says; {ADVICE}")
    skipped = int(tensor.storage_offset()) * ITEM_BYTES[dtype]
    view = StridedTensor(file, key, shape, strides, dtype, storage.start + skipped, None)
    whole = strides == row_major(shape) and not skipped and view.span_bytes == storage.size
    if whole:
        view = StridedTensor(file, key, shape, strides, dtype, storage.start, storage.checksum)
    return checked_view(view, skipped, storage.size)

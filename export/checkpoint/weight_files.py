"""Find the weights of a checkpoint folder, whatever they are called.

In: a folder, or one weight file. Out: tensors by name and the files they come from. safetensors is preferred; torch
files are opened only when there is nothing else. Does not know: models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.safetensors_reader import INDEX_SUFFIX, read_safetensors, read_sharded
from voxedge.export.checkpoint.tensors import LazyTensor

STEMS = ("model", "diffusion_pytorch_model")
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of one checkpoint folder."""

    tensors: dict[str, LazyTensor]
    """Tensors by the names that the files give them."""
    files: tuple[Path, ...]
    """The files that were read."""


def open_weights(location: Path) -> Weights:
    """Open the weights at a path.

    Args:
        location: a folder with `model.safetensors`, `diffusion_pytorch_model.safetensors`, an index of shards, or one
            torch file; or such a file.

    Raises:
        MissingResourceError: nothing is there.
        CheckpointError: the files are damaged, or several could be meant.
    """
    if not location.exists():
        raise MissingResourceError(f"{location}: no such folder or file; check the path of the checkpoint")
    if not location.is_dir():
        return _open_file(location)
    for stem in STEMS:
        for name in (f"{stem}.safetensors", f"{stem}{INDEX_SUFFIX}"):
            if (location / name).exists():
                return _open_file(location / name)
    return _open_file(_only_candidate(location))


def _only_candidate(folder: Path) -> Path:
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.stem != "conditioner")
        if len(found) > 1:
            raise CheckpointError(
                f"{folder}: expected one weight file, found {', '.join(path.name for path in found[:12])}; "
                "keep one of them, or name it model.safetensors"
            )
        if found:
            return found[0]
    raise MissingResourceError(f"{folder}: expected model.safetensors or another weight file, found none")


def _open_file(path: Path) -> Weights:
    if path.name.endswith(INDEX_SUFFIX):
        tensors, files = read_sharded(path)
        return Weights(tensors, (path, *files))
    if path.suffix == ".safetensors":
        return Weights(read_safetensors(path), (path,))
    if path.suffix in TORCH_SUFFIXES:
        from voxedge.export.checkpoint.torch_reader import read_torch  # torch is loaded only for torch files

        return Weights(read_torch(path), (path,))
    raise CheckpointError(
        f"{path}: expected .safetensors or one of {', '.join(TORCH_SUFFIXES)}; convert the file first"
    )

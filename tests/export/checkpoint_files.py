"""Helpers that copy golden checkpoints and damage the copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from voxedge.export.checkpoint.qwen3 import LanguageModel
from voxedge.export.checkpoint.tensors import LazyTensor, materialise

Golden = Callable[[str], Path]
Arrays = dict[str, Any]


def weights_file(folder: Path) -> Path:
    """The one weight file of a folder."""
    return next(path for path in folder.glob("*.safetensors") if path.stem != "conditioner")


def config_file(folder: Path) -> Path:
    """The configuration of a folder, in either spelling."""
    return next(path for path in (folder / "model_config.json", folder / "config.json") if path.exists())


def edit(folder: Path, path: str, value: object, name: str | None = None) -> None:
    """Set one field of a configuration; dots address nested objects and list entries, None removes the field."""
    file = folder / name if name else config_file(folder)
    config = json.loads(file.read_text())
    *parents, leaf = path.split(".")
    target = config
    for parent in parents:
        target = target[int(parent)] if parent.isdigit() else target.setdefault(parent, {})
    target.pop(leaf, None) if value is None else target.__setitem__(leaf, value)
    file.write_text(json.dumps(config))


def rewrite(folder: Path, change: Callable[[Arrays], Arrays]) -> None:
    """Replace the weights by what a function makes of them."""
    save_file(change(load_file(weights_file(folder))), weights_file(folder))


def assert_identical(left: dict[str, LazyTensor], right: dict[str, LazyTensor]) -> None:
    """Same names in the same order, same values bit for bit, for blocks of any size."""
    assert list(left) == list(right)
    for key, tensor in left.items():
        np.testing.assert_array_equal(materialise(tensor), materialise(right[key], 200), err_msg=key)


def assert_same_expert(left: LanguageModel, right: LanguageModel) -> None:
    """Bit for bit; matrices of rows only as far as both have them (one layout overwrites padding rows)."""
    assert list(left.tensors) == list(right.tensors)
    for key, tensor in left.tensors.items():
        a, b = materialise(tensor), materialise(right.tensors[key], 500)
        rows = min(len(a), len(b)) if key in ("embed_tokens.weight", "lm_head.weight") else None
        np.testing.assert_array_equal(a[:rows], b[:rows])

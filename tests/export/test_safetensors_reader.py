"""safetensors files as hostile input: whatever is in them, the result is the right values or a CheckpointError."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.keys import select
from voxedge.export.checkpoint.safetensors_reader import read_safetensors, read_sharded
from voxedge.export.checkpoint.tensors import materialise
from voxedge.export.checkpoint.weight_files import open_weights

ARRAYS: dict[str, Any] = {
    "first.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.safetensors"
    save_file(ARRAYS, target, {"format": "pt"})
    return target


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_official_writer_wrote(path: Path) -> None:
    tensors = read_safetensors(path)
    assert set(tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].name == f"model.safetensors: {name}"
        values = materialise(tensors[name], 8)
        assert values.dtype == array.dtype
        np.testing.assert_array_equal(values, array)


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool"])
def test_other_types(tmp_path: Path, dtype: str) -> None:
    array = np.array([[0, 1], [1, 100]]).astype(dtype)
    save_file({"a": array}, tmp_path / "a.safetensors")
    tensor = read_safetensors(tmp_path / "a.safetensors")["a"]
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(materialise(tensor, 3), array)


def test_bfloat16_becomes_exactly_the_same_float32(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC049, 0x0001, 0x7F7F, 0x8000], "<u2")
    target = raw_file(tmp_path / "a.safetensors", {"a": entry("BF16", [5], [0, 10])}, bits.tobytes())
    tensor = read_safetensors(target)["a"]
    assert tensor.dtype == "bfloat16"
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(materialise(tensor), expected)


def test_rows_of_a_file(path: Path) -> None:
    rows = read_safetensors(path)["first.weight"].rows(1, 3)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(materialise(rows, 4), ARRAYS["first.weight"][1:3])


def test_every_truncation_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_safetensors(path)


def test_every_flipped_header_bit_is_harmless_or_refused(path: Path) -> None:
    """A flip may rename a tensor; the model's own list of names refuses that, so it is part of the reading here."""
    content = bytearray(path.read_bytes())
    expected = {name: array.shape for name, array in ARRAYS.items()}
    refused = 0
    for position in range(8 + int.from_bytes(content[:8], "little")):
        for bit in range(8):
            content[position] ^= 1 << bit
            path.write_bytes(content)
            content[position] ^= 1 << bit
            try:
                tensors = select(read_safetensors(path), expected, "test")
            except CheckpointError:
                refused += 1
                continue
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(materialise(tensors[name]), array)
    assert refused > 1000  # the test reaches the checks


BAD_HEADERS: dict[str, object] = {
    "unknown type": {"a": entry("F8_E4M3", [8])},
    "type of another kind": {"a": entry(["F32"])},  # type: ignore[arg-type]
    "negative length": {"a": entry(shape=[-2])},
    "fractional length": {"a": entry(shape=[2.0])},
    "boolean length": {"a": entry(shape=[True, 2])},
    "giant length": {"a": entry(shape=[2**70])},
    "product beyond the file": {"a": entry(shape=[2**40, 2**40], offsets=[0, 2**82])},
    "zero times giant": {"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0]), "b": entry()},
    "too many axes": {"a": entry(shape=[1] * 63 + [2])},
    "offsets reversed": {"a": entry(offsets=[8, 0])},
    "three offsets": {"a": entry(offsets=[0, 8, 8])},
    "offset beyond the file": {"a": entry(offsets=[0, 16], shape=[4])},
    "size and shape differ": {"a": entry(shape=[3])},
    "overlap": {"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[1], offsets=[0, 4])},
    "hole": {"a": entry(shape=[1], offsets=[4, 8])},
    "remainder": {"a": entry(shape=[1], offsets=[0, 4])},
    "no tensors but data": {},
    "missing field": {"a": {"dtype": "F32", "shape": [2]}},
    "extra field": {"a": {**entry(), "stride": [1]}},
    "entry is a list": {"a": []},
    "metadata not texts": {"__metadata__": {"a": 1}, "a": entry()},
    "not an object": [1, 2],
    "duplicate keys": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                      b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "duplicate fields": b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}',
    "not utf-8": b'{"\xff":1}',
    "not json": b"{a}",
    "NaN": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "deeply nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge number": b'{"a":{"dtype":"F32","shape":[' + b"9" * 6000 + b'],"data_offsets":[0,8]}}',
    "leading space": b' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "empty header": b"",
}  # fmt: skip


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_bad_headers_are_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        read_safetensors(raw_file(tmp_path / "bad.safetensors", header, bytes(8)))


@pytest.mark.parametrize("length", [0, 1, 7, 100, 10**8 + 1, 2**63, 2**64 - 1])
def test_bad_header_lengths_are_refused_before_allocation(tmp_path: Path, length: int) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"a":1}')
    with pytest.raises(CheckpointError):
        read_safetensors(path)


def test_empty_file_folder_and_absent_file(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError, match="0 bytes"):
        read_safetensors(tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="expected a file"):
        read_safetensors(tmp_path)
    with pytest.raises(MissingResourceError, match=r"gone\.safetensors"):
        read_safetensors(tmp_path / "gone.safetensors")


def test_a_pipe_is_refused_instead_of_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="expected a file"):
        read_safetensors(tmp_path / "pipe.safetensors")


def test_a_file_that_shrinks_while_it_is_read(path: Path) -> None:
    tensor = read_safetensors(path)["first.weight"]
    os.truncate(path, path.stat().st_size - 60)
    with pytest.raises(CheckpointError, match="cut off"):
        materialise(tensor)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": ARRAYS["half"]}, tmp_path / "model-1.safetensors")
    save_file({"b": ARRAYS["first.weight"]}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    return index


def test_shards_are_joined(sharded: Path) -> None:
    weights = open_weights(sharded.parent)
    assert [file.name for file in weights.files] == [sharded.name, "model-1.safetensors", "model-2.safetensors"]
    np.testing.assert_array_equal(materialise(weights.tensors["b"]), ARRAYS["first.weight"])


def test_missing_shards_are_all_named(sharded: Path) -> None:
    for number in (1, 2):
        (sharded.parent / f"model-{number}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors, model-2\.safetensors"):
        read_sharded(sharded)


@pytest.mark.parametrize(
    "name", ["../model-1.safetensors", "/etc/passwd", "sub/x", "..", "", "a\\b", "x" * 300, 3, None, ["x"]]
)
def test_shards_outside_the_folder_are_refused(sharded: Path, name: object) -> None:
    sharded.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="'a'"):
        read_sharded(sharded)


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": "model-1.safetensors", "c": "model-1.safetensors", "b": "model-2.safetensors"}]
)
def test_index_that_does_not_fit_its_shards(sharded: Path, weight_map: object) -> None:
    sharded.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError):
        read_sharded(sharded)


def test_a_shard_with_tensors_that_the_index_lacks(sharded: Path) -> None:
    save_file({"a": ARRAYS["half"], "extra": ARRAYS["half"]}, sharded.parent / "model-1.safetensors")
    with pytest.raises(CheckpointError, match="extra"):
        read_sharded(sharded)


def test_folders_without_or_with_several_candidates(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"model\.safetensors"):
        open_weights(tmp_path)
    for name in ("one", "two"):
        save_file({"a": ARRAYS["half"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors, two\.safetensors"):
        open_weights(tmp_path)
    with pytest.raises(MissingResourceError, match="nowhere"):
        open_weights(tmp_path / "nowhere")
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(CheckpointError, match="convert"):
        open_weights(tmp_path / "weights.gguf")


def test_golden_shards_equal_the_official_reader(golden: Callable[[str], Path]) -> None:
    folder = golden("qwen3_lm_untied") / "checkpoint"
    expected = {key: array for shard in folder.glob("*.safetensors") for key, array in load_file(shard).items()}
    tensors = open_weights(folder).tensors
    assert set(tensors) == set(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(materialise(tensors[key], 1000), array)

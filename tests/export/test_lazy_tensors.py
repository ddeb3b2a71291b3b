"""Blocks of lazy tensors: they tile, stay small, and wrappers give what numpy gives."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.rearrange import Reshaped, Rows, Stacked, Transposed
from voxedge.export.checkpoint.tensors import InMemory, LazyTensor, block_indices, checked_blocks, materialise
from voxedge.export.checkpoint.transforms import Elementwise, WeightNorm

SHAPES = [(), (1,), (7,), (5, 3), (4, 1, 6), (2, 3, 5, 2), (0, 4), (3, 0)]


def numbered(*shape: int) -> InMemory:
    return InMemory("numbered", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("max_bytes", [1, 4, 9, 16, 60, 10_000])
def test_blocks_tile_the_tensor_within_the_limit(shape: tuple[int, ...], max_bytes: int) -> None:
    seen = np.zeros(shape, int)
    for index in block_indices(shape, 4, max_bytes):
        seen[index] += 1
        assert seen[index].size * 4 <= max(max_bytes, 4)
    assert (seen == 1).all()


def test_few_blocks_are_given_when_many_would_do() -> None:
    assert len(list(block_indices((100, 100), 4, 4000))) == 10
    assert len(list(block_indices((2, 1000), 4, 2000))) == 4


@pytest.mark.parametrize("max_bytes", [4, 20, 10_000])
def test_wrappers_agree_with_numpy(max_bytes: int) -> None:
    matrix, other = numbered(6, 5), numbered(2, 5)
    a, b = matrix.array, other.array
    pairs: list[tuple[LazyTensor, object]] = [
        (Transposed(matrix), a.T),
        (Rows(matrix, 2, 5), a[2:5]),
        (Rows(Rows(matrix, 1, 6), 1, 3), a[2:4]),
        (Rows(Transposed(matrix), 1, 4), a.T[1:4]),
        (Stacked((matrix, other, matrix)), np.concatenate([a, b, a])),
        (Transposed(Stacked((matrix, other))), np.concatenate([a, b]).T),
        (Reshaped(matrix, (1, 6, 1, 5)), a.reshape(1, 6, 1, 5)),
        (Reshaped(Transposed(matrix), (5, 1, 6)), a.T.reshape(5, 1, 6)),
        (Elementwise(matrix, np.exp2, "exp2", "float64"), np.exp2(a)),
    ]
    for tensor, expected in pairs:
        assert tensor.shape == np.shape(expected)
        np.testing.assert_array_equal(materialise(tensor, max_bytes), expected)


def test_rows_of_a_file_tensor_do_not_read_the_rest() -> None:
    """The speech rows of a merged embedding must not cost a pass over the text rows."""
    bad = numbered(4, 3)
    bad.array[:2] = np.nan
    assert np.isfinite(materialise(Rows(bad, 2, 4))).all()


@pytest.mark.parametrize("shape", [(4, 3, 5), (3, 4, 6)])  # convolution; transposed convolution, inputs first
@pytest.mark.parametrize("max_bytes", [8, 100, 10_000])
def test_weight_norm_follows_its_definition_in_float64(shape: tuple[int, ...], max_bytes: int) -> None:
    rng = np.random.default_rng(3)
    gain = rng.normal(size=(shape[0], 1, 1)).astype(np.float32)
    direction = rng.normal(size=shape).astype(np.float32)
    exact = gain.astype(np.float64) * direction
    exact /= np.sqrt((direction.astype(np.float64) ** 2).sum(axis=(1, 2), keepdims=True))
    folded = materialise(WeightNorm(InMemory("g", gain), InMemory("v", direction)), max_bytes)
    assert folded.dtype == np.float32
    # float64 sums differ by summation order only, so the float32 results differ by at most one unit in the last place
    np.testing.assert_array_max_ulp(folded, exact.astype(np.float32), maxulp=1)


def test_wrappers_refuse_what_they_cannot_do() -> None:
    matrix = numbered(6, 5)
    for make in (
        lambda: Transposed(numbered(2, 2, 2)),
        lambda: Rows(matrix, 3, 7),
        lambda: Rows(matrix, 3, 3),
        lambda: Stacked((matrix, numbered(2, 4))),
        lambda: Reshaped(matrix, (5, 6)),
        lambda: Reshaped(matrix, (30,)),
        lambda: WeightNorm(numbered(5, 1), numbered(6, 5)),
        lambda: WeightNorm(numbered(1, 5), matrix),
    ):
        with pytest.raises(CheckpointError, match="numbered"):
            make()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_named(value: float, dtype: type) -> None:
    array = np.ones((10, 10), dtype)
    array[9, 9] = value
    with pytest.raises(CheckpointError, match="layer 7"):
        list(checked_blocks(InMemory("layer 7", array), 64))


def test_zero_direction_of_weight_norm_is_named() -> None:
    with pytest.raises(CheckpointError, match="numbered"):
        materialise(WeightNorm(InMemory("g", np.ones((2, 1), np.float32)), numbered(2, 1)))


def test_blocks_that_miss_a_part_are_noticed() -> None:
    class Short(InMemory):
        def blocks(self, max_bytes: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
            return itertools.islice(super().blocks(max_bytes), 1)

    with pytest.raises(CheckpointError, match="expected 30 values, read 5"):
        list(checked_blocks(Short("short", numbered(6, 5).array), 20))


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from voxedge.export.checkpoint.safetensors_reader import read_safetensors
from voxedge.export.checkpoint.tensors import checked_blocks
from voxedge.export.checkpoint.rearrange import Stacked, Transposed
tensors = read_safetensors(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index, values in checked_blocks(Transposed(Stacked((tensors["a"], tensors["a"]))), 2**22):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded_by_the_block_not_by_the_tensor(tmp_path: Path) -> None:
    rows = 64 * 1024
    header = f'{{"a":{{"dtype":"F32","shape":[{rows},1024],"data_offsets":[0,{rows * 4096}]}}}}'.encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:  # a sparse file of 256 MiB
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 4096)
    run = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # 4 MiB blocks, at most two alive at once, and the mask of the finiteness check: 9 MiB; the file has 256 MiB
    assert int(run.stdout) * 1024 < 32 * 2**20

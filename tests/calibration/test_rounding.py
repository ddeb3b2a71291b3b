"""Rounded weights against plain numpy: bounds, packing, and blocks that come in any order and size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from voxedge.calibration.quantise.rounding import Grid, Rounded, Scales
from voxedge.engines.data_file import ALIGNMENT, BLOCK_BYTES, SMALL_ALIGNMENT, lay_out, stored_bytes, write_data
from voxedge.engines.lazy import Array, Block, InMemory, block_indices, materialise


@dataclass
class Columns:
    """A matrix that arrives in blocks of columns, as a transposed checkpoint does; remembers the largest block."""

    array: Array
    step: int
    largest: int = 0

    name = "columns"
    dtype = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.array.shape

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """`step` columns each."""
        rows, columns = self.array.shape
        for start in range(0, columns, self.step):
            part = slice(start, min(start + self.step, columns))
            self.largest = max(self.largest, self.array[:, part].nbytes)
            yield (slice(0, rows), part), self.array[:, part]


def weights(shape: tuple[int, ...]) -> Array:
    values = np.random.default_rng(1).standard_normal(shape, np.float32)
    values.reshape(shape[0], -1)[0] *= 40.0  # one large row: a scale that another one must not share
    values.reshape(shape[0], -1)[:, -1] = 0.0
    return values


GRIDS = [
    (Grid(axis=0, block=16, bits=4), (64, 10)),
    (Grid(axis=0, block=32, bits=8), (64, 7)),
    (Grid(axis=1, block=None, bits=8), (33, 8)),
    (Grid(axis=0, block=None, bits=8), (6, 5, 3)),
    (Grid(axis=1, block=None, bits=8), (6, 5, 3)),
    (Grid(axis=1, block=9, bits=8), (11, 9)),
]


def spread(scales: Array, grid: Grid, shape: tuple[int, ...]) -> Array:
    """Scales in the shape of the weight, written down once more."""
    if grid.block is not None:
        return np.repeat(scales, grid.block, grid.axis)[: shape[0], : shape[1]]
    return np.broadcast_to(scales.reshape([-1 if axis == grid.axis else 1 for axis in range(len(shape))]), shape)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("grid", "shape"), GRIDS)
def test_every_weight_is_within_half_a_step(grid: Grid, shape: tuple[int, ...], dtype: str) -> None:
    values = weights(shape)
    scales = Scales(InMemory("w", values), grid, dtype)
    found, integers = materialise(scales), materialise(Rounded(scales))
    assert found.dtype == dtype
    assert found.shape == grid.scale_shape(shape)
    step = spread(found.astype(np.float64), grid, shape)
    assert grid.low <= integers.min() <= integers.max() <= grid.high
    # Half a step by the choice of the scale; the quotient and the scale are rounded to FP32, 2 ** -23 of the product.
    assert np.all(np.abs(values - step * integers) <= step / 2 + np.abs(values) * 2.0**-22)


@pytest.mark.parametrize(("grid", "shape"), [case for case in GRIDS if len(case[1]) == 2])
def test_blocks_of_any_kind_give_the_same(grid: Grid, shape: tuple[int, ...]) -> None:
    values = weights(shape)
    whole = Scales(InMemory("w", values), grid, "float32")
    by_rows = Scales(InMemory("w", values), grid, "float32")
    by_columns = Scales(Columns(values, 3), grid, "float32")
    for other in (by_rows, by_columns):
        np.testing.assert_array_equal(materialise(other, 100), materialise(whole))
        np.testing.assert_array_equal(materialise(Rounded(other), 100), materialise(Rounded(whole)))


def test_zeros_stay_zeros() -> None:
    scales = Scales(InMemory("w", np.zeros((32, 4), np.float32)), Grid(0, 16, 4), "float16")
    np.testing.assert_array_equal(materialise(scales), 1.0)
    np.testing.assert_array_equal(materialise(Rounded(scales)), 0)


def test_tiny_weights_keep_a_scale() -> None:
    """What FP16 would round to zero is rounded up to its smallest number instead."""
    scales = Scales(InMemory("w", np.full((32, 2), 1e-9, np.float32)), Grid(0, 16, 8), "float16")
    assert materialise(scales).min() > 0
    np.testing.assert_array_equal(materialise(Rounded(scales)), 0)


def test_small_tensors_share_a_page_and_large_ones_begin_one() -> None:
    sizes = {"a": 1, "b": 17, "page": ALIGNMENT // 4, "c": 3, "large": 5000, "d": 1}
    tensors = {name: (InMemory(name, np.zeros(size, np.float32)), "float32") for name, size in sizes.items()}
    slots = lay_out(tensors)
    offsets = [slots[name].offset for name in sizes]
    assert offsets == [0, 64, 4096, 8192, 12288, 12288 + 20_032]  # 20 000 bytes, up to the next cache line
    assert all(slot.offset % (ALIGNMENT if slot.size >= ALIGNMENT else SMALL_ALIGNMENT) == 0 for slot in slots.values())


@pytest.mark.parametrize("step", [3, 4, 10])
@pytest.mark.parametrize("shape", [(6, 10), (5, 7), (1, 1)])
def test_nibbles_are_packed_as_onnx_packs_them(shape: tuple[int, int], step: int, tmp_path: Path) -> None:
    """Two to a byte in row-major order, the first in the low half (onnx.proto); also where two blocks share a byte."""
    integers = np.random.default_rng(2).integers(-8, 8, shape).astype(np.int8)
    source = Columns(integers, step)
    source.dtype = "int8"
    slots = lay_out({"first": (InMemory("one", np.ones(3, np.float32)), "float32"), "w": (source, "int4")})
    write_data(tmp_path / "data", slots, lambda count: None)
    assert slots["w"].offset == SMALL_ALIGNMENT
    data = np.fromfile(tmp_path / "data", np.uint8)[SMALL_ALIGNMENT:]
    flat = np.append(integers.reshape(-1), np.zeros(integers.size % 2, np.int8)).view(np.uint8) & 15
    np.testing.assert_array_equal(data, flat[0::2] | (flat[1::2] << 4))
    assert len(data) == stored_bytes(shape, "int4")


class Endless:
    """A matrix that is nowhere: every block is made when it is read, as a file's would be."""

    name = "endless"
    dtype = "float32"

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Rows, as a file has them."""
        for index in block_indices(self.shape, 4, max_bytes):
            rows, columns = (part.stop - part.start for part in index)
            yield index, np.full((rows, columns), 0.5, np.float32)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """256 MB of weights: rounding holds a few copies of one block (8 MB), and the scales of one tensor."""
    scales = Scales(Endless(8192, 8192), Grid(axis=0, block=64, bits=4), "float32")
    slots = lay_out({"scale": (scales, "float32"), "w": (Rounded(scales), "int4")})
    tracemalloc.start()
    write_data(tmp_path / "data", slots, lambda count: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (tmp_path / "data").unlink()
    assert peak < 8 * BLOCK_BYTES + 4 * slots["scale"].size < slots["w"].source.shape[0] * 8192 * 4 / 2

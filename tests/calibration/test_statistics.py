"""Statistics: what a stream of arrays adds up to, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from voxedge.calibration.accumulate import TensorAccumulator
from voxedge.calibration.statistics import BINS, SAMPLE_ROWS, Provenance, Statistics, TensorStatistics
from voxedge.engines.errors import InferenceError, InputError, MissingResourceError

PROVENANCE = Provenance("0" * 64, "default", "1" * 64, 3, 0, 250, "0.1", "1.22")


def stream(seed: int = 0) -> list[np.ndarray]:
    """Calls of unequal length and growing range, [1, n, 5]."""
    random = np.random.default_rng(seed)
    return [
        (scale * random.standard_normal((1, count, 5))).astype(np.float32)
        for count, scale in ((3, 0.01), (200, 1.0), (1, 0.0), (61, 30.0), (0, 1.0))
    ]


def accumulated(calls: list[np.ndarray], axis: int = -1) -> TensorStatistics:
    accumulator = TensorAccumulator(axis)
    for call in calls:
        accumulator.add(call)
    found = accumulator.finish()
    assert found is not None
    return found


def test_figures_are_those_of_all_calls_at_once() -> None:
    found, everything = accumulated(stream()), np.concatenate(stream(), axis=1)[0]  # [n, 5]
    assert (found.minimum, found.maximum, found.count) == (everything.min(), everything.max(), everything.size)
    np.testing.assert_array_equal(found.channel_max, np.abs(everything).max(axis=0))
    np.testing.assert_allclose(found.channel_mean, np.abs(everything).mean(axis=0), rtol=1e-6)  # FP32 rounding of FP64
    assert found.limit / 2 <= found.largest < found.limit
    # Bins that merged in pairs count exactly what bins of the final width would have counted.
    counts, _ = np.histogram(np.abs(everything.astype(np.float64)), BINS, (0, found.limit))
    np.testing.assert_array_equal(found.counts, counts)


def test_samples_are_an_even_draw_of_whole_rows() -> None:
    rows = np.arange(10_000, dtype=np.float32)[:, None] / np.float32(8)  # exact in FP16 up to 256
    found = accumulated([rows[:1], rows[1:4000], rows[4000:]])
    assert found.samples.shape == (SAMPLE_ROWS, 1)
    drawn = np.unique(found.samples)
    assert len(drawn) > 0.9 * SAMPLE_ROWS  # few rows collide in FP16
    # 128 draws without replacement: their mean is within 5 sigma of the whole's, which fails once in a million draws.
    sigma = rows.std() / np.sqrt(SAMPLE_ROWS)
    assert abs(found.samples.astype(np.float64).mean() - rows.mean()) < 5 * sigma


def test_how_calls_are_cut_does_not_matter() -> None:
    everything = np.concatenate(stream(), axis=1)
    one, many = accumulated([everything]), accumulated([everything[:, i : i + 7] for i in range(0, 265, 7)])
    for field in dataclasses.fields(one):
        if field.name != "channel_mean":  # a sum in another order
            np.testing.assert_array_equal(getattr(one, field.name), getattr(many, field.name))


def test_a_stream_goes_on_from_its_state() -> None:
    calls = stream()
    accumulator = TensorAccumulator(-1)
    for call in calls:
        accumulator.add(call)
        accumulator = TensorAccumulator(-1, accumulator.state())
    whole, found = accumulated(calls), accumulator.finish()
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(found, field.name))


def test_channels_of_a_convolution_lie_on_axis_1() -> None:
    signal = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32)  # [B, C, T]
    np.testing.assert_array_equal(accumulated([signal], axis=1).channel_max, np.abs(signal).max(axis=(0, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InferenceError, match="finite"):
        TensorAccumulator(-1).add(np.array([[1.0, bad]], np.float32))


def test_nothing_seen_gives_nothing() -> None:
    assert TensorAccumulator(-1).finish() is None


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    tensors = {("dit", "/Add:0"): accumulated(stream(1)), ("vae|x", "/Conv:0"): accumulated(stream(2))}
    Statistics.of(PROVENANCE, tensors).save(tmp_path / "s.safetensors")
    found = Statistics.load(tmp_path / "s.safetensors")
    assert found.provenance == PROVENANCE
    assert found.keys == tuple(tensors)
    for key, expected in tensors.items():
        tensor = found.tensor(*key)
        for field in dataclasses.fields(TensorStatistics):
            np.testing.assert_array_equal(getattr(tensor, field.name), getattr(expected, field.name))
    assert found.tensor("dit", "/Conv:0") is None


def test_a_file_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="voxedge calibrate"):
        Statistics.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="expected statistics"):
        Statistics.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 99, "format_version 99"),
        (("provenance", "seed"), "0", "seed"),
        (("tensors",), {}, "format_version"),
        (("tensors", 0, "count"), None, "count"),
        (("extra",), 1, "extra"),
    ],
)
def test_a_wrong_description_is_refused(
    path: tuple[str | int, ...], value: object, message: str, tmp_path: Path
) -> None:
    edit(tmp_path, path, value)
    with pytest.raises(InputError, match=message):
        Statistics.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(("name", "value"), [("count", 3), ("limit", 0.5), ("minimum", 1e9)])
def test_figures_that_contradict_each_other_are_refused(name: str, value: object, tmp_path: Path) -> None:
    edit(tmp_path, ("tensors", 0, name), value)
    with pytest.raises(InputError, match="damaged"):
        Statistics.load(tmp_path / "s.safetensors").tensor("dit", "/Add:0")


def edit(folder: Path, path: tuple[str | int, ...], value: object) -> None:
    """Save statistics whose description has one other value."""
    file = folder / "s.safetensors"
    Statistics.of(PROVENANCE, {("dit", "/Add:0"): accumulated(stream())}).save(file)
    size = int.from_bytes(file.read_bytes()[:8], "little")
    text = json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]["statistics"]
    described = place = json.loads(text)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    save_file(load_file(file), file, {"statistics": json.dumps(described)})

"""Chunked decoding against whole decoding, with a small decoder of the real structure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from voxedge.engines.errors import ConfigError
from voxedge.runtime.latents import ChunkedDecoder, decoded_length, nearest_indices, receptive_margin

Array = npt.NDArray[np.float32]
CHANNELS = 2


class SmallDecoder:
    """An Oobleck decoder of two channels: convolutions, transposed convolutions, residual units, sines.

    Sums over taps run in a fixed order, so that an output has the same bits wherever its window starts.
    """

    def __init__(self, strides: Sequence[int], seed: int = 0) -> None:
        self.strides = strides
        self.rng = np.random.default_rng(seed)
        self.weights: dict[str, Array] = {}
        self.largest = 0

    def __call__(self, latents: Array) -> Array:
        """Samples [CHANNELS, ...] of latents [CHANNELS, N]."""
        self.largest = max(self.largest, latents.shape[-1])
        x = self._convolve(latents, "first", 7, 1)
        for block, stride in enumerate(reversed(self.strides)):
            x = self._transpose(np.sin(x) + x, f"{block}.up", stride)
            for dilation in (1, 3, 9):
                x = x + self._convolve(np.sin(x) + x, f"{block}.{dilation}", 7, dilation)
        return self._convolve(x, "last", 7, 1)

    def _weight(self, name: str, taps: int) -> Array:
        if name not in self.weights:
            # Positive and around the inverse of the taps: nothing grows, and no tap hides behind another.
            self.weights[name] = (self.rng.uniform(0.2, 1.0, (taps, CHANNELS, CHANNELS)) / taps).astype(np.float32)
        return self.weights[name]

    def _convolve(self, x: Array, name: str, taps: int, dilation: int) -> Array:
        weight, reach = self._weight(name, taps), (taps // 2) * dilation
        padded = np.pad(x, ((0, 0), (reach, reach)))
        y = np.zeros_like(x)
        for tap in range(taps):
            y += mix(weight[tap], padded[:, tap * dilation : tap * dilation + x.shape[1]])
        return y

    def _transpose(self, x: Array, name: str, stride: int) -> Array:
        weight, padding = self._weight(name, 2 * stride), math.ceil(stride / 2)
        y = np.zeros((CHANNELS, (x.shape[1] + 1) * stride), dtype=np.float32)
        for tap in range(2 * stride):
            y[:, tap : tap + x.shape[1] * stride : stride] += mix(weight[tap], x)
        return y[:, padding : y.shape[1] - padding]


def mix(matrix: Array, x: Array) -> Array:
    return np.stack([sum(matrix[row, column] * x[column] for column in range(CHANNELS)) for row in range(CHANNELS)])


def latents_of(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((CHANNELS, count)).astype(np.float32)


def decode_in_pushes(decoder: ChunkedDecoder, latents: Array, sizes: Sequence[int]) -> list[Array]:
    edges = np.cumsum([0, *sizes])
    assert edges[-1] == latents.shape[1]
    last = len(sizes) - 1
    return [decoder.push(latents[:, edges[i] : edges[i + 1]], final=i == last) for i in range(len(sizes))]


@pytest.mark.parametrize(
    ("strides", "margin"),
    [
        ([2, 2, 4, 6, 10], (9, 9)),
        ([4, 4, 6, 10], (9, 9)),
        ([2, 4, 12, 10], (8, 8)),
        ([2, 3, 4, 5, 8], (10, 10)),
        ([2, 4, 4, 5, 6], (12, 12)),
        ([2, 4, 4, 8, 8], (10, 10)),
    ],
)
def test_margins_of_known_decoders(strides: list[int], margin: tuple[int, int]) -> None:
    assert receptive_margin(strides) == margin


@pytest.mark.parametrize("strides", [[2, 2, 4], [2, 3], [3, 5], [4, 2, 3], [2, 4, 4]])
def test_margins_cover_what_impulses_show_and_little_more(strides: list[int]) -> None:
    decoder, hop = SmallDecoder(strides), math.prod(strides)
    left, right = receptive_margin(strides)
    middle, count = 40, 81
    base = latents_of(count)
    reached = []
    for place in range(count):
        changed = base.copy()
        changed[:, place] += 1.0
        window = slice(middle * hop, (middle + 1) * hop)  # the samples that belong to the middle latent
        if (decoder(changed)[:, window] != decoder(base)[:, window]).any():
            reached.append(place)
    assert middle - left <= reached[0] <= middle - left + 1
    assert middle + right - 1 <= reached[-1] <= middle + right


@pytest.mark.parametrize("strides", [[2, 2, 4], [2, 3, 2], [3, 5], [5, 4, 3]])
def test_decoded_length_is_the_decoders(strides: list[int]) -> None:
    for count in (1, 2, 9):
        assert SmallDecoder(strides)(latents_of(count)).shape[1] == decoded_length(count, strides)
    assert decoded_length(0, strides) == 0


@pytest.mark.parametrize("name", ["oobleck", "oobleck_odd"])
def test_decoded_length_equals_the_recorded_one(golden: Callable[[str], Path], name: str) -> None:
    folder = golden(name)
    decoder = json.loads((folder / "checkpoint" / "model_config.json").read_text())["model"]["decoder"]
    strides = decoder["config"]["strides"]
    with np.load(folder / "io.npz") as recorded:
        for key in ("1", "2", "3"):
            assert decoded_length(recorded[f"z_{key}"].shape[-1], strides) == recorded[f"audio_{key}"].shape[-1]


@pytest.mark.parametrize("strides", [[2, 2, 4], [2, 3], [3, 5], [4, 2, 3]])
@pytest.mark.parametrize("chunk", [1, 7, 30, 500])
@pytest.mark.parametrize("pushes", ["one", "single", "ragged"])
def test_pieces_equal_the_whole_bit_for_bit(strides: list[int], chunk: int, pushes: str) -> None:
    latents = latents_of(64)
    sizes = {"one": [64], "single": [1] * 64, "ragged": [0, 30, 1, 0, 2, 27, 4, 0]}[pushes]
    small = SmallDecoder(strides)
    whole = small(latents)
    small.largest = 0
    decoder = ChunkedDecoder(small, strides, chunk, CHANNELS)
    pieces = decode_in_pushes(decoder, latents, sizes)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=-1), whole)
    assert small.largest <= decoder.largest_window


def test_a_smaller_margin_is_not_enough() -> None:
    strides, latents = [2, 2, 4], latents_of(64)
    decoder = ChunkedDecoder(SmallDecoder(strides), strides, 10, CHANNELS)
    decoder.left, decoder.right = decoder.left - 2, decoder.right - 2
    pieces = decode_in_pushes(decoder, latents, [64])
    assert (pieces[0] != SmallDecoder(strides)(latents)).any()


def test_samples_come_as_early_as_the_margin_allows() -> None:
    strides = [2, 2, 4]
    decoder = ChunkedDecoder(SmallDecoder(strides), strides, 5, CHANNELS)
    _, right = receptive_margin(strides)
    latents = latents_of(60)
    given = [decoder.push(latents[:, i : i + 1], final=False).shape[-1] for i in range(60)]
    assert given.index(5 * 16) == 5 + right - 1  # the first chunk waits for its right margin alone
    assert sum(given) == (60 - right) // 5 * 5 * 16


def test_short_utterances_and_empty_ends() -> None:
    strides = [3, 2]
    small = SmallDecoder(strides)
    for count in (1, 2, 3):
        latents = latents_of(count)
        decoder = ChunkedDecoder(small, strides, 8, CHANNELS)
        assert decoder.push(latents, final=False).size == 0
        np.testing.assert_array_equal(decoder.push(latents[:, :0], final=True), small(latents))
    assert ChunkedDecoder(small, strides, 8, CHANNELS).push(latents_of(0), final=True).size == 0


def test_misuse_is_refused() -> None:
    decoder = ChunkedDecoder(SmallDecoder([2, 2]), [2, 2], 4, CHANNELS)
    decoder.push(latents_of(3), final=True)
    with pytest.raises(ConfigError, match="after the final"):
        decoder.push(latents_of(3), final=True)
    with pytest.raises(ConfigError, match=r"strides \(2, 3\)"):
        ChunkedDecoder(SmallDecoder([2, 2]), [2, 3], 4, CHANNELS).push(latents_of(3), final=True)
    with pytest.raises(ConfigError, match="in 1 audio channels, the decoder gave 12 in 2"):
        ChunkedDecoder(SmallDecoder([2, 2]), [2, 2], 4).push(latents_of(3), final=True)
    for strides, chunk in (([], 4), ([0, 2], 4), ([2, 2], 0)):
        with pytest.raises(ConfigError, match="expected"):
            ChunkedDecoder(SmallDecoder([2, 2]), strides, chunk, CHANNELS)


def test_nearest_indices_follow_the_definition() -> None:
    for source, target in ((13, 26), (13, 27), (7, 3), (1, 9), (5, 0)):
        expected = [math.floor(i * source / target) for i in range(target)]
        assert nearest_indices(source, target).tolist() == expected
    with pytest.raises(ConfigError, match="source of 1"):
        nearest_indices(0, 4)


@pytest.mark.parametrize(("name", "length"), [("stable_dit", 26), ("stable_dit", 27), ("stable_dit_adaln", 19)])
def test_nearest_indices_stretch_as_recorded(golden: Callable[[str], Path], name: str, length: int) -> None:
    with np.load(golden(name) / "io.npz") as recorded:
        stretched = recorded["cond"][0][:, nearest_indices(recorded["cond"].shape[-1], length)]
        name = "cond_up" if recorded["cond_up"].shape[-1] == length else "net_odd_cond_up"
        np.testing.assert_array_equal(stretched, recorded[name][0])

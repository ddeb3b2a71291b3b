"""The generator against its definition, written out in Python integers, and against the normal distribution."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest

from voxedge.engines.errors import InputError
from voxedge.runtime.noise import NoiseStream, fresh_seed

MASK = (1 << 64) - 1


def philox_block(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as Salmon et al. 2011 define it, one block of four words."""
    words = [(counter >> (64 * i)) & MASK for i in range(4)]
    low, high = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [
            (second >> 64) ^ words[1] ^ low,
            second & MASK,
            (first >> 64) ^ words[3] ^ high,
            first & MASK,
        ]
        low, high = (low + 0x9E3779B97F4A7C15) & MASK, (high + 0xBB67AE8584CAA73B) & MASK
    return words


def reference_words(seed: int, purpose: str, count: int) -> list[int]:
    key = (seed, int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little"))
    # numpy counts up before it makes a block, so the first block belongs to counter 1.
    blocks = [philox_block(index + 1, key) for index in range(-(-count // 4))]
    return [word for block in blocks for word in block][:count]


def test_uniforms_are_philox_words() -> None:
    stream = NoiseStream(1234567890123, "sampling")
    expected = [(word >> 11) * 2.0**-53 for word in reference_words(1234567890123, "sampling", 600)]
    assert [stream.uniform() for _ in range(600)] == expected


def test_normals_are_the_inverse_distribution_of_the_words() -> None:
    words = reference_words(3, "latents", 4000)
    expected = [NormalDist().inv_cdf(((word >> 12) + 0.5) * 2.0**-52) for word in words]
    # Two float64 evaluations may differ by a few units of 1e-16, so at most the float32 rounding differs: one ulp.
    np.testing.assert_allclose(NoiseStream(3, "latents").normal((4000,)), expected, rtol=1.2e-7, atol=0)


def test_recorded_values_never_change() -> None:
    # Recorded once; a change here means that every seed that users wrote down speaks differently.
    values = NoiseStream(42, "latents").normal((4,))
    assert [value.hex() for value in values.astype(float).tolist()] == [
        "-0x1.0b20f40000000p-4",
        "0x1.6fa1bc0000000p+0",
        "0x1.43e6e00000000p+0",
        "0x1.74e71c0000000p+0",
    ]


def test_any_window_equals_the_whole() -> None:
    stream = NoiseStream(9, "latents")
    whole = stream.normal_frames(0, 100, 7)  # [7, 100], an odd count of channels crosses Philox blocks
    assert whole.dtype == np.float32 and whole.shape == (7, 100)
    for start, stop in ((0, 1), (13, 14), (31, 77), (99, 100), (50, 50)):
        np.testing.assert_array_equal(stream.normal_frames(start, stop, 7), whole[:, start:stop])
    assert stream.position == 0


def test_order_of_drawing_and_random_access_agree() -> None:
    stream = NoiseStream(5, "solver")
    values = stream.normal((2, 3, 4))
    assert stream.position == 24
    np.testing.assert_array_equal(stream.at(9).normal((5,)), values.reshape(-1)[9:14])
    following = stream.uniform()
    assert stream.at(24).uniform() == following
    jumped = stream.at(0)
    jumped.uniform()
    jumped.position = 24  # outside or inside the cached block, a position is a position
    assert jumped.uniform() == following


def test_seed_and_purpose_both_separate_streams() -> None:
    base = NoiseStream(1, "a").normal((1000,))
    for other in (NoiseStream(2, "a"), NoiseStream(1, "b")):
        correlation = float(np.corrcoef(base, other.normal((1000,)))[0, 1])
        assert abs(correlation) < 0.16  # five standard errors of 1 / sqrt(1000)


def test_moments_are_those_of_the_normal_distribution() -> None:
    count = 200_000
    values = NoiseStream(0, "moments").normal((count,)).astype(np.float64)
    # Five standard errors: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
    for power, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float(np.mean(values**power)) - moment) < 5.0 * (spread / count) ** 0.5


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=r"0 \.\. 2\*\*64 - 1"):
        NoiseStream(seed, "x")


def test_frames_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="start <= stop"):
        NoiseStream(0, "x").normal_frames(4, 3, 2)


def test_fresh_seeds_fit_32_bits_and_differ() -> None:
    seeds = {fresh_seed() for _ in range(8)}
    assert len(seeds) > 1 and all(0 <= seed < 1 << 32 for seed in seeds)

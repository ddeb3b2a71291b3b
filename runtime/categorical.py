"""Sums, ranks and draws over the ids of a vocabulary, each in time linear in its size and without sorting it.

In: scores or weights, one per id. Out: the best ids, weights in proportion to probability, a drawn id.
Does not know: what an id means, sampling rules, where the uniform number comes from.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_GROUPS_PER_ENTRY = 8  # more groups leave fewer candidates but cost more to select from
_SMALLEST_GROUP = 8
_BLOCK = 256
_SHORT = 1024  # up to here one running sum is as fast as two levels


def largest(scores: Scores, count: int) -> Indices:
    """Indices of the `count` largest scores, in descending order; ties by lower index.

    Exact. Each of many groups gives its maximum; at least `count` scores reach the count-th largest maximum, so only
    scores from there up can belong to the answer, and few others do.

    Args:
        scores: [n], no NaN.
        count: 1 .. n.

    Example:
        >>> largest(np.array([1.0, 5.0, 3.0, 5.0], dtype=np.float32), 3)
        array([1, 3, 2])
    """
    places: Indices = np.flatnonzero(scores >= _threshold(scores, count))
    # Stable: ids ascend within `places`, so equal scores keep the lower id first.
    return places[np.argsort(-scores[places], kind="stable")[:count]]


def exponentials(scores: Scores, temperature: float, out: Weights | None = None) -> Weights:
    """exp((score - largest score) / temperature): weights in proportion to probability, the largest of them 1."""
    with np.errstate(over="ignore"):  # far below the maximum, -inf and a weight of 0 are right
        scaled: Weights = np.subtract(scores, scores.max(), out=out)
        if temperature != 1.0:
            scaled /= np.float32(temperature)
    np.exp(scaled, out=scaled)
    return scaled


def total(weights: Weights) -> float:
    """Sum of the weights, accurate to float32 rounding within a block and float64 across blocks."""
    return float(_block_sums(weights).sum(dtype=np.float64))


def draw(weights: Weights, uniform: float) -> int:
    """Index of the first running sum above `uniform` times the total; never one of weight 0.

    Example:
        >>> draw(np.array([1.0, 0.0, 3.0], dtype=np.float32), 0.25)
        2
    """
    if len(weights) <= _SHORT:
        running = np.cumsum(weights, dtype=np.float64)
        return _first_above(running, uniform * float(running[-1]))
    # A running sum is the one loop here that no processor vectorises: take it over blocks, then within one block.
    blocks = np.cumsum(_block_sums(weights), dtype=np.float64)
    target = uniform * float(blocks[-1])
    block = _first_above(blocks, target)
    before = float(blocks[block - 1]) if block else 0.0
    running = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + _first_above(running, target - before)


def _first_above(running: npt.NDArray[np.float64], target: float) -> int:
    index = int(np.searchsorted(running, target, side="right"))
    if index < len(running):
        return index
    return int(np.searchsorted(running, running[-1], side="left"))  # rounding carried the target up to the total


def _block_sums(weights: Weights) -> Weights:
    sums: Weights = np.add.reduceat(weights, _block_starts(len(weights)))
    return sums


@functools.lru_cache(maxsize=16)
def _block_starts(length: int) -> Indices:
    return np.arange(0, length, _BLOCK)


def _threshold(scores: Scores, count: int) -> float:
    """A number that at least `count` scores reach and few others."""
    if count >= len(scores):
        return -np.inf
    groups = _GROUPS_PER_ENTRY * count
    size = len(scores) // groups
    if size >= _SMALLEST_GROUP:
        # Column j is a group: neighbours in memory fall into different groups, which numpy reduces with SIMD.
        scores = scores[: size * groups].reshape(size, groups).max(axis=0)  # [groups]
    return float(np.partition(scores, len(scores) - count)[len(scores) - count])

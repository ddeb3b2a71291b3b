"""The one attention and the one rotary embedding.

In: queries [B, S, H, D], keys and values [B, G, T, D], H a multiple of G. Out: [B, S, H * D]. Products run in the dtype
of the queries, angles and softmax in FP32. Knows no weights, no norms and no model.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from voxedge.export.modules.basic import parameter

MASKED = -1e9
"""Added to a masked score: exp of it is exactly 0, and unlike -inf it cannot give NaN."""


def rotary_tables(dim: int, length: int, theta: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosine and sine of position times inverse frequency (Su et al. 2021, eq. 15).

    Angles are formed in FP64: at position 4096 FP32 rounding already shows in the last digits of the cosine.

    Args:
        dim: Rotated channels of a head.
        length: Positions 0 to length - 1.
        theta: Base of the frequencies.

    Returns:
        Two arrays [length, dim / 2].
    """
    inverse = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)  # [dim / 2]
    angles = np.arange(length, dtype=np.float64)[:, None] * inverse  # [length, dim / 2]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class RotaryTables(nn.Module):
    """Cosines and sines [length, dim / 2] as weights of a graph, read by position; see `rotary_tables`."""

    def __init__(self, length: int, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.cos = parameter(length, dim // 2, dtype=dtype)
        self.sin = parameter(length, dim // 2, dtype=dtype)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [S, dim / 2] at positions [S]."""
        return nn.functional.embedding(positions, self.cos), nn.functional.embedding(positions, self.sin)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of every head; the two halves of the rotated part form the pairs.

    Args:
        x: [B, S, H, D].
        cos: [S, R / 2] with R <= D; channels from R on stay as they are.
        sin: [S, R / 2].
    """
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [S, 1, R / 2]
    sizes = [half, half] + ([x.shape[-1] - 2 * half] if x.shape[-1] > 2 * half else [])
    first, second, *rest = torch.split(x.float(), sizes, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], -1).to(x.dtype)


def causal_mask(past: int, new: int, repeat: int, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the new tokens, and what to add to their scores so that each sees the keys up to its own.

    Built from ranges over the sizes, so that a compiler sees that past and new lengths may vary independently.

    Args:
        past: Keys before the first query.
        new: Queries.
        repeat: Query heads that read one key head; their rows are stacked, see `attend`.
        window: Keys that a query sees, its own included; None for all.

    Returns:
        Positions [new] INT64 and scores to add [repeat * new, past + new] FP32.
    """
    positions = torch.arange(past, past + new)
    queries = torch.cat([positions] * repeat).unsqueeze(1)  # [H / G * S, 1]
    keys = torch.arange(past + new).unsqueeze(0)  # [1, T]
    visible = keys <= queries  # [H / G * S, T]
    if window is not None:
        visible = visible & (keys > queries - window)
    return positions, torch.where(visible, 0.0, MASKED)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped heads.

    The H / G query heads that read one key head are stacked along the rows of one product, so keys are never repeated.

    Args:
        q: [B, S, H, D].
        k: [B, G, T, D].
        v: [B, G, T, D].
        mask: [H / G * S, T] FP32 to add, or None.

    Returns:
        [B, S, H * D] in the dtype of q.
    """
    batch, queries, heads, dim = q.shape
    groups = k.shape[1]
    repeat = heads // groups
    rows = q.reshape(batch, queries, groups, repeat, dim).permute(0, 2, 3, 1, 4)  # [B, G, H / G, S, D]
    rows = rows.reshape(batch, groups, repeat * queries, dim)  # [B, G, H / G * S, D]
    scores = torch.matmul(rows, k.transpose(2, 3)).float() * (1.0 / math.sqrt(dim))  # [B, G, H / G * S, T]
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1).to(q.dtype)
    mixed = torch.matmul(weights, v).reshape(batch, groups, repeat, queries, dim)  # [B, G, H / G, S, D]
    return mixed.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads * dim)

"""How a causal layer reads its history: plain operators for every runtime, or ONNX Runtime's fused one.

In: the new queries, keys and values of one layer. Out: their attention over past and new positions, and what the
runtime keeps. The first two histories are the whole difference between the flavours of a language model's graph; the
third is for what looks back a bounded way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from voxedge.export.modules.attention import RotaryTables, apply_rotary, attend, causal_mask


class History(Protocol):
    """The keys and values of all layers, during one call."""

    kept: list[Tensor]
    """Graph outputs in the order key, value of layer 0, 1, ..."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of new queries over past and new keys.

        Args:
            layer: Number of the layer.
            q: [B, S, H, D] FP32, normed, not rotated.
            k: [B, S, G, D] FP32, normed, not rotated.
            v: [B, S, G, D] in the dtype of the cache and of the products.

        Returns:
            [B, S, H * D] in the dtype of v.
        """


class PortableHistory:
    """Time-major caches [P, B, G, D] that the graph reads; it gives back only the new rows [S, B, G, D].

    Because time is the first axis, the runtime binds that output at the cache's own address plus P rows: appending is
    free and the graph never copies its history out.
    """

    def __init__(self, past: list[Tensor], new: int, repeat: int, rotary: RotaryTables) -> None:
        self.past = past
        self.kept: list[Tensor] = []
        positions, self.mask = causal_mask(past[0].shape[0], new, repeat)  # [S], [H / G * S, P + S]
        self.cos, self.sin = rotary(positions)  # [S, D / 2]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (apply_rotary(x, self.cos, self.sin).to(v.dtype) for x in (q, k))
        key_rows, value_rows = k.transpose(0, 1), v.transpose(0, 1)  # [S, B, G, D]
        self.kept += [key_rows, value_rows]
        keys = torch.cat([self.past[2 * layer], key_rows]).permute(1, 2, 0, 3)  # [B, G, P + S, D]
        values = torch.cat([self.past[2 * layer + 1], value_rows]).permute(1, 2, 0, 3)  # [B, G, P + S, D]
        return attend(q, keys, values, self.mask)


class OrtHistory:
    """Caches [B, G, M, D] of fixed capacity M, bound as input and output at once; rows are written in place.

    com.microsoft.GroupQueryAttention rotates, appends and attends; `lengths` [B] INT32 is each row's total minus one.
    """

    def __init__(self, past: list[Tensor], lengths: Tensor, total: Tensor, cos: Tensor, sin: Tensor) -> None:
        self.past, self.lengths, self.total, self.cos, self.sin = past, lengths, total, cos, sin
        self.kept: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, new, heads, dim = q.shape
        groups = k.shape[2]
        key, value = self.past[2 * layer], self.past[2 * layer + 1]
        flat = [x.to(v.dtype).reshape(batch, new, -1) for x in (q, k, v)]  # [B, S, heads * D]
        mixed, key_out, value_out = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [*flat, key, value, self.lengths, self.total, self.cos, self.sin],
            {"num_heads": heads, "kv_num_heads": groups, "do_rotary": 1, "rotary_interleaved": 0},
            dtypes=[v.dtype, key.dtype, value.dtype],
            shapes=[(batch, new, heads * dim), key.shape, value.shape],
            version=1,
        )
        self.kept += [key_out, value_out]
        return mixed


class SlidingHistory:
    """Time-major caches [P, B, R, G, D] of frames of R positions each, of which a position sees the last `window`.

    Keys are kept as they are and rotated by their place in the cache, because only differences of positions matter:
    angles stay exact and the tables short however long a stream runs.
    """

    def __init__(self, past: list[Tensor], frames: int, rate: int, window: int, rotary: RotaryTables) -> None:
        self.past, self.frames, self.rate = past, frames, rate
        self.kept: list[Tensor] = []
        earlier, new = past[0].shape[0] * rate, frames * rate
        self.total = earlier + new
        positions, self.mask = causal_mask(earlier, new, 1, window)  # [S], [S, T]
        self.queries = rotary(positions)  # [S, D / 2]
        self.keys = rotary(torch.arange(self.total))  # [T, D / 2]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (self._extended(2 * layer + side, rows) for side, rows in enumerate((k, v)))  # [B, T, G, D]
        q, keys = apply_rotary(q, *self.queries), apply_rotary(keys, *self.keys)
        return attend(q, keys.transpose(1, 2), values.transpose(1, 2), self.mask)

    def _extended(self, index: int, rows: Tensor) -> Tensor:
        """Earlier and new rows [B, T, G, D] of one cache; the new ones [B, S, G, D] are kept."""
        batch, _, groups, dim = rows.shape
        fresh = rows.reshape(batch, self.frames, self.rate, groups, dim).transpose(0, 1)  # [N, B, R, G, D]
        self.kept.append(fresh)
        whole = torch.cat([self.past[index], fresh]).transpose(0, 1)  # [B, P + N, R, G, D]
        return whole.reshape(batch, self.total, groups, dim)

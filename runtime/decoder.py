"""Run a causal decoder token by token over a cache that lives on the device.

In: a loaded decoder graph of either flavour, a cache, new token ids or their embeddings. Out: logits or the state of
the last position. The cache is never copied: ONNX Runtime's fused attention writes its rows in place, and the portable
graph's new rows are bound at the cache's own address. Does not sample, does not know modalities or prompts; see
`runtime.routing`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Binding, Buffer, Engine
from voxedge.engines.errors import InputError
from voxedge.engines.manifest import Flavour, GraphSpec

Ids = npt.NDArray[np.int32]
Embeddings = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]

_ROUND = 64
_INT8_PIECE = 64
"""New tokens of one call over INT8 caches on the CPU. ONNX Runtime 1.32 computes the scores of all keys of a call, also
of those behind a query: a prompt of 512 takes 0.8 of the time in pieces of 64, with the same logits to the bit."""
_HEADS = ("logits", "state")


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What two decoders must have in common to read one cache."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    flavour: Flavour
    max_context: int
    """Most positions that the graphs can address."""

    @classmethod
    def of(cls, spec: GraphSpec) -> CacheShape:
        """The cache that a decoder graph takes."""
        first = spec.input("past.0.key")
        layers = sum(tensor.name.endswith(".key") for tensor in spec.inputs)
        heads, dim = (first.shape[1], first.shape[3]) if spec.flavour == "ort" else first.shape[2:]
        name = "capacity" if spec.flavour == "ort" else "past"
        limit = max(profile[name].max for profile in spec.profiles.values())
        context = limit if spec.flavour == "ort" else limit + 1
        return cls(layers, int(heads), int(dim), first.dtype, spec.flavour, context)


class KvCache:
    """Keys and values of all layers and positions, on the device."""

    def __init__(self, engine: Engine, shape: CacheShape, positions: int, batch: int = 1) -> None:
        """Allocate zeros for at least `positions` tokens of `batch` sequences.

        Raises:
            InputError: The graphs cannot address so many positions.
        """
        if positions > shape.max_context:
            raise InputError(
                f"expected at most {shape.max_context} tokens of prompt and speech together, need {positions}; shorten "
                "the text or --max-tokens, or export again with a larger --max-context"
            )
        self.shape, self.length = shape, 0
        self.capacity = min(-(-positions // _ROUND) * _ROUND, shape.max_context)
        rows = (self.capacity, batch, shape.kv_heads, shape.head_dim)  # [M, B, G, D]
        if shape.flavour == "ort":
            rows = (batch, shape.kv_heads, self.capacity, shape.head_dim)  # [B, G, M, D]
        self.buffers = {name: engine.allocate(rows, shape.dtype) for name in _leaves(shape.layers)}

    def lane(self, index: int, length: int = 0) -> KvCache:
        """One sequence of an `ort` cache as a cache of its own over the same memory."""
        view = copy.copy(self)
        view.buffers = {name: buffer.rows(index, index + 1) for name, buffer in self.buffers.items()}
        view.length = length
        return view

    def clear(self) -> None:
        """Forget all tokens; old rows are never read again, so they stay as they are."""
        self.length = 0


class Decoder:
    """One decoder graph with its bindings; prefill and decode keep one each."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache_shape = CacheShape.of(engine.spec)
        self.max_prefill = max(profile["new"].max for profile in engine.spec.profiles.values())
        if engine.device == "cpu" and self.cache_shape.flavour == "ort" and self.cache_shape.dtype == "int8":
            self.max_prefill = min(self.max_prefill, _INT8_PIECE)
        heads = [tensor for tensor in engine.spec.outputs if tensor.name in _HEADS]
        self._heads = {head.name: np.zeros(head.sizes({"batch": 1}), np.float32) for head in heads}  # [B, C]
        self._step = _Call(engine, self._heads)
        self._prefill = _Call(engine, self._heads)

    @property
    def heads(self) -> Mapping[str, Logits]:
        """What stands behind the last token, [1, C] each, the graph's first output first; valid until the next call."""
        return self._heads

    @property
    def state(self) -> Logits:
        """What a head reads after the last token, [d], where the graph gives it; valid until the next call."""
        state: Logits = self._heads["state"][0]
        return state

    def forward(self, ids: Ids | Embeddings, cache: KvCache) -> Logits:
        """Append tokens to the cache.

        Args:
            ids: [S] with S >= 1, or embeddings [S, d] where the graph takes them.
            cache: One of this decoder's shape; its length grows by S.

        Returns:
            Logits [C] after the last token, or the state of a graph without logits; valid until the next call.

        Raises:
            InputError: The cache is full.
        """
        if cache.length + len(ids) > cache.capacity:
            raise InputError(
                f"expected room for {len(ids)} tokens, the cache holds {cache.length} of {cache.capacity}; "
                "shorten the text or lower --max-tokens"
            )
        for start in range(0, len(ids), self.max_prefill):
            part = ids[start : start + self.max_prefill]
            call = self._step if len(part) == 1 else self._prefill
            call.run(part, cache)
            cache.length += len(part)
        last: Logits = next(iter(self._heads.values()))[0]
        return last


class _Call:
    """A binding whose small inputs are changed in place between runs."""

    def __init__(self, engine: Engine, heads: Mapping[str, Logits]) -> None:
        self._binding: Binding = engine.binding()
        self._portable = engine.spec.flavour == "portable"
        self._given = engine.spec.inputs[0]
        self._ids: npt.NDArray[Any] = np.zeros((1, 0), self._given.dtype)
        self._last = self._host("logits_at", np.zeros(1, np.int32))
        if not self._portable:
            self._lengths = self._host("lengths", np.zeros(1, np.int32))
            self._total = self._host("total", np.zeros(1, np.int32))
        for name, values in heads.items():
            self._binding.bind(name, Buffer.of(values))
        self._bound: KvCache | None = None

    def _host(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._binding.bind(name, Buffer.of(array))
        return array

    def run(self, ids: Ids | Embeddings, cache: KvCache) -> None:
        new = len(ids)
        if new != self._ids.shape[1]:
            self._ids = self._host(self._given.name, np.zeros((1, *ids.shape), self._given.dtype))
        self._ids[0] = ids
        self._last[0] = new - 1
        if self._portable:
            self._bind_rows(cache, new)
        else:
            self._lengths[0] = cache.length + new - 1
            self._total[0] = cache.length + new
            if cache is not self._bound:
                self._bind_whole(cache)
        self._binding.run()

    def _bind_whole(self, cache: KvCache) -> None:
        for name, buffer in cache.buffers.items():
            self._binding.bind(f"past.{name}", buffer)
            self._binding.bind(f"present.{name}", buffer)
        self._bound = cache

    def _bind_rows(self, cache: KvCache, new: int) -> None:
        """The past is a prefix of the cache, the new rows are written right behind it."""
        for name, buffer in cache.buffers.items():
            self._binding.bind(f"past.{name}", buffer.rows(0, cache.length))
            self._binding.bind(f"new.{name}", buffer.rows(cache.length, cache.length + new))


def _leaves(layers: int) -> list[str]:
    return [f"{layer}.{leaf}" for layer in range(layers) for leaf in ("key", "value")]

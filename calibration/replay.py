"""Give a graph again what another flavour or precision of it was given.

In: the inputs of the portable flavour. Out: its outputs, whichever flavour computed them. The flavours differ in their
caches alone: the portable one reads time-major rows of the past [P, B, G, D] and gives the new rows; ONNX Runtime's
reads a buffer [B, G, capacity, D] and writes the new rows into it. Does not compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from voxedge.engines.backend import Array, Buffer, Engine
from voxedge.engines.errors import InputError
from voxedge.engines.manifest import GraphSpec

Feeds = Mapping[str, Array]
CacheScales = Mapping[str, Array]
"""Steps [G, D] of INT8 caches by leaf, such as `3.key`."""

_ROUND = 64  # capacities of the runtime's caches are multiples of it
PAST, NEW, _PRESENT = "past.", "new.", "present."


def portable_feeds(spec: GraphSpec, given: Feeds) -> dict[str, Array]:
    """Copies of a call's inputs as the portable flavour takes them.

    Args:
        spec: The graph that was called.
        given: Its inputs, of which only the rows that it may read are copied.
    """
    if not _in_place(spec):
        return {name: np.array(array, order="C") for name, array in given.items()}
    rows = spec.inputs[0].name  # ids, or their embeddings
    past = int(given["total"][0]) - given[rows].shape[1]
    feeds = {name: np.array(given[name], order="C") for name in (rows, "logits_at")}
    for name, array in given.items():
        if name.startswith(PAST):  # [B, G, M, D] to [P, B, G, D]
            feeds[name] = np.array(array[:, :, :past].transpose(2, 0, 1, 3), order="C")
    return feeds


def replay(engine: Engine, feeds: Feeds, scales: CacheScales | None = None) -> dict[str, Array]:
    """Run one call.

    Args:
        engine: Of either flavour, on the CPU.
        feeds: Inputs of the portable flavour; floats are cast to what the graph takes.
        scales: Of the graph's caches where these are INT8.

    Returns:
        The outputs of the portable flavour by name; rows of INT8 caches as floats.

    Raises:
        InputError: The call belongs to another graph, or is longer than this one can take.
        InferenceError: The graph failed.
    """
    spec = engine.spec
    steps = scales or {}
    given = {name: _rounded(array, steps.get(name.removeprefix(PAST))) for name, array in feeds.items()}
    if _in_place(spec):
        found = _replay_in_place(engine, given)
    else:
        expected = {tensor.name: tensor.dtype for tensor in spec.inputs}
        _check_names(spec, expected, feeds)
        found = engine.run({name: _cast(given[name], dtype) for name, dtype in expected.items()})
    return {name: _floats(array, steps.get(name.removeprefix(NEW))) for name, array in found.items()}


def _rounded(array: Array, step: Array | None) -> Array:
    """Rows of a cache as INT8, as the graph itself would have kept them."""
    if step is None or array.dtype == np.int8:
        return array
    return np.clip(np.rint(array / step), -128, 127).astype(np.int8)


def _floats(array: Array, step: Array | None) -> Array:
    return array if step is None or array.dtype != np.int8 else array.astype(np.float32) * step


def _in_place(spec: GraphSpec) -> bool:
    return any(tensor.name.startswith(_PRESENT) for tensor in spec.outputs)


def _replay_in_place(engine: Engine, feeds: Feeds) -> dict[str, Array]:
    """The call that `runtime.decoder` would make: caches bound as input and output at once."""
    spec = engine.spec
    caches = {tensor.name: tensor for tensor in spec.inputs if tensor.name.startswith(PAST)}
    rows = spec.inputs[0].name  # ids, or their embeddings
    _check_names(spec, [rows, "logits_at", *caches], feeds)
    new = feeds[rows].shape[1]
    past = len(feeds[next(iter(caches))])
    dims = {"batch": len(feeds[rows]), "capacity": _capacity(spec, past + new)}
    heads = {
        tensor.name: np.zeros(tensor.sizes(dims), tensor.dtype)
        for tensor in spec.outputs
        if not tensor.name.startswith(_PRESENT)
    }
    arrays = {
        rows: _cast(feeds[rows], spec.inputs[0].dtype),
        "logits_at": feeds["logits_at"],
        "lengths": np.full(dims["batch"], past + new - 1, np.int32),
        "total": np.array([past + new], np.int32),
        **heads,
    }
    for name, tensor in caches.items():
        cache = np.zeros(tensor.sizes(dims), tensor.dtype)  # [B, G, M, D]
        cache[:, :, :past] = _cast(feeds[name], tensor.dtype).transpose(1, 2, 0, 3)
        arrays[name] = arrays[_PRESENT + name.removeprefix(PAST)] = cache
    binding = engine.binding()
    for name, array in arrays.items():
        binding.bind(name, Buffer.of(array))
    binding.run()
    kept = {name.removeprefix(PAST): arrays[name][:, :, past : past + new].transpose(2, 0, 1, 3) for name in caches}
    return {**heads, **{NEW + leaf: array for leaf, array in kept.items()}}


def _capacity(spec: GraphSpec, needed: int) -> int:
    limit = max(profile["capacity"].max for profile in spec.profiles.values())
    if needed > limit:
        raise InputError(
            f"graph {spec.name}: expected a call of at most {limit} tokens with its past, found {needed}; "
            "export both bundles with the same --max-context"
        )
    return min(-(-needed // _ROUND) * _ROUND, limit)


def _check_names(spec: GraphSpec, expected: Iterable[str], feeds: Feeds) -> None:
    if set(expected) != set(feeds):
        raise InputError(
            f"graph {spec.name}: expected the inputs {sorted(expected)}, the reference has {sorted(feeds)}; "
            "give a reference of the same checkpoint"
        )


def _cast(array: Array, dtype: str) -> Array:
    """To the graph's precision; what it cannot hold becomes infinite, and so does what follows from it."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)

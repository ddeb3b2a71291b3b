"""Keep the keys and values of the past as INT8: half of FP16, a quarter of FP32.

In: a decoder's graph with caches, and statistics of the rows that go into them. Out: the same graph with INT8 caches at
its boundary, and one scale for each channel of each head or one for each cache, for keys and values alike:
com.microsoft.GroupQueryAttention knows scales by tensor and by channel, not by token. The portable graph rounds the new
rows and reads them back as well, so that a prompt gives the same whether it is read at once or in pieces.

Symmetric: q = round(x / s) within -127 .. 127 with s = max|x| / 127 over everything that was said for calibration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from voxedge.calibration.cache_scales import scale_name
from voxedge.calibration.quantise.config import KvFormat
from voxedge.calibration.quantise.graph import EditedGraph, add_constant, add_initialiser, new_node
from voxedge.calibration.replay import NEW, PAST
from voxedge.calibration.statistics import Statistics
from voxedge.engines.errors import ExportError, InputError
from voxedge.engines.lazy import InMemory
from voxedge.engines.manifest import GraphSpec

MIN_ONNXRUNTIME = "1.27"
"""First whose GroupQueryAttention reads an INT8 cache on the CPU (1.25 and 1.26 know the attribute and refuse it)."""
LEVELS = 127
PRESENT = "present."

_SCALE_INPUTS = (12, 13)
"""Places of k_scale and v_scale among GroupQueryAttention's inputs."""


def cache_leaves(graph: EditedGraph) -> list[str]:
    """Names of a decoder's caches, such as `3.key`; empty for other graphs."""
    model = next(iter(graph.models.values()))
    return [name.removeprefix(PAST) for name in (str(value.name) for value in model.graph.inputs) if _is_cache(name)]


def _is_cache(name: str) -> bool:
    return name.startswith(PAST) and name.endswith((".key", ".value"))


def int8_caches(spec: GraphSpec) -> GraphSpec:
    """The manifest's entry of a decoder whose caches became INT8; other entries stay as they are."""
    tensors = {
        side: tuple(
            dataclasses.replace(tensor, dtype="int8") if tensor.name.startswith((PAST, NEW, PRESENT)) else tensor
            for tensor in getattr(spec, side)
        )
        for side in ("inputs", "outputs")
    }
    if tensors["inputs"] == spec.inputs:
        return spec
    oldest = MIN_ONNXRUNTIME if spec.flavour == "ort" else spec.min_onnxruntime
    return dataclasses.replace(spec, inputs=tensors["inputs"], outputs=tensors["outputs"], min_onnxruntime=oldest)


def round_caches(graph: EditedGraph, statistics: Statistics | None, form: KvFormat) -> None:
    """Rewrite all flavours of a decoder in place; a graph without caches stays as it is.

    Args:
        graph: Any graph.
        statistics: Of the rows that go into its caches.
        form: `int8` or `int8-tensor`.

    Raises:
        InputError: There are no statistics, or they know nothing of a cache.
    """
    if not cache_leaves(graph):
        return
    if statistics is None:
        raise InputError(
            "expected statistics of the caches for --kv-cache int8, found none; run `voxedge calibrate BUNDLE -o FILE` "
            "and give the file with --statistics"
        )
    for leaf in cache_leaves(graph):
        name = scale_name(leaf)
        scales = _scales(graph, statistics, leaf)  # [G, D]
        graph.sources[name] = InMemory(name, scales.max(keepdims=True)[0] if form == "int8-tensor" else scales)
    for flavour, model in graph.models.items():
        if flavour == "ort":
            _round_fused(graph, model)
        else:
            _round_plain(graph, model)


def _scales(graph: EditedGraph, statistics: Statistics, leaf: str) -> npt.NDArray[np.float32]:
    """[G, D]; a channel that was always zero gets the scale of the largest, as nothing is known of it."""
    groups, dim = _heads(graph, leaf)
    rows = [statistics.tensor(name, NEW + leaf) for name in _sharers(graph, statistics)]
    known = [found.channel_max for found in rows if found is not None and found.channels == groups * dim]
    if not known:
        raise InputError(
            f"expected statistics of the cache rows {NEW + leaf} of {graph.name}, found none; run `voxedge calibrate` "
            "again with this voxedge"
        )
    largest = np.max(known, axis=0).astype(np.float32)
    largest = np.where(largest > 0, largest, max(float(largest.max()), 1e-6))
    scales: npt.NDArray[np.float32] = (largest / np.float32(LEVELS)).reshape(groups, dim)
    return scales


def _sharers(graph: EditedGraph, statistics: Statistics) -> list[str]:
    """Graphs with caches of the same names: experts write into one cache, so they need one set of scales."""
    rows: dict[str, set[str]] = {}
    for name, value in statistics.keys:
        if value.startswith(NEW):
            rows.setdefault(name, set()).add(value)
    own = {NEW + leaf for leaf in cache_leaves(graph)}
    return [name for name, values in rows.items() if values == own]


def _heads(graph: EditedGraph, leaf: str) -> tuple[int, int]:
    flavour, model = next(iter(graph.models.items()))
    value = next(value for value in model.graph.inputs if value.name == PAST + leaf)
    sizes = list(value.shape or ())
    groups, dim = (sizes[1], sizes[3]) if flavour == "ort" else sizes[2:4]
    return int(groups), int(dim)  # type: ignore[arg-type]  # both are fixed


def _round_fused(graph: EditedGraph, model: ir.Model) -> None:
    """The operator rounds, appends and reads by itself."""
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    for node in model.graph:
        if node.op_type != "GroupQueryAttention":
            continue
        leaves = [str(node.inputs[place].name).removeprefix(PAST) for place in (3, 4)]  # type: ignore[union-attr]
        node.resize_inputs(_SCALE_INPUTS[-1] + 1)
        for place, leaf in zip(_SCALE_INPUTS, leaves, strict=True):
            node.replace_input_with(place, _fused_scale(graph, model, leaf))
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        whole = graph.sources[scale_name(leaves[0])].shape == (1,)
        for key in ("k_quant_type", "v_quant_type"):
            node.attributes[key] = ir.AttrString(key, "PER_TENSOR" if whole else "PER_CHANNEL")
        for value in (*node.inputs[3:5], *node.outputs[1:3]):
            if value is not None:
                value.type = ir.TensorType(ir.DataType.INT8)


def _fused_scale(graph: EditedGraph, model: ir.Model, leaf: str) -> ir.Value:
    return add_initialiser(model, scale_name(leaf), "float32", graph.sources[scale_name(leaf)].shape)


def _round_plain(graph: EditedGraph, model: ir.Model) -> None:
    for leaf, past, join in list(_joins(model)):
        rows = join.inputs[1]
        if rows is None or past.dtype is None:
            raise ExportError(f"{graph.name}: expected new rows behind {past.name}")
        dtype = str(np.dtype(past.dtype.numpy()))
        scale = _plain_scale(graph, model, leaf, dtype, inverse=False)
        inverse = _plain_scale(graph, model, leaf, dtype, inverse=True)
        one = add_constant(model, f"one.{dtype}", np.ones((), dtype))
        zero = add_constant(model, "zero.int8", np.zeros((), np.int8))
        past.type = ir.TensorType(ir.DataType.INT8)
        _read_floats(model, past, one, dtype)
        steps = new_node(join, "Mul", [rows, inverse], dtype, rows.shape)
        rounded = new_node(join, "QuantizeLinear", [steps, one, zero], "int8", rows.shape)
        join.replace_input_with(1, new_node(join, "DequantizeLinear", [rounded, one], dtype, rows.shape))
        joined = join.outputs[0]
        users = list(joined.uses())
        scaled = new_node(users[0].node, "Mul", [joined, scale], dtype, joined.shape)
        for use in users:
            use.node.replace_input_with(use.idx, scaled)
        _give(model, rows, rounded)


def _read_floats(model: ir.Model, past: ir.Value, one: ir.Value, dtype: str) -> None:
    """Whatever reads a cache reads its integers as floats, `Shape` too, which TensorRT 10.1 has for floats only."""
    users = list(past.uses())
    readers = {use.node for use in users}
    first = next(node for node in model.graph if node in readers)
    floats = new_node(first, "DequantizeLinear", [past, one], dtype, past.shape)
    for use in users:
        use.node.replace_input_with(use.idx, floats)


def _joins(model: ir.Model) -> Iterator[tuple[str, ir.Value, ir.Node]]:
    """Each cache with the node that joins its past and its new rows."""
    for value in model.graph.inputs:
        if not _is_cache(str(value.name)):
            continue
        users = [use.node for use in value.uses() if use.node.op_type == "Concat"]
        if len(users) != 1:
            raise ExportError(f"expected one Concat behind {value.name}, found {len(users)}")
        yield str(value.name).removeprefix(PAST), value, users[0]


def _plain_scale(graph: EditedGraph, model: ir.Model, leaf: str, dtype: str, inverse: bool) -> ir.Value:
    name = scale_name(leaf)
    source = graph.sources[name]
    if not inverse:
        return add_initialiser(model, name, dtype, source.shape)
    if not isinstance(source, InMemory):
        raise ExportError(f"expected scales of {leaf} in memory")
    name = f"{name}.inverse"
    graph.sources[name] = InMemory(name, (1.0 / source.array).astype(np.float32))
    return add_initialiser(model, name, dtype, source.shape)


def _give(model: ir.Model, rows: ir.Value, rounded: ir.Value) -> None:
    """The rounded rows become the graph's output under the name that the rows had."""
    place = list(model.graph.outputs).index(rows)
    name = rows.name
    rows.name = f"{name}.float"
    rounded.name = name
    model.graph.outputs[place] = rounded

"""Which activations of a graph a quantiser needs, and the graph with these as further outputs.

In: a portable graph of a bundle. Out: its bytes with the watched values as outputs, and which axis of each holds the
channels. Weights stay where they are: the bytes are loaded beside the bundle's own data file. Does not run anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from voxedge.calibration.replay import NEW

if TYPE_CHECKING:
    import onnx

PRODUCTS = {"MatMul": -1, "Conv": 1, "ConvTranspose": 1}
"""Operators with weights that can be quantised together with what enters them, and the axis of that one's channels."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One value to look at."""

    name: str
    axis: int
    """Of its channels."""
    heads: bool = False
    """Whether the last two axes, heads and their dimensions, are channels together."""


def watched_values(model: onnx.ModelProto) -> list[Watched]:
    """What enters a product with weights, what a Conv gives, and the rows that go to a cache, each once."""
    weights = {item.name for item in model.graph.initializer}
    found: dict[str, Watched] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.input[1] in weights and node.input[0] not in weights:
            found.setdefault(node.input[0], Watched(node.input[0], PRODUCTS[node.op_type]))
            if node.op_type == "Conv":  # ONNX Runtime's integer convolution wants a range for its result
                found.setdefault(node.output[0], Watched(node.output[0], 1))
    for value in model.graph.output:
        if value.name.startswith(NEW):
            found[value.name] = Watched(value.name, -1, heads=True)
    return list(found.values())


def instrument(path: Path) -> tuple[bytes, list[Watched]]:
    """Expose what is to be watched.

    Args:
        path: A portable graph, whose weights are not read.

    Returns:
        The graph with further outputs behind its own, and the watched values; inputs and outputs of the graph may be
        among them.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    watched = watched_values(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    for value in watched:
        if value.name not in known:
            model.graph.output.append(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, None))
    return model.SerializeToString(), watched

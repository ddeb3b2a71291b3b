"""Repeat a traced layer, so that a deep model costs the tracing of three layers.

In: a graph of three like layers, whose nodes are named by the path of their module. Out: the same graph with as many
layers as the model has. The third layer is copied only after it was found to be the second one under another number;
whatever both read besides their own weights, caches and the residual stream is shared. Integers that differ between the
two, such as positions and lengths of what has grown, go on in the same steps. Does not know what a layer does.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from voxedge.engines.errors import ExportError

TRACED_LAYERS = 3
"""The first may hold what is shared, the second and third prove each other."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Where a model's layers are."""

    path: str
    """Path of their list in node names, such as `/transformer/layers`."""
    parameters: str
    """Prefix of their weights, such as `transformer.layers`."""
    layers: int
    """How many the model has."""
    inputs: str = ""
    """Prefix of the graph inputs that belong to layers, such as `past`; empty for none."""
    outputs: str = ""
    """Likewise of the graph outputs."""
    streams: int = 1
    """How many values one layer hands to the next."""

    @property
    def traced(self) -> int:
        """How many layers to trace."""
        return min(self.layers, TRACED_LAYERS)

    def nodes(self, graph: ir.Graph, layer: int) -> list[ir.Node]:
        """Nodes of one layer, in order."""
        prefix = f"{self.path}.{layer}/"
        return [node for node in graph if (node.name or "").startswith(prefix)]

    def renumbered(self, name: str, old: int, new: int) -> str:
        """The name of the same thing in another layer; names that belong to no layer stay."""
        for prefix, end in ((self.path, "/"), (self.parameters, "."), (self.inputs, "."), (self.outputs, ".")):
            if prefix and name.startswith(f"{prefix}.{old}{end}"):
                return f"{prefix}.{new}{end}" + name[len(f"{prefix}.{old}{end}") :]
        return name


def repeat_layers(model: ir.Model, stack: Stack) -> None:
    """Extend a graph of `stack.traced` layers to `stack.layers`, in place.

    Raises:
        ExportError: The traced layers are not alike, so that none can stand for the others.
    """
    if stack.layers <= TRACED_LAYERS:
        return
    graph = model.graph
    first, last = (stack.nodes(graph, layer) for layer in (TRACED_LAYERS - 2, TRACED_LAYERS - 1))
    _require_alike(stack, first, last)
    streams = _streams(stack, first, last)
    following = {value: [use for use in value.uses() if use.node not in last] for _, value in streams}
    behind = list(graph)[max(index for index, node in enumerate(graph) if node in last) + 1]
    newest = {value: value for _, value in streams}
    for layer in range(TRACED_LAYERS, stack.layers):
        made = _copy(stack, graph, first, last, layer, {old: newest[value] for old, value in streams})
        graph.insert_before(behind, dict.fromkeys(_node_of(value) for value in made.values()))
        newest = {value: made[value] for value in newest}
    for value, final in newest.items():
        for node, index in following[value]:
            node.replace_input_with(index, final)
        if value.is_graph_output():
            value.name, final.name = f"{_node_of(value).name}:{value.index()}", value.name
            _replace(graph.outputs, [final if each is value else each for each in graph.outputs])
    for values, prefix in ((graph.inputs, stack.inputs), (graph.outputs, stack.outputs)):
        _replace(values, sorted(values, key=lambda value: _layer(value, prefix)))


def _require_alike(stack: Stack, first: Sequence[ir.Node], last: Sequence[ir.Node]) -> None:
    """Node for node the same operator, attributes and inputs, but for the number of the layer."""
    old, new = TRACED_LAYERS - 2, TRACED_LAYERS - 1
    given, taken = (_streams_into(nodes, other) for nodes, other in ((first, last), (last, first)))
    alike = len(first) == len(last) > 0 and len(given) == len(taken)
    for one, other in zip(first, last, strict=False):
        wanted = [given.get(value) or _moved(stack, value, old, new) for value in one.inputs]
        found = [taken.get(value) or _moved(stack, value, new, new) for value in other.inputs]
        attributes = _attributes(one) == _attributes(other)
        alike = alike and (one.domain, one.op_type) == (other.domain, other.op_type) and attributes and wanted == found
    if not alike:
        raise ExportError(
            f"expected the traced layers of {stack.path} to be alike, found {len(first)} and {len(last)} nodes that "
            "differ; this model cannot be exported layer by layer, please report it with its config.json"
        )


def _streams_into(nodes: Sequence[ir.Node], other: Sequence[ir.Node]) -> dict[ir.Value | None, str]:
    """Values that a layer takes from the one before, numbered as it first reads them.

    Their names say nothing: the first layer may make them otherwise. What the other layer reads too is shared.
    """
    own, others = set(nodes), set(other)
    shared = {value for node in other for value in node.inputs if value is not None and value.producer() not in others}
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    streams = [
        value for value in read if value.producer() is not None and value.producer() not in own and value not in shared
    ]
    return {value: f"stream {number}" for number, value in enumerate(streams)}


def _moved(stack: Stack, value: ir.Value | None, old: int, new: int) -> str | None:
    if value is None or value.name is None:
        return None
    if _whole_numbers(value) is not None:
        return f"{value.dtype} {value.shape}"
    return stack.renumbered(value.name, old, new)


def _attributes(node: ir.Node) -> Mapping[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _whole_numbers(value: ir.Value) -> np.ndarray | None:
    """What an integer constant holds; None for anything else."""
    if value.producer() is not None or value.const_value is None or value.dtype is None or not value.dtype.is_integer():
        return None
    return value.const_value.numpy()


def _streams(stack: Stack, first: Sequence[ir.Node], last: Sequence[ir.Node]) -> list[tuple[ir.Value, ir.Value]]:
    """The values that a layer takes from the one before, and their counterparts that it gives to the next."""
    places = {node: place for place, node in enumerate(first)}
    taken = (value for node in last for value in node.inputs if value is not None)
    passed = [value for value in dict.fromkeys(taken) if value.producer() in places]
    if len(passed) != stack.streams:
        raise ExportError(f"expected {stack.streams} values from layer to layer of {stack.path}, found {len(passed)}")
    return [(value, last[places[_node_of(value)]].outputs[value.index() or 0]) for value in passed]


def _node_of(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise ExportError(f"expected {value.name} to be the output of a node")
    return node


def _copy(
    stack: Stack,
    graph: ir.Graph,
    first: Sequence[ir.Node],
    last: Sequence[ir.Node],
    layer: int,
    replaced: dict[ir.Value, ir.Value],
) -> dict[ir.Value, ir.Value]:
    """Make the nodes of a further layer.

    Args:
        stack: What is copied.
        graph: Gets the weights and outputs of the layer, not yet its nodes.
        first: Nodes of the layer before the last traced one.
        last: Nodes of the last traced one.
        layer: Number of the new one.
        replaced: What it reads instead of what `last` reads from the layer before.

    Returns:
        The new value for every one that `last` makes, in the order of the nodes.
    """
    made: dict[ir.Value, ir.Value] = {}
    for before, node in zip(first, last, strict=True):
        inputs: list[ir.Value | None] = []
        for older, value in zip(before.inputs, node.inputs, strict=True):
            if value is not None and value.producer() is None and value not in replaced:
                inputs.append(_own(stack, graph, older, value, layer))
            else:
                inputs.append(None if value is None else made.get(value, replaced.get(value, value)))
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            version=node.version,
            name=stack.renumbered(str(node.name), TRACED_LAYERS - 1, layer),
        )
        for older, old, new in zip(before.outputs, node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type = f"{copy.name}:{old.index()}", _grown(older, old, layer), old.type
            made[old] = new
            renumbered = stack.renumbered(str(old.name), TRACED_LAYERS - 1, layer)
            if old.is_graph_output() and renumbered != old.name:
                new.name = renumbered
                graph.outputs.append(new)
    return made


def _grown(older: ir.Value, old: ir.Value, layer: int) -> ir.Shape | None:
    """The shape of a further layer's value; sizes that grew from layer to layer go on growing."""
    if older.shape is None or old.shape is None:
        return old.shape
    steps = layer - TRACED_LAYERS + 1
    return ir.Shape(
        [
            now + steps * (now - before) if isinstance(now, int) and isinstance(before, int) else now
            for before, now in zip(older.shape, old.shape, strict=True)
        ]
    )


def _own(stack: Stack, graph: ir.Graph, older: ir.Value | None, value: ir.Value, layer: int) -> ir.Value:
    """The weight, input or constant of another layer that stands for `value`; what is shared is itself."""
    now, before = _whole_numbers(value), None if older is None else _whole_numbers(older)
    if now is not None and before is not None:
        return _next_numbers(graph, value, now + (layer - TRACED_LAYERS + 1) * (now - before))
    name = stack.renumbered(str(value.name), TRACED_LAYERS - 1, layer)
    if name == value.name:
        return value
    known = graph.initializers.get(name) or next((given for given in graph.inputs if given.name == name), None)
    if known is not None:
        return known
    own = ir.Value(name=name, shape=value.shape, type=value.type)
    if value.is_initializer():
        graph.initializers[name] = own
    else:
        graph.inputs.append(own)
    return own


def _next_numbers(graph: ir.Graph, value: ir.Value, numbers: np.ndarray) -> ir.Value:
    """A constant of the same type that holds other numbers; one that exists is given again."""
    old = _whole_numbers(value)
    if old is not None and np.array_equal(old, numbers):
        return value
    name = f"constant.{value.dtype}.{'x'.join(map(str, numbers.shape))}.{numbers.ravel().tolist()}"
    if name not in graph.initializers:
        tensor = ir.tensor(numbers.astype(old.dtype if old is not None else numbers.dtype), name=name)
        graph.initializers[name] = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
    return graph.initializers[name]


def _layer(value: ir.Value, prefix: str) -> int:
    """Number of the layer that a graph input or output belongs to; -1 for none."""
    name = str(value.name)
    return int(name[len(prefix) + 1 :].split(".")[0]) if prefix and name.startswith(f"{prefix}.") else -1


def _replace(values: MutableSequence[ir.Value], wanted: Sequence[ir.Value]) -> None:
    values.clear()
    values.extend(wanted)

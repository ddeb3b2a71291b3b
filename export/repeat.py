"""Repeat a traced layer, so that a deep model costs the tracing of three layers.

In: a graph of three like layers, whose nodes are named by the path of their module. Out: the same graph with as many
layers as the model has. The third layer is copied only after it was found to be the second one under another number;
whatever both read besides their own weights, caches and the residual stream is shared. Does not know what a layer does.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass

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
    incoming, stream = _stream(stack, first, last)
    following = [use for use in stream.uses() if use.node not in last]
    behind = list(graph)[max(index for index, node in enumerate(graph) if node in last) + 1]
    previous = stream
    for layer in range(TRACED_LAYERS, stack.layers):
        copies = _copy(stack, graph, last, layer, {incoming: previous})
        graph.insert_before(behind, copies)
        previous = copies[last.index(_producer(stream))].outputs[0]
    for node, index in following:
        node.replace_input_with(index, previous)
    if stream.is_graph_output():
        stream.name, previous.name = f"{_producer(stream).name}:0", stream.name
        _replace(graph.outputs, [previous if value is stream else value for value in graph.outputs])
    for values, prefix in ((graph.inputs, stack.inputs), (graph.outputs, stack.outputs)):
        _replace(values, sorted(values, key=lambda value: _layer(value, prefix)))


def _require_alike(stack: Stack, first: Sequence[ir.Node], last: Sequence[ir.Node]) -> None:
    """Node for node the same operator, attributes and inputs, but for the number of the layer."""
    old, new = TRACED_LAYERS - 2, TRACED_LAYERS - 1
    alike = len(first) == len(last) > 0
    for one, other in zip(first, last, strict=False):
        wanted = [_moved(stack, value, old, new) for value in one.inputs]
        found = [value.name if value is not None else None for value in other.inputs]
        # The stream into the second layer comes from the first one, whose number moves along with it.
        wanted = [stack.renumbered(name, old - 1, old) if name else name for name in wanted]
        found = [stack.renumbered(name, old - 1, old) if name else name for name in found]
        attributes = _attributes(one) == _attributes(other)
        alike = alike and (one.domain, one.op_type) == (other.domain, other.op_type) and attributes and wanted == found
    if not alike:
        raise ExportError(
            f"expected the traced layers of {stack.path} to be alike, found {len(first)} and {len(last)} nodes that "
            "differ; this model cannot be exported layer by layer, please report it with its config.json"
        )


def _moved(stack: Stack, value: ir.Value | None, old: int, new: int) -> str | None:
    return None if value is None or value.name is None else stack.renumbered(value.name, old, new)


def _attributes(node: ir.Node) -> Mapping[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _stream(stack: Stack, first: Sequence[ir.Node], last: Sequence[ir.Node]) -> tuple[ir.Value, ir.Value]:
    """The one value that a layer takes from the one before, and its counterpart that it gives to the next."""
    made = {value: (node, index) for node in first for index, value in enumerate(node.outputs)}
    passed = {value for node in last for value in node.inputs if value in made}
    if len(passed) != 1:
        raise ExportError(f"expected one value from layer to layer of {stack.path}, found {len(passed)}")
    incoming = passed.pop()
    node, index = made[incoming]
    return incoming, last[first.index(node)].outputs[index]


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None or value.index() != 0:
        raise ExportError(f"expected {value.name} to be the first output of a node")
    return node


def _copy(
    stack: Stack, graph: ir.Graph, source: Sequence[ir.Node], layer: int, replaced: dict[ir.Value, ir.Value]
) -> list[ir.Node]:
    """Nodes of a further layer; `replaced` says what they read instead, and grows."""
    for value in dict.fromkeys(value for node in source for value in node.inputs if value is not None):
        if value.producer() is None:
            replaced[value] = _own(stack, graph, value, layer)
    copies = []
    for node in source:
        inputs = [None if value is None else replaced.get(value, value) for value in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            version=node.version,
            name=stack.renumbered(str(node.name), TRACED_LAYERS - 1, layer),
        )
        copies.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type = f"{copy.name}:{old.index()}", old.shape, old.type
            replaced[old] = new
            renumbered = stack.renumbered(str(old.name), TRACED_LAYERS - 1, layer)
            if old.is_graph_output() and renumbered != old.name:
                new.name = renumbered
                graph.outputs.append(new)
    return copies


def _own(stack: Stack, graph: ir.Graph, value: ir.Value, layer: int) -> ir.Value:
    """The weight or graph input of another layer that stands for `value`; what is shared is itself."""
    name = stack.renumbered(str(value.name), TRACED_LAYERS - 1, layer)
    if name == value.name:
        return value
    own = ir.Value(name=name, shape=value.shape, type=value.type)
    if value.is_initializer():
        graph.initializers[name] = own
    else:
        graph.inputs.append(own)
    return own


def _layer(value: ir.Value, prefix: str) -> int:
    """Number of the layer that a graph input or output belongs to; -1 for none."""
    name = str(value.name)
    return int(name[len(prefix) + 1 :].split(".")[0]) if prefix and name.startswith(f"{prefix}.") else -1


def _replace(values: MutableSequence[ir.Value], wanted: Sequence[ir.Value]) -> None:
    values.clear()
    values.extend(wanted)

"""Tables of embeddings with a quarter of their bytes, of which only the rows that are read are ever made floats.

In: a node that gathers rows of a table. Out: nodes that gather four weights to an INT32 and take them apart. ONNX
Runtime would gather INT8 rows as well, but TensorRT refuses an INT8 constant that no DequantizeLinear reads ("Quantized
constant is only allowed before DQ"), and one before the Gather would make the whole table floats at every step.

A row of d weights with its scale s is d / 4 integers: word j holds the channels j, j + d/4, j + d/2 and j + 3d/4 as the
digits q + 107 of a number to the base 215, the largest whose four digits stay below 2 ** 31: no operator sees a
negative number, whose division ONNX leaves to the runtime. 215 instead of 255 levels cost 1.5 dB of some 45.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from voxedge.calibration.quantise.graph import (
    FLOAT_TYPES,
    EditedGraph,
    add_constant,
    add_initialiser,
    new_node,
    replace_node,
)
from voxedge.calibration.quantise.plan import WeightedNode
from voxedge.calibration.quantise.rounding import Grid, Rounded, Scales
from voxedge.engines.errors import ExportError
from voxedge.engines.lazy import Block

DIGITS = 4
BASE = 215
LARGEST = BASE // 2


@dataclass(slots=True)
class Packed:
    """Integers of a table [rows, d], four to a word [rows, d / 4] INT32; a `LazyTensor`."""

    integers: Rounded
    """Within -107 .. 107."""

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.integers.name

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, d / 4]."""
        rows, width = self.integers.shape
        return (rows, width // DIGITS)

    @property
    def dtype(self) -> str:
        """Type of the words."""
        return "int32"

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Whole rows.

        Raises:
            ExportError: The table does not arrive in whole rows.
        """
        width = self.integers.shape[1]
        place = (BASE ** np.arange(DIGITS, dtype=np.int32)).reshape(-1, 1)
        for (rows, columns), values in self.integers.blocks(max_bytes):
            if columns != slice(0, width):
                raise ExportError(f"{self.name}: expected rows of less than {max_bytes} bytes, found one of {width}")
            digits = values.astype(np.int32).reshape(-1, DIGITS, width // DIGITS) + LARGEST  # [r, 4, d / 4]
            yield (rows, slice(0, width // DIGITS)), (digits * place).sum(1, dtype=np.int32)


def fits_table(node: WeightedNode) -> bool:
    """Whether four channels make a word throughout."""
    return node.shape[1] % DIGITS == 0


def store_table(graph: EditedGraph, model: ir.Model, node: ir.Node, found: WeightedNode) -> None:
    """Replace a Gather of floats [rows, d] at ids [...]; the new nodes give [..., d] in the same type."""
    words, scales = _initialisers(graph, model, found)
    ids, result, dtype = node.inputs[1], node.outputs[0], FLOAT_TYPES[found.stored]
    if ids is None or result.shape is None:
        raise ExportError(f"{found.path}: expected ids and a shape")
    lead, width = list(result.shape[:-1]), found.shape[1]
    axis = add_constant(model, f"axis.{len(lead)}", np.array([len(lead)]))
    place = add_constant(model, "digits.place", (BASE ** np.arange(DIGITS, dtype=np.int32)).reshape(-1, 1))
    base = add_constant(model, "digits.base", np.array(BASE, np.int32))
    middle = add_constant(model, f"digits.middle.{dtype}", np.array(LARGEST, dtype))
    row = add_constant(model, f"row.{len(lead)}.{width}", np.array([0] * len(lead) + [width]))
    split = ir.Shape([*lead, DIGITS, width // DIGITS])
    picked = new_node(node, "Gather", [words, ids], "int32", ir.Shape([*lead, width // DIGITS]), {"axis": 0})
    apart = new_node(node, "Unsqueeze", [picked, axis], "int32", ir.Shape([*lead, 1, width // DIGITS]))
    shifted = new_node(node, "Div", [apart, place], "int32", split)
    digits = new_node(node, "Mod", [shifted, base], "int32", split)
    flat = new_node(node, "Reshape", [digits, row], "int32", result.shape)
    floats = new_node(node, "Cast", [flat], dtype, result.shape, {"to": int(ir.DataType.from_numpy(np.dtype(dtype)))})
    centred = new_node(node, "Sub", [floats, middle], dtype, result.shape)
    factors = new_node(node, "Gather", [scales, ids], dtype, ir.Shape([*lead, 1]), {"axis": 0})
    replace_node(node, new_node(node, "Mul", [centred, factors], dtype, result.shape))
    gather = picked.producer()
    if gather is not None:
        gather.name = found.path  # the layer keeps its name in reports and rules
        picked.name = f"{found.path}.words:0"  # the next table of this module takes the number that is free again


def _initialisers(graph: EditedGraph, model: ir.Model, found: WeightedNode) -> tuple[ir.Value, ir.Value]:
    """Words [rows, d / 4] and scales [rows, 1], shared by all nodes that read the table."""
    name, scales_name = f"{found.weight}.int8.words", f"{found.weight}.int8.words.scale"
    scales = graph.sources.get(scales_name)
    if not isinstance(scales, Scales):
        grid = Grid(axis=1, block=found.shape[1], bits=8, largest=LARGEST)
        scales = Scales(graph.sources[found.weight], grid, FLOAT_TYPES[found.stored])
        graph.sources[scales_name], graph.sources[name] = scales, Packed(Rounded(scales))
    scale = add_initialiser(model, scales_name, scales.dtype, scales.shape)
    return add_initialiser(model, name, "int32", graph.sources[name].shape), scale

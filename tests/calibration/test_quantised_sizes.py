"""How small a language model's weights become, on shapes of which alignment and scales are not the most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from toy_layers import run_graph, toy_graph

from voxedge.calibration.metrics import snr_db
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.plan import plan_graph
from voxedge.calibration.quantise.weight_only import layer_spec, store_weights

ROWS, WIDTH, INNER = 512, 256, 1024

# A table of embeddings, a gated feed-forward and a head: a seventh of the weights are in the table.
LAYERS = f"""<ir_version: 9, opset_import: ["" : 20]>
agraph (int64[2, 3] x, float[{ROWS}, {WIDTH}] table, float[{WIDTH}, {INNER}] up, float[{INNER}, {WIDTH}] down,
        float[{WIDTH}, {ROWS}] head) => (float[2, 3, {ROWS}] y) {{
   e = Gather <axis=0> (table, x)
   u = MatMul(e, up)
   d = MatMul(u, down)
   y = MatMul(d, head)
}}"""


@pytest.mark.parametrize(
    ("precision", "block", "limit"),
    [("int8-weight", None, 0.30), ("int8-weight", 32, 0.30), ("int4-weight", 64, 0.20), ("int4-weight", 128, 0.20)],
)
def test_sizes_and_errors(precision: str, block: int | None, limit: float, tmp_path: Path) -> None:
    """Embeddings included; 8 bits err some 45 dB below a normal weight, 4 bits some 20 dB, three layers 5 dB more."""
    random = np.random.default_rng(5)
    shapes = {"table": (ROWS, WIDTH), "up": (WIDTH, INNER), "down": (INNER, WIDTH), "head": (WIDTH, ROWS)}
    weights = {name: random.standard_normal(shape, np.float32) / shape[0] ** 0.5 for name, shape in shapes.items()}
    ids = random.integers(0, ROWS, (2, 3))
    plain, graph = (toy_graph(LAYERS, {name: np.float32(w) for name, w in weights.items()}) for _ in range(2))
    for one in (plain, graph):
        for node in one.models["portable"].graph:
            node.outputs[0].shape = node.outputs[0].shape or shape_of_output(node.op_type)
    config = QuantiseConfig(precision, block_size=block)  # type: ignore[arg-type]
    nodes = graph.weighted_nodes()
    layers = plan_graph("toy", nodes, config.default_layer, ())
    store_weights(graph, {node.path: layer_spec(node, layers[node.path], config) for node in nodes})
    true, got = run_graph(plain, tmp_path / "plain", ids), run_graph(graph, tmp_path / "small", ids)
    sizes = [(tmp_path / name / "toy.data").stat().st_size for name in ("small", "plain")]
    assert sizes[0] / sizes[1] <= limit
    assert snr_db(true["y"], got["y"]) > (35.0 if precision == "int8-weight" else 12.0)


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_nodes_that_read_one_matrix_share_its_floats(precision: str, tmp_path: Path) -> None:
    """As the channels of a frame do."""
    text = """<ir_version: 9, opset_import: ["" : 20]> agraph (float[3, 64] x, float[64, 64] w) => (float[3, 64] y) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        y = MatMul(b, w)
    }"""
    random = np.random.default_rng(6)
    w, x = (random.standard_normal(shape, np.float32) / 8 for shape in ((64, 64), (3, 64)))
    plain, graph = (toy_graph(text, {"w": w}) for _ in range(2))
    config = QuantiseConfig(precision)  # type: ignore[arg-type]
    layers = {node.path: layer_spec(node, config.default_layer, config) for node in graph.weighted_nodes()}
    store_weights(graph, layers)
    operators = [node.op_type for node in graph.models["portable"].graph]
    assert sorted(operators) == ["DequantizeLinear", "MatMul", "MatMul", "MatMul"]
    true, got = run_graph(plain, tmp_path / "plain", x), run_graph(graph, tmp_path / "small", x)
    assert snr_db(true["y"], got["y"]) > (35.0 if precision == "int8-weight" else 12.0)


def shape_of_output(_operator: str) -> ir.Shape:
    """[2, 3, d]: only the rank matters."""
    return ir.Shape([2, 3, None])

"""SmoothQuant: the function stays, outliers move, and the error of the products falls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_layers import run_graph, statistics_of, toy_graph

from voxedge.calibration.metrics import snr_db
from voxedge.calibration.quantise.graph import EditedGraph, describe
from voxedge.calibration.quantise.plan import WeightedNode
from voxedge.calibration.quantise.smooth import Group, Smoothing, smooth_group, smoothing_factors

K, N, ROWS = 16, 12, 100

# A norm's weight, two matrices that read it, a gate, the matrix behind the gate, one behind a softmax and one behind a
# linear layer with bias: every way to fold, and one way not to.
BLOCK = f"""<ir_version: 9, opset_import: ["" : 20]>
agraph (float[{ROWS}, {K}] x, float[{K}] norm, float[{K},{N}] gate, float[{K},{N}] up, float[{N},{K}] down,
        float[{K},{K}] out, float[{K},{N}] first, float[{N}] bias, float[{N},{K}] second) => (float[{ROWS},{K}] y,
        float[{ROWS},{K}] z, float[{ROWS},{K}] w) {{
   n = Mul(x, norm)
   g = MatMul(n, gate)
   u = MatMul(n, up)
   s = Sigmoid(g)
   m = Mul(s, u)
   y = MatMul(m, down)
   a = Softmax <axis=-1> (x)
   z = MatMul(a, out)
   f = MatMul(x, first)
   b = Add(f, bias)
   w = MatMul(b, second)
}}"""


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    shapes = {"norm": (K,), "gate": (K, N), "up": (K, N), "down": (N, K), "out": (K, K)}
    shapes |= {"first": (K, N), "bias": (N,), "second": (N, K)}
    found = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found["norm"][3] = 60.0  # one channel far above the others, as language models have them
    found["up"][:, 5] *= 40.0
    found["first"][:, 2] *= 50.0
    return found


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((ROWS, K)).astype(np.float32)


def activations(arrays: dict[str, np.ndarray], x: np.ndarray) -> dict[str, tuple[int, np.ndarray]]:
    n = x * arrays["norm"]
    gated = (n @ arrays["up"]) / (1 + np.exp(np.clip(-(n @ arrays["gate"]), -80, 80)))
    soft = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return {"n": (-1, n), "m": (-1, gated), "a": (-1, soft), "b": (-1, x @ arrays["first"] + arrays["bias"])}


def group(graph: EditedGraph, value: str, x: np.ndarray) -> Group:
    found = statistics_of(activations(weights(), x)).tensor("toy", value)
    nodes = [node for node in graph.models["portable"].graph if node.inputs[0].name == value]  # type: ignore[union-attr]
    described = [describe(node) for node in nodes if node.op_type == "MatMul"]
    given = next(node.inputs[0] for node in nodes)
    assert found is not None
    assert given is not None
    return Group(given, [node for node in described if isinstance(node, WeightedNode)], found)


def smoothed(graph: EditedGraph, value: str, x: np.ndarray) -> Smoothing:
    return smooth_group(graph, group(graph, value, x), "minmax")


@pytest.mark.parametrize(("value", "folded"), [("n", True), ("m", True), ("b", True), ("a", False)])
def test_the_function_stays(value: str, folded: bool, x: np.ndarray, tmp_path: Path) -> None:
    """A factor and its inverse round once each, the products and sums of 16 numbers some 20 times: 2 ** -24 each."""
    graph, plain = toy_graph(BLOCK, weights()), toy_graph(BLOCK, weights())
    if value == "a":
        x[:, 3] += 4  # a softmax has no outlier by itself: most of it goes to one channel
    before = len(list(graph.models["portable"].graph))
    found = smoothed(graph, value, x)
    assert found.alpha is not None
    assert found.gain_db > 0
    assert (found.folded, len(list(graph.models["portable"].graph)) - before) == (folded, 0 if folded else 1)
    true, got = run_graph(plain, tmp_path / "plain", x), run_graph(graph, tmp_path / "smooth", x)
    bound_db = -20 * np.log10(2.0**-24 * 20)
    for name in true:
        assert snr_db(true[name], got[name]) > bound_db


def test_a_search_never_makes_it_worse(x: np.ndarray) -> None:
    graph = toy_graph(BLOCK, {**weights(), "norm": np.ones(K, np.float32)})
    before = {name: source for name, source in graph.sources.items()}
    even = np.where(x > 0, np.float32(1), np.float32(-1))  # every channel alike: nothing to move
    found = statistics_of({"n": (-1, even)}).tensor("toy", "n")
    assert found is not None
    flat = Group(group(graph, "n", x).value, group(graph, "n", x).nodes, found)
    result = smooth_group(graph, flat, "minmax")
    assert result.alpha is None or result.gain_db > 0
    if result.alpha is None:
        assert graph.sources == before


def test_another_reader_forbids_folding(x: np.ndarray) -> None:
    """The scaled activation would reach it too."""
    graph = toy_graph(BLOCK.replace("float[100,16] w)", "float[100,16] w, float[100,16] n)"), weights())
    found = smoothed(graph, "n", x)
    assert found.alpha is not None
    assert not found.folded


def test_a_shared_weight_forbids_folding(x: np.ndarray) -> None:
    graph = toy_graph(BLOCK.replace("w = MatMul(b, second)", "w2 = MatMul(b, second)\n w = Add(w2, norm)"), weights())
    assert not smoothed(graph, "n", x).folded


def test_factors_are_those_of_the_paper() -> None:
    x, w = np.array([4.0, 1.0, 0.0, 2.0], np.float32), np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    # sqrt(4 / 1) and sqrt(1 / 1), divided by their geometric mean; dead channels keep 1.
    np.testing.assert_allclose(smoothing_factors(x, w, 0.5), [np.sqrt(2), np.sqrt(0.5), 1, 1], rtol=1e-6)

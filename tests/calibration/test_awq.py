"""AWQ: the function stays, and 4-bit products err less where some channels are loud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_smooth import BLOCK, ROWS, K, activations, weights
from toy_layers import run_graph, statistics_of, toy_graph

from voxedge.calibration.metrics import snr_db
from voxedge.calibration.quantise.awq import balance, balancing_factors, search
from voxedge.calibration.quantise.plan import WeightedNode
from voxedge.calibration.quantise.rounding import Grid, dequantised
from voxedge.calibration.quantise.weight_only import store_weights
from voxedge.engines.manifest import LayerSpec

PRODUCTS = ("g", "u", "y", "z", "f", "w")
FOUR_BITS = {f"/{name}/MatMul": LayerSpec("int4-weight", 16) for name in PRODUCTS}
# As exported at FP16: a norm in FP32, a cast, and products of FP16 values with FP16 weights.
HALF = f"""<ir_version: 9, opset_import: ["" : 20]>
agraph (float[{ROWS}, {K}] x, float[{K}] norm, float16[{K},12] gate, float16[{K},{K}] out)
        => (float[{ROWS},12] y, float[{ROWS},{K}] z) {{
   n = Mul(x, norm)
   nh = Cast <to=10> (n)
   g = MatMul(nh, gate)
   y = Cast <to=1> (g)
   a = Softmax <axis=-1> (x)
   ah = Cast <to=10> (a)
   o = MatMul(ah, out)
   z = Cast <to=1> (o)
}}"""


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((ROWS, K)).astype(np.float32)


def test_the_function_stays(x: np.ndarray, tmp_path: Path) -> None:
    """Before rounding: a factor and its inverse round once each, products and sums of 16 numbers some 20 times."""
    graph, plain = toy_graph(BLOCK, weights()), toy_graph(BLOCK, weights())
    found = {item.value: item for item in balance(graph, FOUR_BITS, statistics_of(activations(weights(), x)))}
    assert found["n"].alpha is not None
    assert found["n"].folded
    assert found["n"].gain_db > 0
    assert any(graph.sources[name] is not plain.sources[name] for name in ("norm", "gate", "up"))
    true, got = run_graph(plain, tmp_path / "plain", x), run_graph(graph, tmp_path / "balanced", x)
    for name in true:
        assert snr_db(true[name], got[name]) > -20 * np.log10(2.0**-24 * 20)


def test_factors_pass_the_casts_of_an_fp16_graph(x: np.ndarray, tmp_path: Path) -> None:
    """Folded into the FP32 norm behind the cast, or multiplied in FP16 where there is nothing to fold into.

    Values and weights are rounded to 11 bits before and after: 2 ** -11 of a product each, and sums of 16 of them.
    """
    arrays = {name: weights()[name] for name in ("norm", "gate", "out")}
    arrays["out"][4] *= 0.3  # small weights of a loud channel: there is something to gain
    layers = {f"/{name}/MatMul": LayerSpec("int4-weight", 16) for name in ("g", "o")}
    softened = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    softened[:, 4] *= 30.0  # what the search is told, so that it finds something
    known = statistics_of({"nh": (-1, x * arrays["norm"]), "ah": (-1, softened)})
    graph, plain, rounded = (toy_graph(HALF, arrays) for _ in range(3))
    found = {item.value: item for item in balance(graph, layers, known)}
    assert {name: (item.alpha is not None, item.folded) for name, item in found.items()} == {
        "nh": (True, True),
        "ah": (True, False),
    }
    true, got = run_graph(plain, tmp_path / "plain", x), run_graph(graph, tmp_path / "balanced", x)
    assert all(snr_db(true[name], got[name]) > -20 * np.log10(2.0**-11 * 4) for name in true)
    store_weights(graph, layers)
    store_weights(rounded, layers)
    better, worse = run_graph(graph, tmp_path / "awq", x), run_graph(rounded, tmp_path / "rounded", x)
    assert snr_db(true["y"], better["y"]) > snr_db(true["y"], worse["y"])


def test_rounded_products_err_less(x: np.ndarray, tmp_path: Path) -> None:
    """The whole way, by ONNX Runtime, against FP32; every output is behind a loud channel."""
    true = run_graph(toy_graph(BLOCK, weights()), tmp_path / "true", x)
    found = {}
    for balanced in (False, True):
        graph = toy_graph(BLOCK, weights())
        if balanced:
            balance(graph, FOUR_BITS, statistics_of(activations(weights(), x)))
        store_weights(graph, FOUR_BITS)
        got = run_graph(graph, tmp_path / str(balanced), x)
        found[balanced] = {name: snr_db(true[name], got[name]) for name in true}
    print(found)  # noqa: T201
    assert all(found[True][name] > found[False][name] for name in ("y", "w"))


@pytest.mark.parametrize("block", [32, 64, 128])
def test_loud_channels_of_a_middling_matrix(block: int) -> None:
    """On rows that the search has not seen; `pytest -s` shows the decibels."""
    random = np.random.default_rng(3)
    loud = np.where(random.random(256) < 0.02, np.float32(30), np.float32(1))
    rows = random.standard_normal((512, 256), np.float32) * loud
    matrix = random.standard_normal((256, 128), np.float32) / 16
    node = WeightedNode("/MatMul", "MatMul", "w", matrix.shape, "fp32")
    found = statistics_of({"x": (-1, rows[:256])}).tensor("toy", "x")
    assert found is not None
    alpha, gain = search(found, [matrix], [(node, LayerSpec("int4-weight", block))])
    assert alpha is not None
    unseen, grid = rows[256:], Grid(0, block, 4)
    factors = balancing_factors(found.channel_mean, alpha)
    plain = snr_db(unseen @ matrix, unseen @ dequantised(matrix, grid))
    scaled = dequantised(matrix * factors[:, None], grid)
    awq = snr_db(unseen @ matrix, (unseen / factors) @ scaled)
    print(f"block {block}: RTN {plain:.1f} dB, AWQ {awq:.1f} dB, alpha {alpha}, {gain:.1f} dB on samples")  # noqa: T201
    assert gain > 0
    assert awq > plain


def test_nothing_is_changed_without_gain() -> None:
    """Channels that are all alike; a factor would be one of nothing but rounding luck."""
    even = np.where(np.random.default_rng(4).random((ROWS, K)) < 0.5, np.float32(1), np.float32(-1))
    graph = toy_graph(BLOCK, weights())
    before = dict(graph.sources)
    [found] = balance(graph, FOUR_BITS, statistics_of({"n": (-1, even)}))
    assert found.alpha is None
    assert graph.sources == before


def test_eight_bits_are_left_alone(x: np.ndarray) -> None:
    layers = {path: LayerSpec("int8-weight") for path in FOUR_BITS}
    assert balance(toy_graph(BLOCK, weights()), layers, statistics_of(activations(weights(), x))) == []

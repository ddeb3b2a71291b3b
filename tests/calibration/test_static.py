"""W8A8: where Q and DQ stand and what they cost; `test_quantised_engines` has what NVIDIA's parser makes of them."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_voice import tiny_voice
from toy_layers import run_graph, statistics_of, toy_graph

from voxedge.calibration.collect import CollectConfig, collect_statistics
from voxedge.calibration.graph_check import check_graphs
from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.cpu_form import CpuChoice
from voxedge.calibration.quantise.graph import EditedGraph
from voxedge.calibration.quantise.plan import Rule
from voxedge.calibration.quantise.static import PORTABLE, Form, ort_form, quantise_activations
from voxedge.calibration.quantise.weight_only import store_weights
from voxedge.calibration.recording import Recording
from voxedge.calibration.sets import CalibrationSet, Line
from voxedge.calibration.speaking import Probe, speak
from voxedge.calibration.statistics import Statistics
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import InputError
from voxedge.engines.manifest import Flavour, LayerSpec
from voxedge.engines.processor import int8_products_saturate

LINES = CalibrationSet("two", (Line("Hello there."), Line("One, two.", "A calm voice.")))
PRODUCTS = ("MatMul", "Conv", "ConvTranspose")
PROBE = Probe("Hello.", min_tokens=6, max_tokens=6, steps=3)

# one layer

ROWS, K, N = 40, 24, 10
LAYERS = {
    "MatMul": (f"float[{ROWS},{K}] x, float[{K},{N}] w", "MatMul(x, w)", (K, N), -1),
    "Conv": (f"float[1,{K},{ROWS}] x, float[{N},{K},3] w", "Conv(x, w)", (N, K, 3), 1),
    "ConvTranspose": (f"float[1,{K},{ROWS}] x, float[{K},{N},4] w", "ConvTranspose <strides=[2]> (x, w)", (K, N, 4), 1),
}


@pytest.mark.parametrize("operator", PRODUCTS)
def test_a_layer_is_within_the_sum_of_its_steps(operator: str, tmp_path: Path) -> None:
    """The layer itself adds the steps up, run on them.

    With ranges that clip nothing |dx| <= sx / 2 and |dw| <= sw / 2, so each product is off by at most
    |w| sx / 2 + |x| sw / 2 + sx sw / 4.
    """
    inputs, call, shape, axis = LAYERS[operator]
    random = np.random.default_rng(0)
    w = random.standard_normal(shape).astype(np.float32)
    x = random.standard_normal((ROWS, K) if axis == -1 else (1, K, ROWS)).astype(np.float32)
    text = f'<ir_version: 9, opset_import: ["" : 20]> agraph ({inputs}) => (float[] y) {{ y = {call} }}'
    graph, plain, bound = (toy_graph(text, {"w": weight}) for weight in (w, w, np.abs(w)))
    config = QuantiseConfig("int8", ranges="minmax", smooth=False)
    layers = {f"/y/{operator}": LayerSpec("int8")}
    quantise_activations(graph, layers, statistics_of({"x": (axis, x)}), config, {"portable": PORTABLE})
    graph.drop_unused()
    found, true = run_graph(graph, tmp_path / "int8", x)["y"], run_graph(plain, tmp_path / "fp32", x)["y"]
    channels = 1 if operator != "Conv" else 0
    others = tuple(other for other in range(w.ndim) if other != channels)
    sx, sw = np.abs(x).max() / 127, np.abs(w).max(axis=others, keepdims=True) / 127.5
    shares = ((np.full_like(x, sx / 2), np.abs(w)), (np.abs(x) + sx / 2, np.broadcast_to(sw / 2, shape)))
    limit = np.zeros_like(true)
    for index, (given, weight) in enumerate(shares):
        bound.sources["w"].array[:] = weight  # type: ignore[attr-defined]
        limit += run_graph(bound, tmp_path / f"bound{index}", given.astype(np.float32))["y"]
    error = np.abs(found - true)
    assert np.all(error <= limit * (1 + 1e-5))
    assert error.max() > 0


def test_processors_without_vnni_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get U8 by U8, also beside weights that are only stored as INT8; saturated, pairs of 1 * 1 would be halved.

    The steps of both weights are 1 / 127.5, so 127 of them lack 1 / 255; ONNX Runtime rounds z to 8 bits, 2 ** -8 / 2.
    """
    w, x = np.full((K, N), 1.0, np.float32), np.full((ROWS, K), 1.0, np.float32)
    text = (
        f'<ir_version: 9, opset_import: ["" : 20]> agraph (float[{ROWS},{K}] x, float[{K},{N}] w, float[{N},{K}] v)'
        " => (float[] y) { z = MatMul(x, w) y = MatMul(z, v) }"
    )
    graph = toy_graph(text, {"w": w, "v": w.T.copy()})
    layers = {"/z/MatMul": LayerSpec("int8"), "/y/MatMul": LayerSpec("int8-weight")}
    config = QuantiseConfig("int8", ranges="minmax", smooth=False)
    quantise_activations(graph, layers, statistics_of({"x": (-1, x)}), config, {"portable": PORTABLE})
    store_weights(graph, layers)
    for saturate in {True, int8_products_saturate()}:
        monkeypatch.setattr("voxedge.engines.ort.int8_products_saturate", lambda answer=saturate: answer)
        found = run_graph(graph, tmp_path / str(saturate), x)["y"]
        np.testing.assert_allclose(found, x @ w @ w.T, rtol=2 / 255 + 2**-9)


def test_frames_share_their_floats_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two channels of a frame step, which read one matrix; ones, as above, of which saturation would halve pairs."""
    w, x = np.full((K, K), 1.0, np.float32), np.full((ROWS, K), 1.0, np.float32)
    text = (
        f'<ir_version: 9, opset_import: ["" : 20]> agraph (float[{ROWS},{K}] x, float[{K},{K}] w)'
        " => (float[] y) { z = MatMul(x, w) y = MatMul(z, w) }"
    )
    toy, other = (toy_graph(text, {"w": w}) for _ in range(2))
    models: dict[Flavour, ir.Model] = {"portable": toy.models["portable"], "ort": other.models["portable"]}
    graph = EditedGraph("toy", models, toy.sources, weight_uses=2)
    layers = {"/z/MatMul": LayerSpec("int8"), "/y/MatMul": LayerSpec("int8")}
    config = QuantiseConfig("int8", ranges="minmax")
    forms: dict[Flavour, Form] = {"portable": PORTABLE, "ort": ort_form("integer")}
    quantise_activations(graph, layers, statistics_of({"x": (-1, x), "z": (-1, x @ w)}), config, forms)
    readers = {flavour: len(model.graph.initializers["w.int8"].uses()) for flavour, model in models.items()}
    assert readers == {"portable": 2, "ort": 1}
    for saturate in {True, int8_products_saturate()}:
        monkeypatch.setattr("voxedge.engines.ort.int8_products_saturate", lambda answer=saturate: answer)
        found = run_graph(graph, tmp_path / str(saturate), x, "ort")["y"]
        np.testing.assert_allclose(found, x @ w @ w, rtol=2 / 255 + 2**-9)


# a whole voice


@pytest.fixture(scope="module")
def voice() -> Bundle:
    return Bundle.open(tiny_voice())


@pytest.fixture(scope="module")
def statistics(voice: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    path = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    return collect_statistics(voice, LINES, path, CollectConfig(max_tokens=8, threads=1), lambda *step: None)


@pytest.fixture(scope="module")
def quantised(voice: Bundle, statistics: Statistics, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Smoothed, the vocoder of the CPU as integers, without measuring which is faster."""
    folder = tmp_path_factory.mktemp("quantised") / "int8"
    return quantise_bundle(voice.root, folder, QuantiseConfig("int8", cpu_form="integer"), statistics)


def load(bundle: Bundle, name: str, flavour: str = "portable") -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    path = bundle.graph_path(bundle.manifest.graph(name, flavour))  # type: ignore[arg-type]
    model = onnx.load(str(path))
    return model, {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def portable(bundle: Bundle) -> list[str]:
    return [spec.name for spec in bundle.manifest.graphs if spec.flavour == "portable"]


def test_every_int8_layer_has_q_and_dq_at_both_operands(quantised: Bundle) -> None:
    seen = dict.fromkeys(PRODUCTS, 0)
    for name in portable(quantised):
        model, arrays = load(quantised, name)
        made = {output: node for node in model.graph.node for output in node.output}
        layers = quantised.manifest.graph(name).layers
        for node in model.graph.node:
            if node.op_type not in PRODUCTS or layers.get(node.name) != LayerSpec("int8"):
                continue
            seen[node.op_type] += 1
            activation, weight = made[node.input[0]], made[node.input[1]]
            quantise = made[activation.input[0]]
            assert (activation.op_type, quantise.op_type, weight.op_type) == (
                "DequantizeLinear",
                "QuantizeLinear",
                "DequantizeLinear",
            )
            assert list(activation.input[1:]) == list(quantise.input[1:])
            zero, scale = arrays[quantise.input[2]], arrays[quantise.input[1]]
            assert (zero.dtype, zero.shape, int(zero), scale.shape) == (np.int8, (), 0, ())
            integers = arrays[weight.input[0]]
            axis = 0 if node.op_type == "Conv" else 1
            assert integers.dtype == np.int8
            assert np.abs(integers.astype(int)).max() <= 127
            assert arrays[weight.input[1]].shape == (integers.shape[axis],)
            assert [item.i for item in weight.attribute if item.name == "axis"] == [axis]
            assert not arrays[weight.input[2]].any()
            for bias in node.input[2:]:
                assert arrays[bias].dtype == np.float32
    assert all(seen.values()), seen


def test_islands_and_rules_stay(voice: Bundle, statistics: Statistics, quantised: Bundle, tmp_path: Path) -> None:
    layers = quantised.manifest.graph("dit").layers
    assert {layers[path].precision for path in layers if "timestep" in path or "global_cond" in path} <= {
        "fp32",
        "int8-weight",
    }
    rules = (Rule("/layers.0/*", "fp32"), Rule("/head/MatMul", "int8-weight"))
    config = QuantiseConfig("int8", rules=rules, cpu_form="integer")
    mixed = quantise_bundle(voice.root, tmp_path / "mixed", config, statistics)
    model, _ = load(mixed, "speech_expert")
    quantise = {node.name for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert quantise
    assert not any(name.startswith("/layers.0/") or name.startswith("/head/") for name in quantise)


def test_flavours_hold_the_same_values(voice: Bundle, quantised: Bundle) -> None:
    """int8 with 0 and uint8 with 128 are the same numbers.

    What differs is the order of FP32 sums, 2 ** -24 each, and a value that this puts on the other side of a rounding:
    one step of one product among many.
    """
    recording = Recording(limit=2)
    speak(voice, PROBE, recording)
    reports, failures = check_graphs(quantised, voice, recording, lambda *step: None)
    assert failures == []
    against = {(report.name, report.against): report for report in reports if report.flavour == "ort"}
    for name in ("text_expert", "speech_expert", "dit"):
        same, true = against[name, "portable"], against[name, "reference"]
        assert same.worst is not None
        assert true.worst is not None
        assert same.worst.snr_db > true.worst.snr_db + 10.0  # far nearer to each other than to FP32
    assert all(report.finite == 1.0 for report in reports)


def test_the_cpu_has_its_own_form(quantised: Bundle) -> None:
    model, arrays = load(quantised, "vae_decoder", "ort")
    made = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    layers = quantised.manifest.graph("vae_decoder", "ort").layers
    whole = 0
    for node in model.graph.node:
        if node.op_type == "ConvTranspose":
            assert layers[node.name] == LayerSpec("int8-weight")
            assert made[node.input[0]].op_type != "DequantizeLinear"
        elif node.op_type == "Conv" and readers[node.output[0]] == ["QuantizeLinear"]:
            whole += 1
            assert arrays[made[node.input[2]].input[0]].dtype == np.int32
            zero = made[made[node.input[0]].input[0]].input[2]
            assert (arrays[zero].dtype, int(arrays[zero])) == (np.uint8, 128)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert whole == convolutions - 1  # all but the one that gives the audio


@pytest.mark.parametrize("form", ["integer", "float"])
def test_the_cpus_form_is_measured_recorded_and_told(
    form: str,
    voice: Bundle,
    statistics: Statistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = {"integer": 1.0, "float": 1.0, "fp32": 1.0, form: 0.5}
    monkeypatch.setattr("voxedge.calibration.quantise.cpu_form.fastest_ms", lambda engines, feeds: times)
    config = QuantiseConfig("mixed", base="fp32", rules=(Rule("vae_decoder:*", "int8"),))
    with caplog.at_level(logging.WARNING):
        bundle = quantise_bundle(voice.root, tmp_path / "out", config, statistics)
    notes = json.loads(bundle.path("reports/quantise.json").read_text())
    found = next(note["cpu"] for note in notes["graphs"] if note["graph"] == "vae_decoder")
    assert (found["form"], found["measured"], found["fp32_ms"]) == (form, True, 1.0)
    assert notes["statistics"]["bundle_sha256"] == statistics.provenance.bundle_sha256
    assert ("INT8 is slower than FP32 on this CPU" in caplog.text) == (form == "float")
    operators = {node.op_type for node in load(bundle, "vae_decoder", "ort")[0].graph.node}
    assert ("QuantizeLinear" in operators) == (form == "integer")
    portable_operators = {node.op_type for node in load(bundle, "vae_decoder")[0].graph.node}
    assert "QuantizeLinear" in portable_operators


def test_the_clock_is_read_in_turns() -> None:
    from voxedge.calibration.quantise.cpu_form import fastest_ms

    order: list[str] = []

    class Engine:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feeds: dict[str, Any]) -> None:
            order.append(self.name)

    found = fastest_ms({"a": Engine("a"), "b": Engine("b")}, {})  # type: ignore[dict-item]
    assert order[:4] == ["a", "b", "a", "b"]
    assert set(found) == {"a", "b"}
    assert all(np.isfinite(list(found.values())))
    assert "faster" in CpuChoice("integer", True, 2.0, 1.0, 2.0).sentence("vae_decoder")


def test_statistics_are_needed_and_must_be_whole(voice: Bundle, statistics: Statistics, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="voxedge calibrate"):
        quantise_bundle(voice.root, tmp_path / "a", QuantiseConfig("int8"))
    other = Statistics.of(dataclasses.replace(statistics.provenance, bundle_sha256="f" * 64), {})
    with pytest.raises(InputError, match="another one"):
        quantise_bundle(voice.root, tmp_path / "b", QuantiseConfig("int8"), other)
    with pytest.raises(InputError, match="nothing that was said reached it"):
        empty = Statistics.of(statistics.provenance, {})
        quantise_bundle(voice.root, tmp_path / "c", QuantiseConfig("int8", cpu_form="integer"), empty)
    assert list(tmp_path.iterdir()) == []

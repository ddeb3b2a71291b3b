"""Quantised copies of the small bundle: what every layer became, what runs, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.plan import Rule, parse_rule
from voxedge.calibration.speaking import Probe, speak
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BuildError, ConfigError, InputError
from voxedge.engines.manifest import Flavour, LayerSpec
from voxedge.engines.trt.api import Library
from voxedge.engines.trt.config import check_parser
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint
from voxedge.runtime.audio import check_audio

WEIGHT_ONLY = ("int8-weight", "int4-weight")


@pytest.fixture(scope="module")
def quantised(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The small bundle at a precision, made once."""
    folder = tmp_path_factory.mktemp("quantised")

    def make(precision: str) -> Bundle:
        if not (folder / precision).exists():
            quantise_bundle(fp32_bundle, folder / precision, QuantiseConfig(precision))  # type: ignore[arg-type]
        return Bundle.open(folder / precision)

    return make


@pytest.mark.parametrize("precision", WEIGHT_ONLY)
def test_every_precision_speaks(precision: str, quantised: Callable[[str], Bundle]) -> None:
    spoken = speak(quantised(precision), Probe())
    assert check_audio(spoken.samples).peak > 0


@pytest.mark.parametrize("precision", WEIGHT_ONLY)
def test_weights_are_within_half_a_step_of_the_source(
    precision: str, quantised: Callable[[str], Bundle], fp32_bundle: Path
) -> None:
    """Read back by ONNX itself, which knows its own packing."""
    bundle, source = quantised(precision), Bundle.open(fp32_bundle)
    for spec in bundle.manifest.graphs:
        found, true = (read_weights(one, spec.name, spec.flavour) for one in (bundle, source))
        for node in found[0].graph.node:
            if node.op_type != "DequantizeLinear" or node.input[0] not in found[1]:
                continue
            name = node.input[0].split(".int")[0]
            integers, scales = (found[1][key] for key in node.input[:2])
            attributes = {item.name: item.i for item in node.attribute}
            if "block_size" in attributes:
                step = np.repeat(scales, attributes["block_size"], attributes["axis"])
            else:
                step = scales.reshape([-1 if axis == attributes["axis"] else 1 for axis in range(integers.ndim)])
            weight = true[1][name]
            assert np.all(np.abs(weight - step * integers.astype(np.float32)) <= step / 2 + np.abs(weight) * 2.0**-22)


def read_weights(bundle: Bundle, name: str, flavour: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    path = bundle.graph_path(bundle.manifest.graph(name, flavour))  # type: ignore[arg-type]
    model = onnx.load(str(path))
    return model, {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def test_the_map_names_every_layer(quantised: Callable[[str], Bundle]) -> None:
    graph = quantised("int4-weight").manifest.graph("speech_expert", "ort")
    assert graph.precision == "int4-weight"
    assert graph.layers["/layers.0/mlp/down_proj/MatMul"] == LayerSpec("int4-weight", 32)  # 96 inputs: no 64 divides
    assert graph.layers["/embed/Gather"] == LayerSpec("int8-weight")
    assert quantised("int4-weight").manifest.graph("vae_decoder").layers["/layers.0/Conv"] == LayerSpec("int8-weight")
    rotary = quantised("int4-weight").manifest.graph("speech_expert").layers["/rotary/Gather"]
    assert rotary == LayerSpec("fp32")


@pytest.mark.parametrize("precision", WEIGHT_ONLY)
@pytest.mark.parametrize("flavour", ["portable", "ort"])
def test_onnx_runtime_fuses_every_product(
    precision: str, flavour: Flavour, quantised: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """Standard DequantizeLinear and MatMul on disk, one kernel for both when a session is made of them."""
    bundle = quantised(precision)
    spec = bundle.manifest.graph("speech_expert", flavour)
    products = [path for path, layer in spec.layers.items() if path.endswith("MatMul") and layer.precision != "fp32"]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(bundle.graph_path(spec)), options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    fused = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(fused) == len(products) == 7 * 3 + 1
    bits = {item.i for node in fused for item in node.attribute if item.name == "bits"}
    assert bits == {4 if precision == "int4-weight" else 8}
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def test_channels_are_for_every_tensorrt_and_blocks_for_newer_ones(quantised: Callable[[str], Bundle]) -> None:
    jetson = Library("tensorrt", None, "10.3.0.30")  # of JetPack 6
    check_parser(jetson, quantised("int8-weight").manifest.graph("dit"))
    with pytest.raises(BuildError, match="int8-weight"):
        check_parser(jetson, quantised("int4-weight").manifest.graph("dit"))


def test_rules_choose_layers(fp32_bundle: Path, tmp_path: Path) -> None:
    rules = (parse_rule("*/layers.0/*=fp32"), parse_rule("dit:/transformer/*=fp16"), Rule("/head/*", "int4-weight"))
    bundle = quantise_bundle(fp32_bundle, tmp_path / "out", QuantiseConfig("int8-weight", rules=rules))
    layers = bundle.manifest.graph("speech_expert").layers
    assert layers["/layers.0/attn/q_proj/MatMul"] == LayerSpec("fp32")
    assert layers["/layers.1/attn/q_proj/MatMul"] == LayerSpec("int8-weight")
    assert layers["/head/MatMul"] == LayerSpec("int4-weight", 16)  # 48 inputs
    assert bundle.manifest.graph("dit").layers["/transformer/layers.0/self_attn/to_out/MatMul"] == LayerSpec("fp16")
    speak(bundle, Probe())


def test_streamed_export_gives_the_same_bytes(
    golden: Callable[[str], Path], quantised: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """Rounded on the way out of the checkpoint, by blocks of columns, or of an FP32 bundle, by blocks of rows."""
    config = ExportConfig(quantise=QuantiseConfig("int4-weight"), components=("dit",))
    bundle = export_checkpoint(golden("moetts_e2e") / "checkpoint", tmp_path / "out", config)
    [spec], other = bundle.manifest.graphs, quantised("int4-weight")
    assert spec == other.manifest.graph("dit")
    for path in (spec.path, spec.data):
        assert bundle.manifest.files[path] == other.manifest.files[path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "--block among 16, 32"),
        ({"precision": "int2"}, "--precision among int8"),
        ({"rules": (Rule("/layer.0/*", "fp32"),)}, "matches no layer; near names are"),
        ({"rules": (Rule("/embed/*", "int4-weight"),)}, "Gather has no form for int4-weight"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str, fp32_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        quantise_bundle(fp32_bundle, tmp_path / "out", QuantiseConfig(**options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["/layers.0/*", "=fp32", "/layers.0/*=int3"])
def test_bad_rules_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected"):
        parse_rule(text)


def test_a_quantised_bundle_is_no_source(quantised: Callable[[str], Bundle], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an FP32 or FP16 bundle"):
        quantise_bundle(quantised("int8-weight").root, tmp_path / "out", QuantiseConfig())

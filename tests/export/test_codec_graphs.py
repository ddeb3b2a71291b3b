"""The codec's graphs as files: linted, compiled for desktop GPUs in FP32 and FP16, and repeated as deep as the model.

The numbers of the FP32 graphs are checked in tests/parity.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_rtx_graphs import AMPLIFICATION_DB, ROUNDING_DB, compile_for, count, open_engine

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from codec_shapes import SMALLEST, write_codec
from codec_torch import TorchStream, load_decoder

from voxedge.calibration.lint import lint
from voxedge.calibration.metrics import compare
from voxedge.engines.bundle import Bundle
from voxedge.export.checkpoint.moss_codec import load_moss_codec
from voxedge.export.config import ExportConfig, Precision
from voxedge.export.systems import export_checkpoint
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import DECODER, ENCODER

BOTH = (ENCODER, DECODER)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Bundle]:
    """A codec of one layer in each stack; its FP16 form exists on explicit demand only."""
    folder = tmp_path_factory.mktemp("codec")
    checkpoint = write_codec(folder / "checkpoint", SMALLEST)
    configs: dict[Precision, ExportConfig] = {
        "fp32": ExportConfig(precision="fp16"),
        "fp16": ExportConfig(codec_precision="fp16"),
    }
    return {name: export_checkpoint(checkpoint, folder / name, config) for name, config in configs.items()}


def test_fp16_of_the_rest_leaves_the_codec_in_fp32(bundles: dict[Precision, Bundle]) -> None:
    for precision, bundle in bundles.items():
        assert {graph.precision for graph in bundle.manifest.graphs} == {precision}
        states = [spec for graph in bundle.manifest.graphs for spec in graph.inputs if spec.name.startswith("past.")]
        assert {spec.dtype for spec in states} == {"float32" if precision == "fp32" else "float16"}


@pytest.mark.parametrize("name", BOTH)
def test_graphs_pass_the_lint(name: str, bundles: dict[Precision, Bundle], codec_bundle: Path) -> None:
    for bundle in (*bundles.values(), Bundle.open(codec_bundle)):
        spec = bundle.manifest.graph(name)
        assert spec.flavour == "portable"
        assert spec.opset <= 20
        assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} <= {"float32", "float16", "int32"}
        assert lint(bundle.graph_path(spec), spec) == []


@pytest.mark.parametrize("name", BOTH)
def test_graphs_compile(name: str, bundles: dict[Precision, Bundle], codec_bundle: Path, tmp_path: Path) -> None:
    """FP16 in one build for all devices, SM75 too: what stays in FP32 there is written as convolutions."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this machine: nothing was compiled")
    compile_for((89, 120), name, Bundle.open(codec_bundle), tmp_path)
    if name == ENCODER:
        compile_for((75, 89, 120), name, bundles["fp16"], tmp_path)
    else:
        # The sum over codebooks is an FP32 matrix product.
        compile_for((89, 120), name, bundles["fp16"], tmp_path)


def test_fp16_is_near_fp32(bundles: dict[Precision, Bundle]) -> None:
    """As near as the roundings of its products allow; see test_rtx_graphs."""
    codes = np.random.default_rng(1).integers(0, SMALLEST.size, (SMALLEST.codebooks, 30))
    half, single = (
        Codec.from_pretrained(bundles[precision].root, backend="cpu", threads=1) for precision in ("fp16", "fp32")
    )
    found = compare("audio", single.decode(codes), half.decode(codes))
    rounded = count(bundles["fp16"], DECODER, onnx.TensorProto.FLOAT16, "MatMul")
    assert rounded
    assert ROUNDING_DB - 10.0 * np.log10(3 * rounded) - AMPLIFICATION_DB <= found.snr_db < 110.0
    assert open_engine(DECODER, bundles["fp16"]).spec.precision == "fp16"


def test_repeated_layers_are_those_of_a_module_with_all_layers(tmp_path: Path) -> None:
    """Five layers, of which three are traced, beside the same module in torch with the same weights."""
    first, last = SMALLEST.stages
    shape = dataclasses.replace(SMALLEST, stages=(first, dataclasses.replace(last, layers=5)))
    checkpoint = write_codec(tmp_path / "checkpoint", shape)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", ExportConfig(components=(DECODER,)))
    config, codec = load_moss_codec(checkpoint).config, Codec.from_pretrained(bundle.root, backend="cpu", threads=1)
    stream = TorchStream(bundle, load_decoder(bundle, config), config.context)
    codes = np.random.default_rng(1).integers(0, shape.size, (shape.codebooks, 40))
    expected = np.concatenate([stream.feed(codes[:, start : start + 5]) for start in range(0, 40, 5)])
    # Sums of up to 128 products in another order, six layers deep: as REORDERED in tests/parity.
    found = codec.decode(codes)[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())), rtol=0)

"""The codec's graphs as files: linted, compiled for desktop GPUs in FP32 and FP16, and repeated as deep as the model.

The numbers of the FP32 graphs are checked in tests/parity.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_rtx_graphs import AMPLIFICATION_DB, ROUNDING_DB, SINGLE_DB, compile_for, count

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from codec_shapes import SMALLEST, write_codec
from codec_torch import TorchStream, load_decoder

from voxedge.calibration.lint import lint
from voxedge.calibration.metrics import compare
from voxedge.engines.bundle import Bundle
from voxedge.export.checkpoint.moss_codec import load_moss_codec
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint, moss_codec
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import DECODER, ENCODER

BOTH = (ENCODER, DECODER)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer in each stack."""
    return write_codec(tmp_path_factory.mktemp("codec") / "checkpoint", SMALLEST)


@pytest.fixture(scope="module")
def half(smallest: Path) -> Bundle:
    """Its FP16 form, which exists on explicit demand only."""
    return export_checkpoint(smallest, smallest.parent / "fp16", ExportConfig(codec_precision="fp16"))


@pytest.mark.parametrize(("given", "found"), [({"precision": "fp16"}, "fp32"), ({"codec_precision": "fp16"}, "fp16")])
def test_fp16_of_the_rest_leaves_the_codec_in_fp32(
    smallest: Path, caplog: pytest.LogCaptureFixture, given: dict[str, Any], found: str
) -> None:
    """And it is said."""
    assert {graph.precision for graph in moss_codec.plan(smallest, ExportConfig(**given)).graphs} == {found}
    assert ("--codec-precision fp16" in caplog.text) == (found == "fp32")


def test_an_fp16_codec_keeps_its_state_in_fp16(half: Bundle) -> None:
    states = [spec for graph in half.manifest.graphs for spec in graph.inputs if spec.name.startswith("past.")]
    assert {spec.dtype for spec in states} == {"float16"}


@pytest.mark.parametrize("name", BOTH)
def test_graphs_pass_the_lint(name: str, half: Bundle, codec_bundle: Path) -> None:
    for bundle in (half, Bundle.open(codec_bundle)):
        spec = bundle.manifest.graph(name)
        assert spec.flavour == "portable"
        assert spec.opset <= 20
        assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} <= {"float32", "float16", "int32"}
        assert lint(bundle.graph_path(spec), spec) == []


@pytest.mark.parametrize("name", BOTH)
def test_graphs_compile(name: str, half: Bundle, codec_bundle: Path, tmp_path: Path) -> None:
    """FP16 encoder in one build for all devices, SM75 too: what stays in FP32 there is written as convolutions."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this machine: nothing was compiled")
    compile_for((89, 120), name, Bundle.open(codec_bundle), tmp_path)
    # The decoder's sum over codebooks is an FP32 matrix product, which SM75 does not have.
    compile_for((75, 89, 120) if name == ENCODER else (89, 120), name, half, tmp_path)


def test_fp16_is_near_fp32(half: Bundle, smallest: Path) -> None:
    """As near to the module in torch as the roundings of its products allow; see test_rtx_graphs."""
    codes = np.random.default_rng(1).integers(0, SMALLEST.size, (SMALLEST.codebooks, 30))
    config, codec = load_moss_codec(smallest).config, Codec.from_pretrained(half.root, backend="cpu", threads=1)
    true = TorchStream(half, load_decoder(half, config), config.context).feed(codes)
    found = compare("audio", true, codec.decode(codes)[:, 0])
    rounded = count(half, DECODER, onnx.TensorProto.FLOAT16, "MatMul")
    assert rounded
    assert ROUNDING_DB - 10.0 * np.log10(3 * rounded) - AMPLIFICATION_DB <= found.snr_db < SINGLE_DB


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

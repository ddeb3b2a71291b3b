"""A codec under calibration and rounding: what is watched while it hears a voice, and what keeps FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from voxedge.calibration.codec_speaking import ObservedCodec
from voxedge.calibration.collect import CollectConfig, collect_statistics
from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.recording import Recording, RecordingLoader
from voxedge.calibration.sets import CalibrationSet, Line
from voxedge.calibration.speaking import Probe
from voxedge.calibration.verify import VerifyConfig, verify_bundle
from voxedge.engines.bundle import Bundle
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import DECODER, ENCODER
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.sampling import SamplingConfig
from voxedge.runtime.systems.base import Stopwatch, Utterance

PROBE = Probe("Hello there.", min_tokens=12, max_tokens=24, seed=3)


def quiet(step: str, done: int, total: int) -> None:
    """No progress bar."""


@pytest.fixture(scope="module")
def bundle(codec_bundle: Path) -> Bundle:
    return Bundle.open(codec_bundle)


def test_all_products_of_both_graphs_are_watched(bundle: Bundle, tmp_path: Path) -> None:
    lines = CalibrationSet("one", (Line("Hello there."),))
    config = CollectConfig(max_tokens=12, threads=1)
    statistics = collect_statistics(bundle, lines, tmp_path / "s.safetensors", config, quiet)
    for spec in bundle.manifest.graphs:
        model = onnx.load(str(bundle.graph_path(spec)), load_external_data=False)
        weights = {item.name for item in model.graph.initializer}
        products = [
            node for node in model.graph.node if node.op_type in ("MatMul", "Conv") and node.input[1] in weights
        ]
        assert products
        for node in products:
            found = statistics.tensor(spec.name, node.input[0])
            assert found is not None, node.name
            assert found.count > 0


def test_prescribed_codes_are_decoded(bundle: Bundle) -> None:
    """As when two bundles are compared: the second one takes the codes of the first."""
    short = SynthesisConfig(sampling=SamplingConfig(min_tokens=4, max_tokens=12), steps=2)
    codec, recording = Codec.from_pretrained(bundle.root, backend="cpu", threads=1), Recording()
    own = ObservedCodec(bundle, RecordingLoader(bundle, recording), None)
    [piece] = list(own.utter(Utterance("Hello there.", short, 1), Stopwatch()))
    codes = np.array(piece.tokens).reshape(-1, codec.codebooks).T
    assert [int(row.argmax()) for row in own.draws.logits] == own.draws.drawn
    assert recording.calls(ENCODER)
    assert recording.calls(DECODER)
    np.testing.assert_allclose(piece.samples, codec.decode(codes), atol=1e-4)
    other = np.zeros_like(codes)
    forced = ObservedCodec(bundle, RecordingLoader(bundle, Recording()), other.T.reshape(-1).tolist())
    [piece] = list(forced.utter(Utterance("Hello there.", short, 1), Stopwatch()))
    np.testing.assert_allclose(piece.samples, codec.decode(other), atol=1e-4)
    assert np.array_equal(forced.draws.logits, own.draws.logits)


def test_the_quantiser_keeps_fp32(bundle: Bundle, tmp_path: Path) -> None:
    rounded = quantise_bundle(bundle.root, tmp_path / "int8", QuantiseConfig("int8-weight"))
    for spec in rounded.manifest.graphs:
        found = {path: layer.precision for path, layer in spec.layers.items()}
        assert "int8-weight" in found.values()
        kept = {precision for path, precision in found.items() if path.startswith("/quantizer/")}
        assert kept == {"fp32"}
    report = verify_bundle(rounded.root, bundle.root, None, VerifyConfig(probes=(PROBE,)))
    [encoder] = [graph for graph in report.graphs if graph.name == ENCODER and graph.against == "reference"]
    assert encoder.code_agreement is not None
    assert 0.5 < encoder.code_agreement < 1.0  # judged as names, whose signal to noise would be about 10 dB
    judged = {check.limit_name for check in report.checks if ENCODER in check.subject and check.passed}
    assert judged == {"min_code_agreement", "min_graph_snr_db"}
    codes = np.random.default_rng(0).integers(0, 4, (2, 12))
    single, eight = (
        Codec.from_pretrained(each.root, backend="cpu", threads=1).decode(codes) for each in (bundle, rounded)
    )
    error_db = 20.0 * np.log10(np.linalg.norm(single - eight) / np.linalg.norm(single))
    # A weight is off by 1/254 sqrt(3) of its channel's largest at most in the mean, -53 dB, or -43 dB of a normal one's
    # own size; ten such products follow one another, and norms may double an error in each of five layers.
    assert -60.0 < error_db < -20.0

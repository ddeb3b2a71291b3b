"""Quantised copies of the small bundle: what every layer became, what runs, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from voxedge.calibration.backends import run_calls
from voxedge.calibration.graph_check import check_graphs
from voxedge.calibration.metrics import snr_db
from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import KvFormat, QuantiseConfig
from voxedge.calibration.quantise.plan import Rule, parse_rule
from voxedge.calibration.recording import Recording
from voxedge.calibration.speaking import Probe, speak
from voxedge.calibration.statistics import BINS, Provenance, Statistics, TensorStatistics, bundle_hash
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BuildError, ConfigError, InputError
from voxedge.engines.manifest import Flavour, LayerSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.engines.ort_binding import OrtBinding
from voxedge.engines.records import from_dict
from voxedge.engines.trt.api import Library
from voxedge.engines.trt.config import check_parser
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint
from voxedge.runtime import decoder
from voxedge.runtime.audio import check_audio
from voxedge.runtime.decoder import CacheShape, Decoder, KvCache, Logits

PROVENANCE = {
    "set_name": "test",
    "set_sha256": "0" * 64,
    "lines": 1,
    "seed": 0,
    "max_tokens": 1,
    "voxedge": "0",
    "onnxruntime": "0",
}
IDS = np.arange(30, dtype=np.int32)
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
    time = quantised("int4-weight").manifest.graph("dit").layers["/to_timestep_embed/0/Conv"]
    assert time == LayerSpec("int8-weight")


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
    assert len(fused) == len(products) == 4 * 3 + 1
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
    assert layers["/layers.0/attn/qkv_proj/MatMul"] == LayerSpec("fp32")
    assert layers["/layers.1/attn/qkv_proj/MatMul"] == LayerSpec("int8-weight")
    assert layers["/head/MatMul"] == LayerSpec("int4-weight", 16)  # 48 inputs
    assert bundle.manifest.graph("dit").layers["/transformer/layers.0/self_attn/to_out/MatMul"] == LayerSpec("fp16")
    speak(bundle, Probe())


def test_a_rule_makes_both_rotary_tables_integers(fp32_bundle: Path, tmp_path: Path) -> None:
    """Two tables in one scope: every value of the graph keeps a name of its own."""
    config = QuantiseConfig("int8-weight", rules=(parse_rule("dit:/*=int8-weight"),))
    bundle = quantise_bundle(fp32_bundle, tmp_path / "out", config)
    layers = bundle.manifest.graph("dit").layers
    tables = [path for path in layers if "/rotary/Gather" in path]
    assert len(tables) == 2
    assert {layers[path] for path in tables} == {LayerSpec("int8-weight")}
    model, _ = read_weights(bundle, "dit", "portable")
    onnx.checker.check_model(model)
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert check_audio(speak(bundle, Probe()).samples).peak > 0


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


@pytest.mark.parametrize(("form", "kind"), [("int8", b"PER_CHANNEL"), ("int8-tensor", b"PER_TENSOR")])
def test_int8_caches(
    form: KvFormat,
    kind: bytes,
    quantised: Callable[[str], Bundle],
    fp32_bundle: Path,
    tmp_path: Path,
    statistics_of_caches: Statistics,
) -> None:
    """Both experts over one cache, in both flavours, and a prompt in pieces."""
    config = QuantiseConfig("int8-weight", kv_cache=form)
    bundle = quantise_bundle(fp32_bundle, tmp_path / "out", config, statistics_of_caches)
    plain = quantised("int8-weight")
    found: list[Logits] = []
    for flavour in ("portable", "ort"):
        engine, float_engine = (open_graph(one, flavour) for one in (bundle, plain))
        assert CacheShape.of(engine.spec).dtype == "int8"
        true = logits(float_engine, IDS, [30])
        whole, pieces = logits(engine, IDS, [30]), logits(engine, IDS, [7, 1, 22])
        # The rows are rounded before they are read, in the flight as from the cache: only FP32 roundings differ.
        assert snr_db(whole, pieces) > 80
        # A step s is 1 / 127 of a channel's maximum and its error s / sqrt(12): 52.9 dB less the crest factor, 12 dB
        # for 4 sigma. Keys and values of three layers err, 8 dB, and a softmax and a gate may double that: 6 dB.
        # One step for all is that of the loudest channel.
        assert 25 - (loudest_db(statistics_of_caches) if form == "int8-tensor" else 0) < snr_db(true, whole) < 60
        found.append(whole)
    assert snr_db(*found) > 80
    assert check_audio(speak(bundle, Probe()).samples).peak > 0
    graphs, failures = check_graphs(bundle, Bundle.open(fp32_bundle), spoken_calls(fp32_bundle), lambda *_: None)
    assert not failures
    rows = [output for graph in graphs for output in graph.outputs if output.name == "new.0.key"]
    assert rows
    assert all(output.snr_db > 25 for output in rows)  # compared as floats, not as integers
    model = onnx.load(bundle.graph_path(bundle.manifest.graph("speech_expert", "ort")), load_external_data=False)
    attributes = [item for node in model.graph.node for item in node.attribute if item.name.endswith("_quant_type")]
    assert {item.s for item in attributes} == {kind}


def loudest_db(statistics: Statistics) -> float:
    """By how much the loudest channel of a cache stands above all its channels' root mean square, at most."""
    found = [statistics.tensor(*key) for key in statistics.keys if key[1].startswith("new.")]
    largest = [tensor.channel_max for tensor in found if tensor is not None]
    return max(float(20 * np.log10(each.max() / np.sqrt(np.mean(each**2)))) for each in largest)


def test_prompts_over_int8_caches_are_read_in_pieces(
    fp32_bundle: Path, tmp_path: Path, statistics_of_caches: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU and for the fused attention alone; the portable graph takes a prompt at once."""
    bundle = quantise_bundle(fp32_bundle, tmp_path / "out", QuantiseConfig(kv_cache="int8"), statistics_of_caches)
    assert Decoder(open_graph(bundle, "ort")).max_prefill == 64 < Decoder(open_graph(bundle, "portable")).max_prefill
    found = []
    for piece, calls in ((7, 5), (1000, 1)):
        monkeypatch.setattr(decoder, "_INT8_PIECE", piece)
        engine = open_graph(bundle, "ort")
        with monkeypatch.context() as patched:
            runs: list[int] = []
            run = OrtBinding.run
            patched.setattr(OrtBinding, "run", lambda binding, run=run, runs=runs: (runs.append(1), run(binding)))
            found.append(logits(engine, IDS, [len(IDS)]))
        assert len(runs) == calls
    assert snr_db(*found) > 80  # FP32 roundings of products of other shapes


def test_int8_caches_need_statistics(fp32_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="voxedge calibrate"):
        quantise_bundle(fp32_bundle, tmp_path / "out", QuantiseConfig(kv_cache="int8"))


def test_statistics_of_another_bundle(fp16_bundle: Path, tmp_path: Path, statistics_of_caches: Statistics) -> None:
    with pytest.raises(InputError, match="those of another one"):
        quantise_bundle(fp16_bundle, tmp_path / "out", QuantiseConfig(kv_cache="int8"), statistics_of_caches)


@pytest.fixture(scope="module")
def statistics_of_caches(fp32_bundle: Path) -> Statistics:
    """What the caches of the small model hold, of one recorded utterance and of the ids that the test reads."""
    bundle = Bundle.open(fp32_bundle)
    recording = spoken_calls(fp32_bundle)
    provenance = from_dict(Provenance, PROVENANCE | {"bundle_sha256": bundle_hash(bundle.manifest)}, "test")
    found = {}
    for name in ("text_expert", "speech_expert"):
        spec = bundle.manifest.graph(name)
        empty = {key: rows[:0] for key, rows in recording.calls(name)[0].items() if key.startswith("past.")}
        read = {"ids": IDS[None], "logits_at": np.array([len(IDS) - 1], np.int32), **empty}
        outputs = run_calls(bundle.graph_path(spec), spec, [*recording.calls(name), read])
        for key in (tensor.name for tensor in spec.outputs if tensor.name.startswith("new.")):
            rows = np.concatenate([call[key] for call in outputs])  # [n, 1, G, D]
            found[name, key] = summary(rows.reshape(len(rows), -1))
    return Statistics.of(provenance, found)


def summary(rows: np.ndarray) -> TensorStatistics:
    """Rows [n, C] as calibration keeps them; the histogram says no more than how many there are."""
    counts = np.zeros(BINS, np.int64)
    counts[0] = rows.size
    size = np.abs(rows)
    return TensorStatistics(
        axis=-1,
        minimum=float(rows.min()),
        maximum=float(rows.max()),
        count=rows.size,
        limit=float(2 ** np.ceil(np.log2(size.max() + 1e-6) + 1)),
        counts=counts,
        channel_max=size.max(0),
        channel_mean=size.mean(0),
        samples=rows[:128].astype(np.float16),
    )


def spoken_calls(path: Path) -> Recording:
    recording = Recording()
    speak(Bundle.open(path), Probe(), recording)
    return recording


def open_graph(bundle: Bundle, flavour: Flavour) -> OrtEngine:
    spec = bundle.manifest.graph("speech_expert", flavour)
    return OrtEngine(bundle.graph_path(spec), spec, OrtOptions(threads=1))


def logits(engine: OrtEngine, ids: np.ndarray, pieces: list[int]) -> Logits:
    """After all ids, read in pieces of these lengths."""
    decoder = Decoder(engine)
    cache = KvCache(engine, decoder.cache_shape, len(ids))
    for part in np.split(ids, np.cumsum(pieces)[:-1]):
        last = decoder.forward(part, cache)
    return last.copy()


def test_a_quantised_bundle_is_no_source(quantised: Callable[[str], Bundle], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an FP32 or FP16 bundle"):
        quantise_bundle(quantised("int8-weight").root, tmp_path / "out", QuantiseConfig())

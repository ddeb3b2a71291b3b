"""Every quantised portable graph of the small voice: how NVIDIA's parser reads it, and that NVIDIA's compiler takes it.

TensorRT-RTX compiles one engine for SM89 and SM120, without a GPU. Graphs of two bundles that are the same bytes are
compiled once. `pytest -s` shows seconds and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from voxedge.calibration.collect import CollectConfig, collect_statistics
from voxedge.calibration.lint import lint
from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.sets import CalibrationSet, Line
from voxedge.engines.bundle import Bundle
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.trt.api import load as load_library
from voxedge.engines.trt.builder import BuildConfig, build_engine

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this machine: nothing was compiled")

DEVICES = (89, 120)
LINES = CalibrationSet("two", (Line("Hello there."), Line("One, two.", "A calm voice.")))
EXPERTS = ("text_expert", "speech_expert")
GRAPHS = (*EXPERTS, "speech_conditioner", "dit", "vae_decoder", "vae_encoder")
CACHED = "int8 caches"
# Where activations are clipped changes numbers only, so the method that takes no time.
CONFIGS: Mapping[str, QuantiseConfig] = {
    "int8": QuantiseConfig("int8", ranges="minmax", cpu_form="integer"),
    "int8-weight": QuantiseConfig("int8-weight"),
    "int4-weight": QuantiseConfig("int4-weight"),
    CACHED: QuantiseConfig("int8-weight", kv_cache="int8"),
}
CASES = [(config, name) for config in CONFIGS for name in (EXPERTS if config == CACHED else GRAPHS)]
PRODUCTS = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
MOVES = (trt.LayerType.SHUFFLE, trt.LayerType.UNSQUEEZE)
INTEGERS = {"int8": trt.DataType.INT8, "int8-weight": trt.DataType.INT8, "int4-weight": trt.DataType.INT4}


@pytest.fixture(scope="module")
def quantised(
    fp32_bundle: Path, fp16_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """The small voice by the name of its configuration, made once; four bits beside FP16, as TensorRT has them."""
    folder, voice = tmp_path_factory.mktemp("quantised"), Bundle.open(fp32_bundle)
    config = CollectConfig(max_tokens=8, threads=1)
    statistics = collect_statistics(voice, LINES, folder / "s.safetensors", config, lambda *step: None)
    made: dict[str, Bundle] = {}

    def make(name: str) -> Bundle:
        if name not in made:
            half = CONFIGS[name].precision == "int4-weight"
            source, known = (fp16_bundle, None) if half else (fp32_bundle, statistics)
            made[name] = quantise_bundle(source, folder / name, CONFIGS[name], known)
        return made[name]

    return make


def test_no_graph_is_left_out(quantised: Callable[[str], Bundle]) -> None:
    for name in CONFIGS:
        assert {spec.name for spec in quantised(name).manifest.graphs} == set(GRAPHS)


# compiled


@pytest.fixture(scope="module")
def compiled() -> set[tuple[str, str]]:
    """Graphs that were compiled: hashes of graph and data."""
    return set()


@pytest.mark.parametrize(("config", "name"), CASES)
def test_the_compiler_takes_it(
    config: str, name: str, quantised: Callable[[str], Bundle], tmp_path: Path, compiled: set[tuple[str, str]]
) -> None:
    bundle = quantised(config)
    spec = bundle.manifest.graph(name)
    assert lint(bundle.graph_path(spec), spec) == []
    data = bundle.manifest.files[spec.data]
    identity = (bundle.manifest.files[spec.path].sha256, data.sha256)
    if identity in compiled:
        return
    record = build_engine(bundle, spec, BuildConfig(compute_capabilities=DEVICES), tmp_path)
    print(f"{config} {name}: {record.duration_s:.1f} s, {record.size_bytes / 1e6:.2f} MB")  # noqa: T201
    # A compiler may store a table smaller than it was given, but not half of everything.
    assert record.size_bytes == record.path.stat().st_size > data.size / 2
    record.path.unlink()
    compiled.add(identity)


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_frames_whose_channels_share_floats_of_integers(
    precision: Literal["int8-weight", "int4-weight"], exported: Callable[..., Path], tmp_path: Path
) -> None:
    """One DequantizeLinear stands before the products of all channels of MOSS-TTS's local transformer."""
    source = exported("moss_local_v15", "fp32")
    bundle = quantise_bundle(source, tmp_path / precision, QuantiseConfig(precision))
    spec = bundle.manifest.graph("local_frame")
    assert lint(bundle.graph_path(spec), spec) == []
    record = build_engine(bundle, spec, BuildConfig(compute_capabilities=DEVICES), tmp_path)
    assert record.path.stat().st_size == record.size_bytes > 0


# parsed


@pytest.mark.parametrize(("config", "name"), CASES)
def test_the_parser_sees_integers_where_the_manifest_says_so(
    config: str, name: str, quantised: Callable[[str], Bundle]
) -> None:
    """The patterns that TensorRT's compiler fuses, in the network that its own parser made.

    A product with INT8 activations reads two DequantizeLayers: one behind a QuantizeLayer, one behind INT8 constants.
    One with rounded weights alone reads a DequantizeLayer behind constants of 8 or 4 bits. A table is gathered as
    INT32.
    """
    bundle = quantised(config)
    spec = bundle.manifest.graph(name)
    network = Network(bundle, spec)
    wanted = {path for path, layer in spec.layers.items() if layer.precision in INTEGERS}
    found = {layer.name for layer in network.layers if layer.name in wanted and network.check(layer, spec)}
    assert found == wanted
    if config == CACHED:
        assert network.check_caches() == 2 * sum(tensor.name.endswith(".key") for tensor in spec.inputs) > 0


class Network:
    """What NVIDIA's parser made of a graph."""

    def __init__(self, bundle: Bundle, spec: GraphSpec) -> None:
        logger = trt.Logger(trt.Logger.ERROR)
        self._builder = trt.Builder(logger)
        self.network = self._builder.create_network(load_library("tensorrt_rtx").network_flags())
        self._parser = trt.OnnxParser(self.network, logger)  # owns the weights
        assert self._parser.parse_from_file(str(bundle.graph_path(spec))), spec.name
        self.layers = [self.network.get_layer(index) for index in range(self.network.num_layers)]
        self.made = {tensor.name: layer for layer in self.layers for tensor in outputs(layer)}

    def check(self, layer: Any, spec: GraphSpec) -> bool:  # noqa: ANN401 - TensorRT has no types
        """Whether the layer computes what the manifest's layer of its name says; refuses it where it reads floats."""
        precision = spec.layers[layer.name].precision
        if layer.type == trt.LayerType.GATHER:
            assert layer.get_input(0).dtype == trt.DataType.INT32, layer.name
            assert self._maker(layer, 0).type == trt.LayerType.CONSTANT, layer.name
            return True
        if layer.type not in PRODUCTS:
            return False
        weight = self._weight(layer, precision)
        assert weight.type == trt.LayerType.DEQUANTIZE, layer.name
        assert weight.get_input(0).dtype == INTEGERS[precision], layer.name
        assert self._maker(weight, 0).type == trt.LayerType.CONSTANT, layer.name
        if precision == "int8":
            activation = self._maker(layer, 0)
            assert activation.type == trt.LayerType.DEQUANTIZE, layer.name
            assert activation.get_input(0).dtype == trt.DataType.INT8, layer.name
            assert self._maker(activation, 0).type == trt.LayerType.QUANTIZE, layer.name
        return True

    def check_caches(self) -> int:
        """How many caches there are, each read by a DequantizeLayer alone, its new rows behind a QuantizeLayer."""
        given = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        caches = [tensor for tensor in given if tensor.name.startswith("past.")]
        for past in caches:
            readers = [layer for layer in self.layers if past.name in {tensor.name for tensor in inputs(layer)}]
            assert [layer.type for layer in readers] == [trt.LayerType.DEQUANTIZE], past.name
            rows = past.name.replace("past.", "new.")
            assert {past.dtype, *(tensor.dtype for tensor in outputs(self.made[rows]))} == {trt.DataType.INT8}, rows
            assert self.made[rows].type == trt.LayerType.QUANTIZE, rows
        return len(caches)

    def _maker(self, layer: Any, index: int) -> Any:  # noqa: ANN401 - as above
        return self.made[layer.get_input(index).name]

    def _weight(self, layer: Any, precision: str) -> Any:  # noqa: ANN401 - as above
        """What gives the weight, behind the layer by which the parser adds dimensions of length 1.

        It gives a matrix [K, N] the rank of what it is multiplied with; NVIDIA's own exporters have a transpose at that
        place. A kernel of one dimension gets a second one; convolutions with INT8 activations have two already, so that
        nothing stands between them and the DequantizeLayer.
        """
        weight = self._maker(layer, 1)
        may_be_moved = layer.type == trt.LayerType.MATRIX_MULTIPLY or precision != "int8"
        if weight.type not in MOVES or not may_be_moved:
            return weight
        shapes = [[n for n in tensor.shape if n != 1] for tensor in (weight.get_input(0), weight.get_output(0))]
        assert shapes[0] == shapes[1], layer.name
        return self._maker(weight, 0)


def inputs(layer: Any) -> Iterator[Any]:  # noqa: ANN401 - TensorRT has no types
    """Tensors that a layer reads; an optional one may be absent."""
    found = (layer.get_input(index) for index in range(layer.num_inputs))
    return (tensor for tensor in found if tensor is not None)


def outputs(layer: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
    """Tensors that a layer gives."""
    return (layer.get_output(index) for index in range(layer.num_outputs))

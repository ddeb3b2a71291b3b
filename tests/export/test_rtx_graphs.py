"""Every portable graph of a small and of a middling model, FP32 and FP16: linted, compiled, and compared.

NVIDIA's compiler runs for SM75, SM89 and SM120 without a GPU. FP16 stands beside FP32 on ONNX Runtime, on inputs like
those of speech; `pytest -s` shows the engines and the decibels.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from midsize import write_midsize
from onnx import TensorProto

from voxedge.calibration.lint import lint
from voxedge.calibration.metrics import SNR_CAP_DB, compare, worst
from voxedge.engines.backend import Array
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BuildError
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.engines.trt.builder import BuildConfig, build_engine
from voxedge.export.checkpoint.moe_tts import load_moe_tts
from voxedge.export.config import ExportConfig, Precision
from voxedge.export.exporter import export_plan
from voxedge.export.systems import moe_tts

GRAPHS = ("text_expert", "speech_expert", "speech_conditioner", "dit", "vae_decoder", "vae_encoder")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
FRAMES, PROMPT = 20, 24

Bundles = Mapping[str, Bundle]

# Rounding to 11 bits costs 2 ** -11 / sqrt(3) of a value at most: 71 dB. Every product rounds its two operands and its
# result, and n roundings that do not know of each other cost 10 log10(n) dB. What amplifies an error beyond that is
# subtraction: norms take the mean away, gates multiply two errors, a softmax raises them to a power; 10 dB is thrice
# the error for all of that. A snake multiplies an error by its slope besides, up to 1 + alpha / beta, and a vocoder has
# one before every convolution: 10 dB more.
ROUNDING_DB = -20.0 * math.log10(2.0**-11 / math.sqrt(3.0))
AMPLIFICATION_DB, SNAKES_DB = 10.0, 10.0
SINGLE_DB = 110.0  # nearer are only two FP32 graphs: their roundings cost 149 dB


@pytest.fixture(scope="session")
def checkpoint(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The middling model, one for each worker; 0.4 GB, so it does not outlive the session."""
    folder = tmp_path_factory.mktemp("midsize") / "checkpoint"
    yield write_midsize(folder, golden("moetts_e2e") / "checkpoint")
    shutil.rmtree(folder)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder whose bundles and engines are gone when the test ends."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def tiny(fp32_bundle: Path, fp16_bundle: Path) -> Bundles:
    return {"fp32": Bundle.open(fp32_bundle), "fp16": Bundle.open(fp16_bundle)}


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_pass_the_lint(name: str, tiny: Bundles) -> None:
    assert_portable(name, tiny)


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_compile(name: str, tiny: Bundles, scratch: Path) -> None:
    assert_compiles(name, tiny, scratch)


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_in_fp16_are_near_fp32(name: str, tiny: Bundles) -> None:
    assert_near(name, tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_middling_graphs(name: str, checkpoint: Path, scratch: Path) -> None:
    """All at once, so that a graph is exported once and no bundle lies around for long."""
    bundles = {precision: export(name, checkpoint, scratch, precision) for precision in PRECISIONS}
    assert_portable(name, bundles)
    assert_near(name, bundles)
    assert_compiles(name, bundles, scratch)


def export(name: str, checkpoint: Path, scratch: Path, precision: Precision) -> Bundle:
    """A bundle of one portable graph."""
    config = ExportConfig(precision=precision, components=(name,))
    plan = moe_tts.plan(checkpoint, config)
    experts = moe_tts.expert_plans(load_moe_tts(checkpoint), config, flavours=("portable",))
    graphs = {graph.name: graph for graph in (*plan.graphs, *experts)}
    assert set(graphs) == set(GRAPHS)
    one = dataclasses.replace(plan, graphs=(graphs[name],), files={}, sources={})
    return export_plan(one, scratch / precision, config)


def assert_portable(name: str, bundles: Bundles) -> None:
    for bundle in bundles.values():
        spec = bundle.manifest.graph(name)
        assert spec.flavour == "portable"
        assert lint(bundle.graph_path(spec), spec) == []


# compilation


def assert_compiles(name: str, bundles: Bundles, scratch: Path) -> None:
    """FP16 in one build for all devices; FP32 as far as the devices have such products."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this machine: nothing was compiled")
    compile_for((75, 89, 120), name, bundles["fp16"], scratch)
    if not count(bundles["fp32"], name, TensorProto.FLOAT, "MatMul"):
        compile_for((75, 89, 120), name, bundles["fp32"], scratch)
        return
    compile_for((89, 120), name, bundles["fp32"], scratch)
    # Turing: the compiler itself has no FP32 matrix products, so the best that can be done is to say so.
    with pytest.raises(BuildError, match=r"FP32 GEMM is not supported.*SM75 has no FP32.*--precision fp16"):
        compile_for((75,), name, bundles["fp32"], scratch)


def compile_for(devices: tuple[int, ...], name: str, bundle: Bundle, scratch: Path) -> None:
    """Build, look at the size, delete."""
    spec = bundle.manifest.graph(name)
    record = build_engine(bundle, spec, BuildConfig(compute_capabilities=devices), scratch / "engines")
    targets = "+".join(f"SM{device}" for device in devices)
    print(f"{name} {spec.precision} {targets}: {record.duration_s:.1f} s, {record.size_bytes / 1e6:.1f} MB")  # noqa: T201
    # The weights are in it; a compiler may store a table smaller than it was given, but not half of everything.
    assert record.size_bytes == record.path.stat().st_size > weight_bytes(bundle, spec) / 2
    record.path.unlink()


def weight_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    model = onnx.load(str(bundle.graph_path(spec)), load_external_data=False)
    kinds = [(onnx.helper.tensor_dtype_to_np_dtype(item.data_type), item.dims) for item in model.graph.initializer]
    return sum(kind.itemsize * math.prod(dims) for kind, dims in kinds)


def count(bundle: Bundle, name: str, dtype: int, *operators: str) -> int:
    """How many nodes of a portable graph read this type; ONNX itself works out the type of every value."""
    path = bundle.graph_path(bundle.manifest.graph(name))
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    types = {item.name: item.data_type for item in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return sum(node.op_type in operators and types[node.input[0]] == dtype for node in model.graph.node)


# FP16 beside FP32


def assert_near(name: str, bundles: Bundles) -> None:
    """Both precisions on the same inputs, every output: finite, and as near as the roundings allow."""
    half, single = (open_engine(name, bundles[precision]) for precision in ("fp16", "fp32"))
    differences = []
    for label, feeds in calls(single, table_rows(bundles["fp32"], name)):
        given = {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in half.spec.inputs}
        true, found = single.run(feeds), half.run(given)
        differences += [compare(f"{label}: {output}", values, found[output]) for output, values in true.items()]
    lowest = min(differences, key=lambda difference: difference.snr_db)
    rounded = count(bundles["fp16"], name, TensorProto.FLOAT16, "MatMul", "Conv", "ConvTranspose")
    snakes = count(bundles["fp16"], name, TensorProto.FLOAT, "Sin") if name.startswith("vae") else 0
    print(f"{name}: {lowest.snr_db:.1f} dB ({lowest.name}), {rounded} FP16 products")  # noqa: T201
    assert worst(differences).finite == 1.0
    if not rounded:
        assert lowest.snr_db == SNR_CAP_DB
        return
    limit = ROUNDING_DB - 10.0 * math.log10(3 * rounded) - AMPLIFICATION_DB - SNAKES_DB * bool(snakes)
    assert limit <= lowest.snr_db < SINGLE_DB


def open_engine(name: str, bundle: Bundle) -> OrtEngine:
    spec = bundle.manifest.graph(name)
    return OrtEngine(bundle.graph_path(spec), spec, OrtOptions(threads=2))


def table_rows(bundle: Bundle, name: str) -> int:
    """Ids that a graph's table of tokens has; 0 where it takes none."""
    model = onnx.load(str(bundle.graph_path(bundle.manifest.graph(name))), load_external_data=False)
    read = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    tables = [item.dims[0] for item in model.graph.initializer if item.name in read and item.name.endswith("weight")]
    return tables[0] if tables else 0


def calls(engine: OrtEngine, limit: int) -> Iterator[tuple[str, dict[str, Array]]]:
    """Inputs like those of speech, by what they stand for; token ids below `limit`."""
    random = np.random.default_rng(3)
    inputs = {tensor.name for tensor in engine.spec.inputs}
    if "logits_at" in inputs:
        empty = decoder_feeds(engine.spec, random.integers(0, limit, PROMPT), {})
        yield "prefill", empty
        kept = {key.replace("new.", "past."): rows for key, rows in engine.run(empty).items() if key.startswith("new.")}
        yield "decode", decoder_feeds(engine.spec, random.integers(0, limit, 1), kept)
    elif "ids" in inputs:
        yield "ids", {"ids": random.integers(0, limit, (1, FRAMES), np.int32)}
    elif "time" in inputs:
        for time in (-1.1, 0.3, 1.15):  # log(sigma) / 4 from the last to the first noise level of a Karras schedule
            shapes = {tensor.name: tensor.sizes({"batch": 2, "frames": 5 * FRAMES}) for tensor in engine.spec.inputs}
            feeds = {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}
            yield f"time {time}", {**feeds, "time": np.full(2, time, np.float32)}
    else:
        [given] = engine.spec.inputs
        hop = engine.spec.profiles["main"]["samples"].min if given.name == "audio" else 0
        values = random.standard_normal(
            given.sizes({"batch": 1, "frames": FRAMES, "samples": FRAMES * hop}), np.float32
        )
        yield given.name, {given.name: np.float32(0.1 if hop else 1.0) * values}


def decoder_feeds(spec: GraphSpec, ids: Array, kept: Mapping[str, Array]) -> dict[str, Array]:
    """Ids [S] after the keys and values of earlier ones, which are time-major [past, B, G, D]."""
    caches = [tensor for tensor in spec.inputs if tensor.name.startswith("past.")]
    empty = {tensor.name: np.zeros(tensor.sizes({"past": 0, "batch": 1}), tensor.dtype) for tensor in caches}
    return {"ids": ids.astype(np.int32)[None], "logits_at": np.array([len(ids) - 1], np.int32), **(kept or empty)}

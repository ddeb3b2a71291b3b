"""Sensitivity and the search on a graph of five layers, of which one minds by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from voxedge.calibration.quantise.bundle import quantise_bundle
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.plan import Rule
from voxedge.calibration.recording import Recording
from voxedge.calibration.search import Found, PrecisionSearch
from voxedge.calibration.sensitivity import Sensitivity, kept_layers, spread, units_of
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import ConfigError
from voxedge.engines.manifest import DimRange, GraphSpec, ManifestDraft, TensorSpec
from voxedge.engines.records import from_dict, to_dict

WIDTH, LAYERS, SENSITIVE = 32, 5, 2
SPEC = GraphSpec(
    name="toy",
    flavour="portable",
    path="graphs/toy.onnx",
    data="graphs/toy.data",
    precision="fp32",
    opset=17,
    inputs=(TensorSpec("x", "float32", ("rows", WIDTH)),),
    outputs=(TensorSpec("y", "float32", ("rows", WIDTH)),),
    profiles={"main": {"rows": DimRange(1, 4, 64)}},
)


def weights() -> list[np.ndarray]:
    """Random layers, one of them with an outlier in every column that multiplies zero.

    Channel 0 of the layer before it is always zero, so the outliers change no output; but they set the scales, beside
    which all other weights of the layer round to nothing.
    """
    random = np.random.default_rng(7)
    found = [random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.sqrt(WIDTH) for _ in range(LAYERS)]
    found[SENSITIVE - 1][:, 0] = 0.0
    found[SENSITIVE][0, :] = 60.0
    return [array.astype(np.float32) for array in found]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    nodes, values = [], []
    for place, array in enumerate(weights()):
        source = "x" if place == 0 else f"h{place}"
        target = "y" if place == LAYERS - 1 else f"h{place + 1}"
        nodes.append(helper.make_node("MatMul", [source, f"w{place}"], [target], name=f"/layers.{place}/proj/MatMul"))
        values.append(numpy_helper.from_array(array, f"w{place}"))
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "toy", edges[:1], edges[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with BundleWriter(tmp_path_factory.mktemp("toy") / "bundle") as writer:
        onnx.save(model, writer.path(SPEC.path), save_as_external_data=True, location="toy.data", size_threshold=0)
        return writer.commit(ManifestDraft("toy", {}, (SPEC,)))


@pytest.fixture(scope="module")
def recording() -> Recording:
    recording = Recording()
    for seed in range(5):
        recording.add("toy", {"x": np.random.default_rng(seed).standard_normal((8, WIDTH)).astype(np.float32)})
    return recording


def search(toy: Bundle, recording: Recording, target_db: float, **options: object) -> Found:
    config = QuantiseConfig("mixed", **{"base": "int8-weight", **options})  # type: ignore[arg-type]
    return PrecisionSearch(toy, config, None, recording).find(target_db, lambda step, done, total: None)


# One rounding of 32 normal weights to a step of max / 127 is 2.3 / 127 / sqrt(12) of them: 45 dB; the kernel that ONNX
# Runtime takes rounds the activations likewise: 42 dB, and 36 dB for four layers. Weights of the sensitive layer have
# a standard deviation of 0.18 and steps of 0.47: nearly all round to zero, 0 .. 3 dB. 30 dB lies between.
TARGET_DB = 30.0


def test_the_sensitive_layer_is_found_and_it_alone_is_kept(toy: Bundle, recording: Recording) -> None:
    found = search(toy, recording, TARGET_DB)
    (graph,) = found.sensitivity.graphs
    assert graph.units[0].path == f"/layers.{SENSITIVE}/proj/MatMul"
    assert graph.units[0].snr_db < 5.0
    assert all(unit.snr_db > 35.0 for unit in graph.units[1:])
    assert graph.all_snr_db < 5.0 < TARGET_DB < graph.chosen_snr_db
    assert [unit.path for _, unit in kept_layers(found.sensitivity)] == [f"/layers.{SENSITIVE}/proj/MatMul"]
    assert found.config.rules == (Rule(f"toy:/layers.{SENSITIVE}/proj/MatMul", "fp16"),)
    assert graph.trials == 1 + LAYERS + 1 + 2  # all at once, each alone, all higher, two halvings of five


def test_the_map_stands_in_the_manifest_and_the_bundle_reaches_the_target(
    toy: Bundle, recording: Recording, tmp_path: Path
) -> None:
    found = search(toy, recording, TARGET_DB)
    bundle = quantise_bundle(toy.root, tmp_path / "mixed", found.config)
    (spec,) = bundle.manifest.graphs
    assert spec.precision == "mixed"
    expected = {f"/layers.{n}/proj/MatMul": "fp16" if n == SENSITIVE else "int8-weight" for n in range(LAYERS)}
    assert {path: layer.precision for path, layer in spec.layers.items()} == expected


def test_a_graph_that_is_good_enough_is_not_taken_apart(toy: Bundle, recording: Recording) -> None:
    found = search(toy, recording, -50.0)
    (graph,) = found.sensitivity.graphs
    assert (graph.units, graph.trials, found.config.rules) == ((), 1, ())


def test_no_version_is_run_twice(toy: Bundle, recording: Recording) -> None:
    search = PrecisionSearch(toy, QuantiseConfig("mixed", base="int8-weight"), None, recording)
    first = search.find(TARGET_DB, lambda step, done, total: None).sensitivity.graphs[0]
    again = search.find(TARGET_DB + 1.0, lambda step, done, total: None).sensitivity.graphs[0]
    assert (first.trials, again.trials) == (again.trials, first.trials)
    assert again.units == first.units


def test_where_one_step_is_not_enough_the_next_is_taken(toy: Bundle, recording: Recording) -> None:
    found = search(toy, recording, 150.0)  # one rounding to FP16 is 71 dB
    (graph,) = found.sensitivity.graphs
    assert graph.base == "fp16"
    assert {unit.kept_as for unit in graph.units} == {"fp32"}
    assert graph.chosen_snr_db > 150.0
    assert {rule.precision for rule in found.config.rules[-LAYERS:]} == {"fp32"}


def test_rules_of_the_user_are_followed(toy: Bundle, recording: Recording) -> None:
    rule = Rule(f"/layers.{SENSITIVE}/*", "fp32")
    found = search(toy, recording, TARGET_DB, rules=(rule,))
    assert found.config.rules == (rule,)
    assert found.sensitivity.graphs[0].all_snr_db > TARGET_DB


def test_a_graph_that_was_not_reached_is_named(toy: Bundle) -> None:
    with pytest.raises(ConfigError, match="graph toy: expected recorded calls"):
        search(toy, Recording(), TARGET_DB)


def test_what_was_found_survives_its_file(toy: Bundle, recording: Recording) -> None:
    found = search(toy, recording, TARGET_DB).sensitivity
    assert from_dict(Sensitivity, to_dict(found), "sensitivity") == found


def test_calls_are_spread_and_blocks_end_at_the_first_number() -> None:
    calls = [{"x": np.full(1, place)} for place in range(9)]
    assert [int(feeds["x"][0]) for feeds in spread(calls, 3)] == [0, 4, 8]
    assert len(spread(calls[:2], 3)) == 2
    assert list(units_of(["/a/layers.0/b/layers.1/Conv", "/a/layers.0/c/Conv", "/d/Conv"], "block")) == [
        "/a/layers.0",
        "/d/Conv",
    ]

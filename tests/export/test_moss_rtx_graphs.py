"""Graphs of small MOSS-TTS models in FP32 and FP16: linted, and compiled by NVIDIA's compiler for SM89 and SM120.

Every kind of graph once: the summed embeddings and a backbone without logits are the same in all models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from test_rtx_graphs import PRECISIONS, assert_portable, compile_for

from voxedge.engines.bundle import Bundle
from voxedge.export.checkpoint.moss_tts import load_moss_tts
from voxedge.export.config import ExportConfig
from voxedge.export.exporter import export_plan
from voxedge.export.systems import moss_tts
from voxedge.runtime.systems.moss_model import GRAPHS

SAME_IN_ALL = {"embeddings", "backbone"}
ONE_OF_A_KIND = [("moss_delay", "backbone"), ("moss_delay", "text_head"), ("moss_local", "local_text")]
ONE_OF_A_KIND += [("moss_local", "local_frame")]


@pytest.fixture
def bundles(exported: Callable[..., Path]) -> dict[str, Bundle]:
    return {precision: Bundle.open(exported("moss_local_v15", precision)) for precision in PRECISIONS}


@pytest.mark.parametrize("name", GRAPHS["local_v15"])
def test_small_graphs_pass_the_lint_and_compile(name: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    assert_compiles(name, bundles, tmp_path)


@pytest.mark.parametrize(("case", "name"), ONE_OF_A_KIND)
def test_graphs_of_the_other_models_do(
    case: str, name: str, exported: Callable[..., Path], golden: Callable[[str], Path], tmp_path: Path
) -> None:
    single = Bundle.open(exported(case, "fp32"))
    assert_compiles(name, {"fp32": single, "fp16": half(name, golden(case) / "checkpoint", tmp_path)}, tmp_path)


def test_every_kind_of_graph_is_compiled() -> None:
    compiled = {name for _, name in ONE_OF_A_KIND}
    assert compiled | SAME_IN_ALL >= {*GRAPHS["delay"], *GRAPHS["local"]}
    assert set(GRAPHS["local_v15"]) >= SAME_IN_ALL


def half(name: str, checkpoint: Path, scratch: Path) -> Bundle:
    """A bundle of one portable graph, since tracing all of them would take a minute."""
    config = ExportConfig(precision="fp16", components=(name,))
    plan = moss_tts.plan(checkpoint, config)
    graphs = {graph.name: graph for graph in plan.graphs}
    if name == "backbone":
        graphs[name] = moss_tts.backbone_plan(load_moss_tts(checkpoint), config, flavours=("portable",))
    return export_plan(dataclasses.replace(plan, graphs=(graphs[name],), sources={}), scratch / "fp16", config)


def assert_compiles(name: str, bundles: dict[str, Bundle], scratch: Path) -> None:
    assert_portable(name, bundles)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this machine: nothing was compiled")
    for bundle in bundles.values():
        compile_for((89, 120), name, bundle, scratch)

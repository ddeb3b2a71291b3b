"""Graphs of a small MOSS-TTS in FP32 and FP16: linted, and compiled by NVIDIA's compiler for SM89 and SM120."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_rtx_graphs import PRECISIONS, assert_portable, compile_for

from voxedge.engines.bundle import Bundle

GRAPHS = ("embeddings", "backbone", "local_frame")


@pytest.fixture
def bundles(exported: Callable[..., Path]) -> dict[str, Bundle]:
    return {precision: Bundle.open(exported("moss_local_v15", precision)) for precision in PRECISIONS}


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_pass_the_lint_and_compile(name: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    assert_portable(name, bundles)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this machine: nothing was compiled")
    for bundle in bundles.values():
        compile_for((89, 120), name, bundle, tmp_path)

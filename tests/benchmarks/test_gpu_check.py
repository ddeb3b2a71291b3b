"""The GPU check without a GPU: its CPU path as it is, and its TensorRT path on the doubles, which prove no speed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

import gpu_check
import gpu_decode
import gpu_steps
import numpy as np
from cache_graphs import cache_spec, write_cache_bundle
from machine import describe
from shapes import SHAPES
from trt_double import CudaDouble, install

from voxedge.engines.bundle import Bundle
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.runtime.synthesizer import built_in_voice


class Counted:
    """Steps that only count."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.contexts: list[int] = []
        self.steps, self.fails_at = 0, fails_at

    def rewind(self, context: int) -> None:
        """Keep the context."""
        self.contexts.append(context)

    def step(self) -> gpu_steps.Logits:
        """Count."""
        self.steps += 1
        if self.steps == self.fails_at:
            raise RuntimeError("no kernel image")
        return np.zeros(4, np.float32)

    def prefill(self, count: int) -> gpu_steps.Logits:
        """As a step."""
        return self.step()


def options(work: Path, bundle: Path, *parts: str) -> argparse.Namespace:
    chosen = list(parts or gpu_check.PARTS)
    return argparse.Namespace(work=work, bundle=bundle, shape="none", parts=chosen, output=work / "found.json")


def test_without_a_gpu_everything_missing_is_named(tmp_path: Path, fp32_bundle: Path) -> None:
    findings = gpu_check.run(options(tmp_path, fp32_bundle))
    assert [voice["backend"] for voice in findings.found["voices"]] == ["cpu"]
    missing = {"voice on cuda", "voice on tensorrt", "building for trt", "placement on cuda"}
    assert missing <= set(findings.failures)
    assert "voice on cuda" in gpu_check.tables(findings, None)
    assert "NaN" not in (tmp_path / "found.json").read_text()
    assert json.loads((tmp_path / "found.json").read_text())["failures"] == findings.failures


def test_tokens_and_layers_on_the_double(tmp_path: Path, fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", CudaDouble())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    findings = gpu_check.run(options(tmp_path / "work", fp32_bundle, "engines", "voice"))
    voices = {voice["backend"]: voice for voice in findings.found["voices"]}
    assert voices["tensorrt"]["tokens_equal"]
    assert voices["tensorrt"]["max_difference"] < 5e-3  # as in tests/engines/test_trt_say.py
    assert sum(findings.found["engines"]["trt"]["dit"]["layers"].values()) > 50
    assert "building for trt" not in findings.failures


def test_visits_take_turns_and_a_failing_engine_is_dropped() -> None:
    good, bad, failures = Counted(), Counted(fails_at=5), {}
    engines: dict[str, gpu_steps.Steps] = {"good": good, "bad": bad}
    figures = [*gpu_decode.time_decode(engines, 8, 3, 2, failures), *gpu_decode.time_prefill(engines, 5, 2, failures)]
    assert [(figure.engine, figure.kind, figure.tokens, len(figure.rounds_ms)) for figure in figures] == [
        ("good", "decode", 8, 2),
        ("good", "prefill", 5, 2),
    ]
    assert good.contexts == [8] * 4
    assert good.steps == 4 * 3 + 4
    assert failures == {"decode with bad at 8": "RuntimeError: no kernel image"}


def test_fixed_buffers_give_the_logits_of_voxedges_loop() -> None:
    bundle = Bundle.open(built_in_voice())
    spec = bundle.manifest.graph(gpu_decode.GRAPH, "ort")
    path = bundle.graph_path(spec)
    ours = gpu_steps.OurSteps(OrtEngine(path, spec, OrtOptions(threads=1)), 128)
    fixed = gpu_steps.FixedSteps(path, spec, 128, graph=False, device="cpu")
    for context in (0, 24, 7, 24):
        ours.rewind(context)
        fixed.rewind(context)
        for _ in range(3):
            # The same kernels on the same values; only the number of threads differs, which can move a sum's last bits.
            np.testing.assert_allclose(fixed.step(), ours.step(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fixed.prefill(20), ours.prefill(20), rtol=1e-4, atol=1e-4)
    assert sum(fixed.placement["CPUExecutionProvider"].values()) > 50


def test_wrong_logits_are_shown_and_none_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(built_in_voice())

    class Broken(Counted):
        def step(self) -> gpu_steps.Logits:
            return np.full(4, np.nan, np.float32)

    engines: dict[str, gpu_steps.Steps] = {"wrong": Counted(), "broken": Broken(), "failing": Counted(fails_at=2)}
    failures: dict[str, str] = {}
    errors = gpu_decode.check_logits(bundle, engines, failures)
    assert errors["wrong"] is not None
    assert errors["wrong"] > 1e-3
    assert errors["broken"] is None
    assert set(engines) == {"wrong"}
    assert set(failures) == {"logits of broken", "logits of failing"}


def test_a_step_is_compared_with_what_it_reads() -> None:
    traffic = gpu_decode.Traffic(SHAPES["0.6b"], 3350.0)
    figure = {"engine": "a", "kind": "decode", "tokens": 0, "ms": 1.0}
    # 447e6 matrix elements of two bytes in a millisecond
    assert gpu_decode.row(figure, traffic, {"a": None}) == ("a", "decode 0", "1.000", "1000", "894", "27 %", "")
    assert traffic.read_gb(512) - traffic.read_gb(0) == pytest.approx(512 * 2 * 28 * 8 * 128 * 2e-9)


def test_the_table_of_the_documentation() -> None:
    figures = [
        gpu_decode.Figure("graph", "prefill", 256, 6.0, (5.0, 6.0, 7.0)),
        gpu_decode.Figure("loop", "decode", 512, 5.5, (4.6, 5.5, 6.4)),
        gpu_decode.Figure("graph", "decode", 0, 2.7, (2.6, 2.7, 2.8)),
    ]
    found = {
        "machine": dataclasses.asdict(describe(("numpy",))),
        "device": {"driver": "580.1", "gpus": [{"name": "H100"}]},
        "decode": [dataclasses.asdict(figure) for figure in figures],
    }
    first, *_, header, _, graph, loop = gpu_decode.decode_table(found).splitlines()
    assert first.startswith("GPU: H100, driver 580.1. Machine: ")
    assert header == "| ms | decode @0 | decode @512 | prefill 256 |"
    assert graph == "| graph | 2.70 (2.60-2.80) |  | 6.00 (5.00-7.00) |"
    assert loop == "| loop |  | 5.50 (4.60-6.40) |  |"


def test_engines_that_cannot_be_built_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", CudaDouble())
    bundle = write_cache_bundle(tmp_path / "blocks", cache_spec(opset=21))
    failures: dict[str, str] = {}
    assert gpu_check.build(bundle.root, "trt", failures) == {}
    assert "opset 20 or lower" in failures["building for trt"]

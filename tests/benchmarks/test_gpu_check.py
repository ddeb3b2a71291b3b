"""The GPU check without a GPU: its CPU path as it is, and its TensorRT path on the doubles, which prove no speed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

import gpu_check
from cache_graphs import cache_spec, write_cache_bundle
from trt_double import CudaDouble, install


class Counted:
    """Steps that only count."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.contexts: list[int] = []
        self.steps, self.fails_at = 0, fails_at

    def rewind(self, context: int) -> None:
        """Keep the context."""
        self.contexts.append(context)

    def step(self) -> None:
        """Count."""
        self.steps += 1
        if self.steps == self.fails_at:
            raise RuntimeError("no kernel image")


def options(work: Path, bundle: Path) -> argparse.Namespace:
    return argparse.Namespace(work=work, bundle=bundle, shape="none", contexts=[4], steps=3, rounds=2, output=None)


def test_without_a_gpu_everything_missing_is_named(tmp_path: Path, fp32_bundle: Path) -> None:
    found = gpu_check.run(options(tmp_path, fp32_bundle))
    assert [voice["backend"] for voice in found["voices"]] == ["cpu"]
    assert {"voice on cuda", "voice on tensorrt", "building for trt"} <= set(found["failures"])
    assert "voice on cuda" in gpu_check.tables(found)
    json.dumps(found, allow_nan=False, default=str)


def test_tokens_and_layers_on_the_double(tmp_path: Path, fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", CudaDouble())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = gpu_check.run(options(tmp_path / "work", fp32_bundle))
    voices = {voice["backend"]: voice for voice in found["voices"]}
    assert voices["tensorrt"]["tokens_equal"]
    assert voices["tensorrt"]["max_difference"] < 5e-3  # as in tests/engines/test_trt_say.py
    assert sum(found["engines"]["trt"]["dit"]["layers"].values()) > 50
    assert "building for trt" not in found["failures"]


def test_visits_take_turns_and_a_failing_engine_is_dropped() -> None:
    good, bad, failures = Counted(), Counted(fails_at=5), {}
    figures = gpu_check.time_decode({"good": good, "bad": bad}, [8, 16], 3, 2, failures)
    assert [(figure.engine, figure.context, len(figure.rounds_ms)) for figure in figures] == [
        ("good", 8, 2),
        ("good", 16, 2),
    ]
    assert good.contexts == [8] * 4 + [16] * 4
    assert good.steps == 2 * 4 * 3
    assert failures == {"decode with bad at 8": "RuntimeError: no kernel image"}


def test_engines_that_cannot_be_built_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", CudaDouble())
    bundle = write_cache_bundle(tmp_path / "blocks", cache_spec(opset=21))
    failures: dict[str, str] = {}
    assert gpu_check.build(bundle.root, "trt", failures) == {}
    assert "opset 20 or lower" in failures["building for trt"]

"""Calibration: what is watched while the built-in voice speaks, and what happens when it is interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_voice import tiny_voice

from voxedge.calibration.accumulate import TensorAccumulator
from voxedge.calibration.collect import CollectConfig, collect_statistics, progress_path
from voxedge.calibration.sets import CalibrationSet, Line
from voxedge.calibration.statistics import BINS, SAMPLE_ROWS, Statistics
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.engines.manifest import FileRecord
from voxedge.runtime.cli.main import main

LINES = CalibrationSet("three", (Line("Hello there."), Line("One, two.", "A calm voice."), Line("Goodbye.", seed=9)))
CONFIG = CollectConfig(max_tokens=8, threads=1)  # a third of a second each


def quiet(step: str, done: int, total: int) -> None:
    """No progress bar."""


@pytest.fixture(scope="module")
def voice() -> Bundle:
    return Bundle.open(tiny_voice())


@pytest.fixture(scope="module")
def whole(voice: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "s.safetensors"
    collect_statistics(voice, LINES, path, CONFIG, quiet)
    return path


def test_everything_that_enters_a_product_with_weights_is_known(voice: Bundle, whole: Path) -> None:
    statistics = Statistics.load(whole)
    seen = 0
    for spec in voice.manifest.graphs:
        model = onnx.load(str(voice.graph_path(spec)), load_external_data=False)
        weights = {item.name: item.dims for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("MatMul", "Conv", "ConvTranspose") and node.input[1] in weights:
                found = statistics.tensor(spec.name, node.input[0])
                if spec.flavour == "portable":
                    assert found is not None, node.name
                    inputs = weights[node.input[1]][1 if node.op_type == "Conv" else 0]
                    assert found.channels == inputs, node.name
                    seen += 1
    assert seen > 60
    assert not progress_path(whole).exists()
    assert statistics.provenance.lines == 3
    statistics.check(voice.manifest)


def test_rows_of_the_cache_are_known_by_head_and_dimension(voice: Bundle, whole: Path) -> None:
    spec = voice.manifest.graph("speech_expert")
    for tensor in spec.outputs:
        if tensor.name.startswith("new."):
            found = Statistics.load(whole).tensor("speech_expert", tensor.name)
            assert found is not None
            assert found.channels == int(tensor.shape[2]) * int(tensor.shape[3])


def test_every_step_of_the_solver_counts(voice: Bundle, whole: Path) -> None:
    """One row for each step, utterance and guidance row enters the embedding of the noise level."""
    found = Statistics.load(whole).tensor("dit", "/to_timestep_embed/0/Unsqueeze:0")
    settings = voice.manifest.settings["diffusion"]
    rows = 1 if settings["cfg_scale"] == 1.0 else 2
    assert found is not None
    assert found.count // found.channels == settings["steps"] * rows * len(LINES.lines)


def test_a_run_can_be_repeated(voice: Bundle, whole: Path, tmp_path: Path) -> None:
    collect_statistics(voice, LINES, tmp_path / "s.safetensors", CONFIG, quiet)
    assert (tmp_path / "s.safetensors").read_bytes() == whole.read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, str(Path({tests!r}).parent)]
from test_collect import CONFIG, LINES, tiny_voice
from voxedge.calibration.collect import collect_statistics
from voxedge.engines.bundle import Bundle
def kill(step, done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
collect_statistics(Bundle.open(tiny_voice()), LINES, Path({target!r}), CONFIG, kill)
"""


def test_a_killed_run_goes_on_and_ends_the_same(voice: Bundle, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "s.safetensors"
    code = KILLED.format(tests=str(Path(__file__).parent), target=str(target))
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert not target.exists()
    assert progress_path(target).exists()
    with pytest.raises(InputError, match="add --resume to go on, or delete it"):
        collect_statistics(voice, LINES, target, CONFIG, quiet)
    said: list[int] = []
    config = CollectConfig(max_tokens=8, threads=1, resume=True)
    collect_statistics(voice, LINES, target, config, lambda step, done, total: said.append(done))
    assert said == [2, 3]
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("lines", "config", "message"),
    [
        (LINES, CollectConfig(seed=1, max_tokens=8, resume=True), "seed 0 in place of 1"),
        (CalibrationSet("three", LINES.lines[::-1]), CollectConfig(max_tokens=8, resume=True), "set_sha256"),
    ],
)
def test_unfinished_work_of_another_kind_is_left_alone(
    lines: CalibrationSet, config: CollectConfig, message: str, voice: Bundle, tmp_path: Path
) -> None:
    target = tmp_path / "s.safetensors"
    with pytest.raises(KeyboardInterrupt):
        collect_statistics(voice, LINES, target, CONFIG, interrupt_after(1))
    kept = progress_path(target).read_bytes()
    with pytest.raises(InputError, match=message):
        collect_statistics(voice, lines, target, config, quiet)
    assert progress_path(target).read_bytes() == kept
    progress_path(target).write_bytes(kept[:-100])
    with pytest.raises(InputError, match=r"damaged.*delete it"):
        collect_statistics(voice, LINES, target, CollectConfig(max_tokens=8, resume=True), quiet)


def interrupt_after(lines: int) -> Callable[[str, int, int], None]:
    def progress(step: str, done: int, total: int) -> None:
        if done == lines:
            raise KeyboardInterrupt

    return progress


def test_two_at_once_are_refused(voice: Bundle, tmp_path: Path) -> None:
    target, refused = tmp_path / "s.safetensors", []

    def again(step: str, done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(InputError, match="another calibration writes"):
                collect_statistics(voice, LINES, target, CONFIG, quiet)
            refused.append(done)

    collect_statistics(voice, LINES, target, CONFIG, again)
    assert refused == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_statistics_of_another_bundle_are_refused(voice: Bundle, whole: Path) -> None:
    files = {**voice.manifest.files, voice.manifest.graph("dit").data: FileRecord("f" * 64, 1)}
    with pytest.raises(InputError, match="expected statistics of this bundle"):
        Statistics.load(whole).check(dataclasses.replace(voice.manifest, files=files))


def test_only_fp32_is_calibrated(voice: Bundle, tmp_path: Path) -> None:
    graphs = tuple(dataclasses.replace(spec, precision="fp16") for spec in voice.manifest.graphs)
    other = Bundle(voice.root, dataclasses.replace(voice.manifest, graphs=graphs))
    with pytest.raises(InputError, match=r"expected a bundle at FP32, found .*fp16"):
        collect_statistics(other, LINES, tmp_path / "s.safetensors", CONFIG, quiet)


def test_targets_that_cannot_be_written(voice: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder"):
        collect_statistics(voice, LINES, tmp_path, CONFIG, quiet)
    with pytest.raises(MissingResourceError, match="expected a folder"):
        collect_statistics(voice, LINES, tmp_path / "none" / "s.safetensors", CONFIG, quiet)


def test_a_line_that_cannot_be_said_is_named(voice: Bundle, tmp_path: Path) -> None:
    lines = CalibrationSet("long", (Line("Hello."), Line("Hello.", "deep " * 2000)))
    with pytest.raises(InputError, match="line 2 of the set: expected room for text"):
        collect_statistics(voice, lines, tmp_path / "s.safetensors", CONFIG, quiet)


def test_memory_does_not_grow_with_what_is_seen() -> None:
    call = np.random.default_rng(0).standard_normal((1, 512, 64)).astype(np.float32)
    accumulator = TensorAccumulator(-1)
    tracemalloc.start()
    try:
        held = []
        for number in range(60):
            accumulator.add(call * np.float32(number))
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(held[1:]) - min(held[1:]) < call.nbytes / 4  # less than a part of one call, let alone 60 of them
    # The histogram, two sums and the samples; little else.
    bound = 8 * BINS + 64 * (8 + 8) + SAMPLE_ROWS * (2 * 64 + 8) + 64
    assert sum(array.nbytes for array in accumulator.state().values()) <= bound


# the command line


def set_file(folder: Path, count: int = 2) -> Path:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps({"text": f"Line {number}."}) + "\n" for number in range(count)))
    return path


def calibrate(folder: Path, *more: str) -> int:
    words = ["calibrate", str(tiny_voice()), "-o", str(folder / "s.safetensors"), "--max-tokens", "4"]
    return main([*words, "--threads", "1", "--json", *more])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(tmp_path, "--set", str(set_file(tmp_path, 1)), "--seed", "3") == 0
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert (data["provenance"]["seed"], data["provenance"]["lines"]) == (3, 1)
    known = Statistics.load(data["statistics"]).keys
    assert data["values"]["vae_decoder"] == sum(graph == "vae_decoder" for graph, _ in known) > 0
    assert "warning: " in shown.err
    assert "has 1 line" in shown.err
    assert Statistics.load(data["statistics"]).provenance.seed == 3


def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from voxedge.calibration import collect

    given, calls = collect._save_progress, []

    def save_and_interrupt(*arguments: object) -> None:
        given(*arguments)
        calls.append(arguments)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "_save_progress", save_and_interrupt)
        assert calibrate(tmp_path, "--set", str(set_file(tmp_path, 3))) == 130
    assert len(calls) == 1
    shown = capsys.readouterr().err
    assert "go on with: voxedge calibrate" in shown
    assert "--resume" in shown
    assert calibrate(tmp_path, "--set", str(set_file(tmp_path, 3)), "--resume") == 0
    assert (tmp_path / "s.safetensors").is_file()


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [(b"", 1, "empty file"), (b'{"text": "\xe9"}', 1, "line 1: expected UTF-8"), (None, 2, "no such calibration set")],
)
def test_bad_sets_have_their_exit_codes(
    content: bytes | None, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "bad.jsonl").write_bytes(content)
    assert calibrate(tmp_path, "--set", str(tmp_path / "bad.jsonl")) == code
    assert message in capsys.readouterr().err

"""The benchmark scripts' own parts: what they write is a checkpoint, what they report is what was measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from lm_decode import Results, add_earlier, read_results
from machine import LoadMeter, MemorySampler, describe
from measure import Figure
from report import markdown_table, replace_region, text_table
from roster import ENTRIES, Entry, select
from shapes import SHAPES, LmShape, write_checkpoint
from workers import NotInstalledError, Worker, WorkerError

from voxedge.export.checkpoint.moe_tts import load_moe_tts

TINY = LmShape(2, 64, 4, 2, 16, 96, text_rows=2048, speech_rows=100)
KILOBYTES_200 = 200_000


def test_fp32_checkpoint_holds_every_tensor_with_the_stated_statistics(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", TINY, "fp32")
    tensors = load_file(folder / "speech_expert" / "model.safetensors")
    assert len(tensors) == 2 + 11 * TINY.layers
    assert tensors["model.layers.1.self_attn.q_proj.weight"].shape == (64, 64)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (32, 64)
    assert tensors["model.embed_tokens.weight"].shape == (100, 64)
    assert (tensors["model.layers.0.self_attn.k_norm.weight"] == 1).all()
    values = np.concatenate([value.ravel() for value in tensors.values() if value.ndim == 2])
    # 61 000 samples of N(0, 0.02): the standard error of the deviation is 0.02 / sqrt(2 * 61000) = 6e-5.
    assert values.std() == pytest.approx(0.02, abs=3e-4)


def test_step_weights_count_the_matrices_of_the_blocks_and_the_head(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", TINY, "fp32")
    tensors = load_file(folder / "speech_expert" / "model.safetensors")
    matrices = sum(value.size for name, value in tensors.items() if "layers" in name and value.ndim == 2)
    assert TINY.step_weights == matrices + (100 + 1) * 64


def test_large_experts_are_sharded_and_no_shard_exceeds_the_bound(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", TINY, "bf16", shard_bytes=KILOBYTES_200)
    index = json.loads((folder / "text_expert" / "model.safetensors.index.json").read_text())
    files = sorted((folder / "text_expert").glob("*.safetensors"))
    assert {path.name for path in files} == set(index["weight_map"].values())
    assert len(files) > 1
    header_bytes = 4096
    # The embedding alone (2048 x 64 in two bytes) is larger than the bound; it gets a shard to itself.
    assert max(path.stat().st_size for path in files[1:]) < KILOBYTES_200 + header_bytes


def test_the_exporter_reads_the_checkpoint(tmp_path: Path) -> None:
    loaded = load_moe_tts(write_checkpoint(tmp_path / "checkpoint", TINY))
    assert loaded.speech.config.layers == TINY.layers
    assert loaded.speech_vocabulary.num_tokens == TINY.speech_rows
    assert loaded.dit is None


def test_an_existing_checkpoint_is_reused_only_if_it_is_the_same(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", TINY)
    written = (folder / "speech_expert" / "model.safetensors").stat().st_mtime_ns
    write_checkpoint(folder, TINY)
    assert (folder / "speech_expert" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="another checkpoint"):
        write_checkpoint(folder, TINY, "fp32")


def test_published_sizes() -> None:
    # Parameters of the blocks of Qwen3-0.6B (0.44 B) and 4B (3.63 B: 36 layers of 100.93 M), plus the speech head.
    assert SHAPES["0.6b"].step_weights == pytest.approx(0.4404e9 + 6562 * 1024, rel=1e-3)
    assert SHAPES["4b"].step_weights == pytest.approx(36 * 100.93e6 + 6562 * 2560, rel=1e-3)


def test_bytes_of_a_step_are_weights_and_cache() -> None:
    entry = Entry("x", "x", weight_bits=4.5, kv_bits=16)
    shape = SHAPES["0.6b"]
    assert entry.step_bytes(shape, 0) == shape.step_weights * 4.5 / 8
    assert entry.step_bytes(shape, 10) - entry.step_bytes(shape, 0) == 10 * 2 * 28 * 8 * 128 * 2
    assert entry.bits_class == 4


def test_names_of_engines_are_unique_and_select() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert [entry.name for entry in select(["llama.cpp F"])] == ["llama.cpp F32", "llama.cpp F16"]


def test_parts_of_a_run_are_put_together(tmp_path: Path) -> None:
    settings = {"shape": "smoke", "contexts": [0], "prefill": 64}
    parts = []
    for threads in (1, 2):
        figure = Figure("voxedge fp32", threads, "decode", 0, 3.0, (2.9, 3.1), 0.0, 30.0, 0.5)
        overhead = {f"loop, threads={threads}": 50.0}
        parts.append(Results(describe(["numpy"]), settings, [figure], overhead_us=overhead))
    (tmp_path / "first.json").write_text(json.dumps(asdict(parts[0])))
    earlier = read_results(tmp_path / "first.json")
    assert earlier == parts[0]
    add_earlier(parts[1], earlier)
    assert [figure.threads for figure in parts[1].figures] == [1, 2]
    assert list(parts[1].overhead_us) == ["loop, threads=1", "loop, threads=2"]
    with pytest.raises(SystemExit, match="one machine"):
        add_earlier(parts[1], Results(describe(["numpy"]), {**settings, "shape": "4b"}))


def test_tables_align() -> None:
    assert text_table(["a", "bb"], [["long", "1"]]) == "a     bb\nlong   1"
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_a_region_of_a_page_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    replace_region(page, "x", "new")
    assert page.read_text() == "before\n<!-- x:begin -->\nnew\n<!-- x:end -->\nafter\n"
    with pytest.raises(SystemExit, match="y:begin"):
        replace_region(page, "y", "new")


def test_memory_of_a_child_is_seen() -> None:
    code = "import time; block = bytearray(150_000_000); time.sleep(0.5)"
    peaks = MemorySampler(subprocess.Popen([sys.executable, "-c", code], text=True)).finish()
    assert 150e6 < peaks.anonymous <= peaks.rss
    assert peaks.high_water < 300e6


def test_load_of_a_known_process_is_not_foreign() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        known, unknown = LoadMeter([busy.pid]), LoadMeter([])
        time.sleep(1.0)
        difference = unknown.foreign_cores() - known.foreign_cores()
        busy.kill()
    # The same second is measured by both, so others' load cancels; even a crowded machine gives it a fifth of a core.
    assert difference > 0.2


def test_machine_is_described() -> None:
    machine = describe(["numpy"])
    assert machine.logical_cores >= 1
    assert machine.packages["numpy"] == np.__version__


def test_a_missing_peer_is_told_from_a_failing_one(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match="no interpreter"):
        Worker(str(tmp_path / "python"), "llamacpp", 1, tmp_path / "log")
    worker = Worker(sys.executable, "llamacpp", 1, tmp_path / "log")
    expected = WorkerError if importlib.util.find_spec("llama_cpp") else NotInstalledError
    request = {"checkpoint": str(tmp_path), "work": str(tmp_path), "threads": 1, "options": {"format": "F32"}}
    try:
        with pytest.raises(expected):
            worker.ask("prepare", **request)
    finally:
        worker.close()


def test_bandwidth_worker_answers(tmp_path: Path) -> None:
    worker = Worker(sys.executable, "bandwidth", 1, tmp_path / "log")
    try:
        worker.ask("load", threads=1)
        # Any memory of the last twenty years reads more than 0.1 and less than 10 000 GB/s on one core.
        assert 1e8 < worker.ask("bandwidth")["bytes_per_s"] < 1e13
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("nonsense")
    finally:
        worker.close()

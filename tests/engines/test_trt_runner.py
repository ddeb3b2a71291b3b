"""TensorRT engines on the doubles: caches in place, profiles, staging, captured graphs, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cache_graphs import LONGEST, cache_spec, write_cache_bundle
from trt_double import VERSIONS, CudaDouble, device_of, install
from trt_double.running import IExecutionContext

from voxedge.engines.backend import Buffer
from voxedge.engines.errors import InferenceError
from voxedge.engines.trt import replays
from voxedge.engines.trt.builder import build_bundle
from voxedge.engines.trt.config import BuildConfig, WeightsMode
from voxedge.engines.trt.loading import EngineSource
from voxedge.engines.trt.replays import Replays
from voxedge.engines.trt.runner import TrtEngine, TrtOptions

ALIGNED, UNEVEN = 64, 24
"""Widths whose float32 rows are 256 bytes, which TensorRT takes at any row, and 96, which it does not."""


@dataclass
class Stand:
    """A bundle with engines on a device."""

    cuda: CudaDouble
    source: EngineSource

    def engine(self, name: str = "grow") -> TrtEngine:
        """A fresh engine."""
        return self.source.load(name)


def stand(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str = "10.3",
    width: int = ALIGNED,
    integrated: bool = True,
    weights: WeightsMode = "embedded",
    graphs: int = 8,
) -> Stand:
    cuda = device_of(version, integrated=integrated)
    install(monkeypatch, version, cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(path / "cache"))
    bundle = write_cache_bundle(path / "bundle", cache_spec(width), cache_spec(width, name="other"))
    target = "rtx" if version.startswith("rtx") else "trt"
    build_bundle(bundle, BuildConfig(target=target, weights=weights))  # type: ignore[arg-type]
    flavour = "tensorrt_rtx" if target == "rtx" else "tensorrt"
    return Stand(cuda, EngineSource(bundle, flavour, TrtOptions(graphs)))  # type: ignore[arg-type]


class Steps:
    """A cache that is filled row by row, as `runtime.decoder` does it."""

    def __init__(self, engine: TrtEngine, width: int, rows: int = LONGEST) -> None:
        self.cache = engine.allocate((rows, width), np.float32)
        self.x = np.zeros((1, width), np.float32)
        self.total = np.zeros((1, width), np.float32)
        self.engine, self.binding = engine, engine.binding()
        self.binding.bind("x", Buffer.of(self.x))
        self.binding.bind("total", Buffer.of(self.total))

    def step(self, past: int, value: float) -> float:
        """Append a row of 2 * value; gives the sum of a column."""
        self.x[:] = value
        self.binding.bind("past", self.cache.rows(0, past))
        self.binding.bind("new", self.cache.rows(past, past + 1))
        self.binding.run()
        assert (self.total == self.total[0, 0]).all()
        return float(self.total[0, 0])


@pytest.mark.parametrize("integrated", [True, False])
@pytest.mark.parametrize("width", [ALIGNED, UNEVEN])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_cache_grows_in_place(
    version: str, width: int, integrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stand(tmp_path, monkeypatch, version, width, integrated)
    engine = place.engine()
    steps = Steps(engine, width)
    for _ in range(2):  # the second time the rows are overwritten, and the calls are replayed or captured
        assert [steps.step(past, past + 1) for past in range(5)] == [2, 6, 12, 20, 30]
    expected = np.zeros((LONGEST, width), np.float32)
    expected[:5] = 2 * np.arange(1, 6, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(engine.download(steps.cache), expected)
    np.testing.assert_array_equal(engine.download(steps.cache.rows(1, 3)), expected[1:3])
    copied = {
        kind: sum(size for name, size in place.cuda.copies if name == kind) for kind in ("on device", "to device")
    }
    rows = 10 * width * 4
    uneven = sum(past * width * 4 % 256 != 0 for _ in range(2) for past in range(5))
    # No history is copied on the device: new rows alone, and those only where TensorRT refuses their address.
    captured_again = 5 if width == UNEVEN else 0
    assert copied["on device"] <= (uneven + captured_again) * width * 4
    assert copied["on device"] == 0 or width == UNEVEN
    assert copied["to device"] == 0 if integrated else copied["to device"] >= rows


def test_memory_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch)
    engine = place.engine()
    steps = Steps(engine, ALIGNED)
    for _ in range(3):
        steps.step(1, 1)
    assert place.cuda.launches == 1
    engine.close()
    place.source.close()
    del steps, engine
    gc.collect()
    assert place.cuda.used == 0
    assert place.cuda.graphs == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_host_to_host_and_profiles(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch, version)
    engine = place.engine()
    chosen: list[int] = []
    select = IExecutionContext.set_optimization_profile_async

    def watch(self: IExecutionContext, profile: int, stream: int) -> bool:
        chosen.append(profile)
        return select(self, profile, stream)

    monkeypatch.setattr(IExecutionContext, "set_optimization_profile_async", watch)
    for past, new in ((0, 8), (8, 1), (9, 1), (0, 1), (10, 3)):
        feeds = {name: np.ones((rows, ALIGNED), np.float32) for name, rows in (("past", past), ("x", new))}
        found = engine.run(feeds)
        assert found["new"].shape == (new, ALIGNED)
        np.testing.assert_array_equal(found["total"], np.full((1, ALIGNED), past + 2 * new, np.float32))
    assert chosen == [0, 1, 0]  # prefill, decode for both single steps, prefill again


def test_sizes_outside_of_every_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stand(tmp_path, monkeypatch).engine()
    feeds = {"x": np.ones((33, ALIGNED), np.float32), "past": np.ones((0, ALIGNED), np.float32)}
    with pytest.raises(InferenceError, match=r"'new': '1\.\.32'.*found \{'new': 33, 'past': 0\}"):
        engine.run(feeds)
    feeds = {"x": np.ones((2, ALIGNED), np.float32), "past": np.ones((LONGEST + 1, ALIGNED), np.float32)}
    with pytest.raises(InferenceError, match=f"'past': {LONGEST + 1}"):
        engine.run(feeds)


def test_bindings_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch)
    engine = place.engine()
    binding = engine.binding()
    with pytest.raises(InferenceError, match="found 'y'"):
        binding.bind("y", Buffer.of(np.zeros((1, ALIGNED), np.float32)))
    with pytest.raises(InferenceError, match="expected a buffer of float32, found float64"):
        binding.bind("x", Buffer.of(np.zeros((1, ALIGNED))))
    binding.bind("x", Buffer.of(np.zeros((1, ALIGNED), np.float32)))
    with pytest.raises(InferenceError, match="nothing is bound to new, past, total"):
        binding.run()
    binding.bind("past", engine.allocate((2, ALIGNED + 1), np.float32))
    binding.bind("new", engine.allocate((1, ALIGNED), np.float32))
    binding.bind("total", engine.allocate((1, ALIGNED), np.float32))
    with pytest.raises(InferenceError, match="input past"):
        binding.run()
    binding.bind("past", engine.allocate((2, ALIGNED), np.float32))
    binding.run()
    for rows in (2, 3):  # each time: what was refused is not taken for checked
        binding.bind("new", engine.allocate((rows, ALIGNED), np.float32))
        with pytest.raises(InferenceError, match=rf"output new: expected a buffer of \[1, {ALIGNED}\], found \[{rows}"):
            binding.run()


def test_memory_that_is_gone_is_noticed_by_the_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_double import IllegalAccess

    engine = stand(tmp_path, monkeypatch).engine()
    steps = Steps(engine, ALIGNED, rows=4)
    view = steps.cache
    steps.cache = Buffer(view.pointer, (LONGEST, ALIGNED), view.dtype, "cuda", view.owner)
    with pytest.raises(IllegalAccess):
        steps.step(40, 1)


def test_a_repeated_call_is_captured_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch, integrated=False)
    steps = Steps(place.engine(), ALIGNED)
    steps.step(0, 1)
    steps.step(1, 2)
    assert [steps.step(1, value) for value in (3, 4, 5)] == [8, 10, 12]  # run, captured, replayed with new input
    assert place.cuda.launches == 2
    other = Steps(place.engine(), ALIGNED)
    assert other.step(1, 3) == 6  # another cache: another address, so no replay
    assert place.cuda.launches == 2


def test_graphs_are_dropped_when_scratch_memory_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_double import running

    place = stand(tmp_path, monkeypatch)
    steps = Steps(place.engine(), ALIGNED)
    for value in (1, 2, 3):
        steps.step(1, value)
    assert place.cuda.launches == 1
    monkeypatch.setattr(running, "SCRATCH_BYTES", 1 << 20)
    monkeypatch.setattr(running.ICudaEngine, "device_memory_size_v2", property(lambda self: 1 << 20))
    larger = Steps(place.engine("other"), ALIGNED)
    assert larger.step(1, 1) == 2
    assert [steps.step(1, value) for value in (4, 5, 6)] == [8, 10, 12]
    assert place.cuda.launches == 3  # the first of them was captured anew


def test_a_capture_that_fails_is_told_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = stand(tmp_path, monkeypatch)
    steps = Steps(place.engine(), ALIGNED)
    steps.step(1, 1)
    place.cuda.failures["cuGraphInstantiateWithFlags"] = 900
    assert [steps.step(1, value) for value in (2, 3, 4)] == [4, 6, 8]
    assert place.cuda.launches == 0
    assert [record.message for record in caplog.records if "without CUDA graphs" in record.message] != []
    assert place.cuda.graphs == 0


def test_no_graphs_where_none_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch, graphs=0)
    steps = Steps(place.engine(), ALIGNED)
    assert [steps.step(1, value) for value in (1, 2, 3)] == [2, 4, 6]
    assert place.cuda.launches == 0


def test_a_context_that_cannot_be_captured_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch, "rtx-1.7")
    ready = iter([False, True, False, True, True])  # asked before a context is made for a graph, and behind its run
    monkeypatch.setattr(IExecutionContext, "is_stream_capturable", lambda self, stream: next(ready))
    steps = Steps(place.engine(), ALIGNED)
    assert [steps.step(1, value) for value in (1, 2, 3, 4, 5)] == [2, 4, 6, 8, 10]
    assert place.cuda.launches == 1


@pytest.mark.parametrize("weights", ["stripped", "refittable", "streamed"])
@pytest.mark.parametrize("version", VERSIONS)
def test_weights_that_come_from_elsewhere(
    version: str, weights: WeightsMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stand(tmp_path, monkeypatch, version, weights=weights)
    assert Steps(place.engine(), ALIGNED).step(0, 3) == 6


def test_out_of_memory_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch)
    engine = place.engine()
    with pytest.raises(InferenceError, match=r"out of memory \(8\.59 GB free of 8\.59 GB\): use --memory staged"):
        engine.allocate((1 << 34,), np.uint8)
    kept = engine.allocate((1 << 22,), np.uint8)
    del kept  # kept for later, and given back when memory is short
    place.cuda.total = place.cuda.used + (1 << 21)
    assert engine.allocate((5 << 20,), np.uint8).shape == (5 << 20,)


def test_a_device_error_is_an_inference_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path, monkeypatch)
    steps = Steps(place.engine(), ALIGNED)
    place.cuda.failures["cuStreamSynchronize"] = 1
    with pytest.raises(InferenceError, match=r"refused cuStreamSynchronize: invalid argument \(error 1\)"):
        steps.step(0, 1)
    assert place.cuda.cuStreamSynchronize(None) == 0  # what was enqueued is still to be done, before anything goes


@pytest.mark.parametrize("name", ["execute_async_v3", "set_tensor_address", "set_input_shape"])
def test_what_tensorrt_refuses_is_said_in_its_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(stand(tmp_path, monkeypatch).engine(), ALIGNED)

    def refuse(self: IExecutionContext, *_: object) -> bool:
        return bool(self._refuse("no kernel for this"))

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, name, refuse)
        with pytest.raises(InferenceError, match=r"graph grow failed: .*no kernel for this"):
            steps.step(0, 1)
    assert steps.step(0, 1) == 2


def keys(store: Replays[int], sequence: Iterator[int]) -> int:
    """Runs calls through a store as the runner does; how many were replayed."""
    found = 0
    for key in sequence:
        if store.find(key) is not None:
            found += 1
        elif store.wants(key):
            store.keep(key, key)
    return found


def test_a_cycle_longer_than_the_store_still_hits() -> None:
    """A least-recently-used store of 8 would replay nothing of a cycle of 20."""
    store: Replays[int] = Replays(8)
    assert keys(store, iter([*range(20)] * 2)) == 0
    assert keys(store, iter([*range(20)] * 3)) == 3 * 8
    assert len(store) == 8


def test_what_is_not_used_any_more_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "PATIENCE", 10)
    store: Replays[int] = Replays(2)
    assert keys(store, iter([1, 1, 2, 2, 1, 2])) == 2
    assert keys(store, iter([3, 3, 3])) == 0
    assert keys(store, iter([4] * 12)) > 0
    assert store.find(1) is None
    store.clear()
    assert len(store) == 0


def test_what_was_seen_once_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "SEEN_LIMIT", 3)
    store: Replays[int] = Replays(8)
    assert not any(store.wants(key) for key in (1, 2, 3, 4))
    assert store.wants(4)
    assert not store.wants(1)

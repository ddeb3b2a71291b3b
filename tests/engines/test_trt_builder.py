"""Real compilation with TensorRT-RTX, which needs no GPU when the devices are named."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tensorrt_surface import ShownModule
from toy_graphs import attention_nodes, model, write

from voxedge.engines import gpu, stamps
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, BuildError, BundleError, ConfigError, EngineMismatchError
from voxedge.engines.trt import builder as build
from voxedge.engines.trt import host
from voxedge.engines.trt.api import Library
from voxedge.engines.trt.builder import BuildConfig, build_bundle, build_engine
from voxedge.engines.trt.monitor import BuildProgress, BuildWatch

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
SM89 = BuildConfig(compute_capabilities=(89,))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "out", {"toy": model(attention_nodes())})


def leftovers(bundle: Bundle) -> list[str]:
    return sorted(path.name for path in (bundle.root / "engines").rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("devices", [(89,), (120,), (89, 120)])
def test_builds(tmp_path: Path, dtype: int, devices: tuple[int, ...]) -> None:
    bundle = write(tmp_path / "out", {"toy": model(attention_nodes(), dtype)})
    [record] = build_bundle(bundle, BuildConfig(compute_capabilities=devices))
    assert record.built
    assert record.reasons == ("not built yet",)
    assert record.path == bundle.root / "engines/rtx/toy.engine"
    assert record.path.stat().st_size == record.size_bytes > 2 * 64 * 64 * 2
    found = stamps.read_stamp(record.path)
    assert found is not None
    assert found.stamp == record.stamp
    assert found.stamp.compute_capabilities == devices
    assert found.stamp.version == rtx.__version__
    assert leftovers(bundle) == ["toy.engine", "toy.engine.json"]


def test_turing_takes_fp16_only(tmp_path: Path) -> None:
    bundle = write(tmp_path / "half", {"toy": model(attention_nodes(), TensorProto.FLOAT16)})
    build_bundle(bundle, BuildConfig(compute_capabilities=(75,)))
    bundle = write(tmp_path / "single", {"toy": model(attention_nodes())})
    with pytest.raises(BuildError, match=r"/layers.*FP32 GEMM is not supported.*--precision fp16"):
        build_bundle(bundle, BuildConfig(compute_capabilities=(75,)))


def test_fresh_engines_are_kept_and_stale_ones_rebuilt(tmp_path: Path) -> None:
    graphs = {"one": model(attention_nodes()), "two": model(attention_nodes(), seed=1)}
    bundle = write(tmp_path / "out", graphs)
    assert [record.built for record in build_bundle(bundle, SM89)] == [True, True]
    first = (bundle.root / "engines/rtx/one.engine").stat().st_mtime_ns
    assert [record.built for record in build_bundle(bundle, SM89)] == [False, False]
    assert (bundle.root / "engines/rtx/one.engine").stat().st_mtime_ns == first
    assert [record.reasons for record in build_bundle(bundle, SM89, force=True)] == [("asked for with --force",)] * 2

    kept = tmp_path / "engines"
    (bundle.root / "engines").rename(kept)
    bundle = write(tmp_path / "out", graphs | {"two": model(attention_nodes(), seed=2)}, overwrite=True)
    kept.rename(bundle.root / "engines")
    one, two = build_bundle(bundle, SM89)
    assert (one.built, two.built) == (False, True)
    assert len(two.reasons) == 1
    assert two.reasons[0].startswith("weights (sha256): built with ")


def test_other_reasons_to_rebuild(bundle: Bundle) -> None:
    [record] = build_bundle(bundle, SM89)

    def reasons(config: BuildConfig = SM89) -> tuple[str, ...]:
        return build_bundle(bundle, config)[0].reasons

    assert reasons(BuildConfig(compute_capabilities=(120,))) == ("device: built for SM89, wanted SM120",)
    assert reasons(BuildConfig(compute_capabilities=(89, 120))) == ("device: built for SM120, wanted SM89, SM120",)
    assert reasons(SM89) == ()  # an engine for more devices fits
    changed = BuildConfig(compute_capabilities=(89,), optimization_level=1)
    assert reasons(changed) == ("option optimization_level: built with 3, wanted 1",)
    with record.path.open("ab") as file:
        file.write(b"x")
    assert "bytes, found" in reasons(changed)[0]
    stamps.stamp_path(record.path).write_text("{}")
    assert "missing 'stamp', 'engine'" in reasons(changed)[0]
    stamps.stamp_path(record.path).unlink()
    assert reasons(changed) == ("it has no stamp, so nobody knows what it was built from",)


def test_progress_rises_and_finishes(bundle: Bundle) -> None:
    seen: list[BuildProgress] = []
    build_bundle(bundle, SM89, seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert fractions[-1] == 1.0
    assert fractions.count(1.0) == 1
    assert len(set(fractions)) > 10
    assert {progress.graph for progress in seen} == {"toy"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupt_in_a_callback(bundle: Bundle, error: type[BaseException]) -> None:
    calls = []

    def stop(progress: BuildProgress) -> None:
        calls.append(progress)
        if len(calls) == 3:
            raise error

    with pytest.raises(error):
        build_bundle(bundle, SM89, stop)
    assert len(calls) == 3
    assert leftovers(bundle) == []


def test_interrupt_keeps_the_old_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    [record] = build_bundle(bundle, SM89)
    before = record.path.read_bytes()

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, SM89, stop, force=True)
    monkeypatch.setattr(build.files.os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, SM89, force=True)
    assert record.path.read_bytes() == before
    assert leftovers(bundle) == ["toy.engine", "toy.engine.json"]
    assert not build_bundle(bundle, SM89)[0].built


def test_ctrl_c(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """A real signal, while the build waits for the callback: it ends at the next step."""
    entered = threading.Event()
    calls = []

    def wait(progress: BuildProgress) -> None:
        calls.append(progress)
        if not entered.is_set():
            entered.set()
            os.kill(os.getpid(), signal.SIGINT)
            while not any("stopping the build" in record.message for record in caplog.records):
                pass

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, SM89, wait)
    assert len(calls) == 1
    assert leftovers(bundle) == []


def test_ctrl_c_waits_for_the_build_to_stop() -> None:
    """Interrupting Thread.join makes Python 3.11 forget a running thread; the build must have ended all the same."""
    watch, finished = BuildWatch("toy", None), []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not watch.stopped:
            time.sleep(0.001)
        time.sleep(0.3)  # the rest of a step
        finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        watch.run(work)
    assert finished == [True]


def test_broken_onnx(bundle: Bundle) -> None:
    path = bundle.graph_path(bundle.manifest.graphs[0])
    path.write_bytes(path.read_bytes()[:-100] + b"\xff" * 100)
    with pytest.raises(BundleError, match="expected sha256"):
        build_bundle(bundle, SM89)
    broken = write(bundle.root.parent / "broken", {"toy": model(attention_nodes())}, overwrite=True)
    graph = broken.manifest.graphs[0]
    broken.graph_path(graph).write_bytes(path.read_bytes())
    (broken.root / "voxedge.json").write_text(
        (broken.root / "voxedge.json")
        .read_text()
        .replace(broken.manifest.files[graph.path].sha256, build.files.hash_file(path))
    )
    with pytest.raises(BuildError, match="cannot parse"):
        build_bundle(Bundle.open(broken.root), SM89)
    assert leftovers(broken) == []


def test_refused_operator_is_named(tmp_path: Path) -> None:
    nodes = attention_nodes(1)
    nodes[-1].output[0] = "inner"
    nodes.append(helper.make_node("Det", ["inner"], ["det"], "/head/Det"))
    nodes.append(helper.make_node("Add", ["inner", "det"], ["y"], "/head/Add"))
    bundle = write(tmp_path / "out", {"toy": model(nodes)})
    with pytest.raises(BuildError, match=r"/head/Det \(Det\)"):
        build_bundle(bundle, SM89)
    assert leftovers(bundle) == []


def test_profile_that_the_graph_forbids(tmp_path: Path) -> None:
    nodes = attention_nodes(1)
    nodes[-1].output[0] = "inner"
    nodes.append(helper.make_node("Reshape", ["inner", "shape"], ["y"], "/head/Reshape"))
    proto = model(nodes)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 64]), "shape"))
    bundle = write(tmp_path / "out", {"toy": proto})  # one row only, though the manifest promises 64
    with pytest.raises(BuildError, match="toy was refused: "):
        build_bundle(bundle, SM89)
    assert leftovers(bundle) == []


def test_manifest_and_graph_disagree(tmp_path: Path) -> None:
    nodes = attention_nodes()
    proto = model(nodes)
    proto.graph.input[0].name = "hidden"
    nodes[0].input[0] = proto.graph.node[0].input[0] = "hidden"
    bundle = write(tmp_path / "out", {"toy": proto})
    with pytest.raises(BuildError, match=r"expected the inputs \['x'\], found \['hidden'\]"):
        build_bundle(bundle, SM89)


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="run `voxedge build` on the device"):
        BuildConfig(target="trt", compute_capabilities=(87,))
    with pytest.raises(ConfigError, match="0 to 5"):
        BuildConfig(optimization_level=6)


def test_unknown_device_and_no_device(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"compiles for 75, 80, .*found --sm 87"):
        build_bundle(bundle, BuildConfig(compute_capabilities=(87,)))
    monkeypatch.setattr(host, "find_gpus", lambda: ())
    with pytest.raises(BackendUnavailableError, match=r"found none .*--sm 75,80"):
        build_bundle(bundle, BuildConfig())


def test_refit_needs_the_device(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailableError, match="stripped engines can be built on the device only"):
        build_bundle(bundle, BuildConfig(compute_capabilities=(89,), weights="stripped"))


def test_no_room(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.files, "free_bytes", lambda _: 100)
    with pytest.raises(BuildError, match=r"of free disk space, found 100 bytes"):
        build_bundle(bundle, SM89)


def test_little_memory_is_said_before_the_start(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "free_swap_bytes", lambda: 0)
    monkeypatch.setattr(build, "available_memory_bytes", lambda: 100_000)
    build_bundle(bundle, SM89)
    assert "may swap or be killed" in caplog.text
    monkeypatch.setattr(build, "available_memory_bytes", lambda: 1000)
    with pytest.raises(BuildError, match=r"takes 66\.4 kB of memory at least, .* 1 kB are available"):
        build_bundle(bundle, SM89, force=True)
    assert leftovers(bundle) == ["toy.engine", "toy.engine.json"]


@pytest.mark.parametrize("version", ["10.3", "10.13", "11.4"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorrt_by_its_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The Jetson path over a double: TensorRT-RTX with the names of TensorRT 10.3 to 11.4 only."""
    orin = gpu.Gpu(0, "Orin", 87, 8 << 30, True, "12.6")
    double: Any = ShownModule(rtx, version)
    monkeypatch.setattr(build, "load", lambda _: Library("tensorrt", double, f"{version}.0"))
    monkeypatch.setattr(host, "find_gpus", lambda: (orin,))
    bundle = write(tmp_path / "out", {"toy": model(attention_nodes())})
    cache = tmp_path / "caches/timing.bin"
    config = BuildConfig(target="trt", timing_cache=cache)
    [record] = build_bundle(bundle, config)
    assert record.stamp.compute_capabilities == (87,)
    assert record.path == bundle.root / "engines/trt/toy.engine"
    assert cache.stat().st_size > 0
    cache.write_bytes(b"not a cache")
    assert build_bundle(bundle, config, force=True)[0].built
    assert "Failed to deserialize timing cache" in caplog.text


def test_engines_that_do_not_fit_are_refused_before_they_are_opened(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs[0]
    record = build_engine(bundle, graph, SM89, bundle.root / "engines/rtx")
    library = build.load("tensorrt_rtx")
    command = stamps.build_command(bundle.root, "rtx", (120,))
    stamps.check_engine(record.path, host.find_host(library, (89,)).stamp(bundle, graph, {}), command)
    with pytest.raises(EngineMismatchError, match=r"built for SM89, wanted SM120.*Type: voxedge build .* --sm 120"):
        stamps.check_engine(record.path, host.find_host(library, (120,)).stamp(bundle, graph, {}), command)

"""Engines of a bundle on the doubles: what does not fit is refused by name before it is opened; `auto` says so."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cache_graphs import cache_spec, write_cache_bundle
from trt_double import VERSIONS, CudaDouble, device_of, install
from trt_double.building import TIMING_MAGIC, read_plan
from trt_double.running import Runtime

from voxedge.engines import gpu, stamps
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import (
    BackendUnavailableError,
    BuildError,
    ConfigError,
    EngineMismatchError,
    InferenceError,
)
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.engines.stamps import EngineFlavour
from voxedge.engines.trt import config as configuration
from voxedge.engines.trt import host
from voxedge.engines.trt.api import Library, parse_version
from voxedge.engines.trt.api import load as load_library
from voxedge.engines.trt.builder import build_bundle
from voxedge.engines.trt.config import BuildConfig
from voxedge.engines.trt.cuda import open_cuda
from voxedge.engines.trt.monitor import BuildProgress
from voxedge.engines.trt.session import Session

TRT = BuildConfig(target="trt")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_cache_bundle(tmp_path / "bundle", cache_spec(), cache_spec(name="other"))


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    cuda = CudaDouble()
    install(monkeypatch, "10.3", cuda)
    return cuda


def load(bundle: Bundle, name: str = "grow") -> None:
    GraphLoader(bundle, LoadOptions("tensorrt")).load(name)


def forbid_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("an engine was opened before its stamp was compared")

    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", fail)


def test_engines_that_are_missing_are_all_named(bundle: Bundle, orin: CudaDouble) -> None:
    loader = GraphLoader(bundle, LoadOptions("tensorrt"))
    with pytest.raises(EngineMismatchError) as caught:
        loader.require("grow", "other")
    assert caught.value.exit_code == 6
    message = str(caught.value)
    assert "grow: not built yet" in message
    assert "other: not built yet" in message
    assert message.endswith(f"Type: voxedge build {bundle.root} --target trt")
    with pytest.raises(EngineMismatchError, match="grow: not built yet"):
        loader.load("grow")


@pytest.mark.parametrize(
    ("version", "device", "reason"),
    [
        ("10.13", CudaDouble, r"library version: built with 10\.3\.0\.30, wanted 10\.13\.3\.9"),
        ("10.3", lambda: CudaDouble("Orin", 72), "device: built for SM87, wanted SM72"),
    ],
)
def test_engines_of_another_version_or_device(
    bundle: Bundle,
    orin: CudaDouble,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    device: Callable[[], CudaDouble],
    reason: str,
) -> None:
    build_bundle(bundle, TRT)
    load(bundle)
    install(monkeypatch, version, device())
    forbid_opening(monkeypatch)
    with pytest.raises(EngineMismatchError, match=reason):
        load(bundle)


def test_an_engine_of_another_profile_or_graph(
    bundle: Bundle, orin: CudaDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_bundle(bundle, TRT)
    engines = shutil.copytree(bundle.root / "engines", tmp_path / "engines")
    wider = write_cache_bundle(tmp_path / "wider", cache_spec(128), cache_spec(name="other"))
    shutil.move(engines, wider.root / "engines")
    forbid_opening(monkeypatch)
    with pytest.raises(EngineMismatchError, match=r"graph \(sha256\): built with"):
        load(wider)
    path = bundle.root / "engines/trt/grow.engine.json"
    path.write_text(path.read_text().replace('"max": 64', '"max": 65'))
    with pytest.raises(EngineMismatchError, match=r"profile prefill, past: built for 0\.\.0\.\.65, wanted"):
        load(bundle)


def test_a_damaged_engine(bundle: Bundle, orin: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    build_bundle(bundle, TRT)
    path = bundle.root / "engines/trt/grow.engine"
    content = path.read_bytes()
    path.write_bytes(b"?" + content[1:])
    with pytest.raises(EngineMismatchError, match=r"cannot open this engine: .*the plan is damaged; build it again"):
        load(bundle)
    path.write_bytes(content[:-1])
    with pytest.raises(EngineMismatchError, match=r"expected \d+ bytes, found \d+"):
        load(bundle)
    path.write_bytes(content)
    load(bundle)
    stamp = stamps.read_stamp(path)
    assert stamp is not None
    path.write_bytes(b"")
    stamps.write_stamp(path, stamp.stamp)
    with pytest.raises(EngineMismatchError, match="found an empty file"):
        load(bundle)


def test_no_room_for_an_engine(bundle: Bundle, orin: CudaDouble) -> None:
    build_bundle(bundle, TRT)
    loader = GraphLoader(bundle, LoadOptions("tensorrt", "staged"))
    orin.total = 1000
    with pytest.raises(InferenceError, match=r"no room for the engine grow\.engine: .*--memory staged"):
        loader.load("grow")


def test_a_driver_that_is_too_old(bundle: Bundle, orin: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT-RTX 1.7 itself says on a machine without a driver of its CUDA; building again would not help."""
    build_bundle(bundle, TRT)

    def refuse(self: Runtime, data: object) -> None:
        self._logger.log(1, "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)")

    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", refuse)
    with pytest.raises(BackendUnavailableError, match=r"older than the CUDA of tensorrt 10\.3.*update it"):
        load(bundle)


def test_no_driver_and_no_device(bundle: Bundle, orin: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    orin.failures["cuInit"] = 100
    with pytest.raises(BackendUnavailableError, match=r"tensorrt cannot run here: .*a driver that shows no device"):
        load(bundle)
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda *_: (_ for _ in ()).throw(OSError("cannot open shared object")))
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA driver \(libcuda\.so\.1\); run `voxedge doctor`"):
        load(bundle)


H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": 90, "total": 80 << 30, "integrated": False}
ADVICE = (
    r"1\.7\.1\.116 does not support this GPU's compute capability 9\.0 \(NVIDIA H100 80GB HBM3; .*\): "
    "use --target trt with --backend tensorrt, or --backend cuda"
)


def test_a_gpu_that_rtx_has_no_kernels_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No build would help, so none is made and none is asked for."""
    install(monkeypatch, "rtx-1.7", CudaDouble(**H100))
    with pytest.raises(BackendUnavailableError, match=ADVICE):
        build_bundle(bundle, BuildConfig())
    assert not (bundle.root / "engines").exists()
    with pytest.raises(BackendUnavailableError, match=ADVICE) as caught:
        GraphLoader(bundle, LoadOptions("tensorrt_rtx"))
    assert "voxedge build" not in str(caught.value)
    build_bundle(bundle, BuildConfig(compute_capabilities=(89,)))  # for other machines it can
    caplog.set_level(logging.INFO)
    assert GraphLoader(bundle, LoadOptions()).backend == "cpu"
    assert any("backend auto: not tensorrt_rtx" in message for message in caplog.messages)


def test_what_rtx_itself_says_of_such_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its list of devices and its kernels do not agree."""
    cuda = CudaDouble(**H100)
    install(monkeypatch, "rtx-1.7", cuda)
    library = host.find_host(host_library("tensorrt_rtx"), (89,)).library
    build_bundle(bundle, BuildConfig(compute_capabilities=(89,)))
    session = Session(library, open_cuda())
    with pytest.raises(BackendUnavailableError, match=ADVICE):
        session.open(bundle.root / "engines/rtx/grow.engine")
    session.close()


def test_auto_takes_engines_that_fit_and_says_so(
    bundle: Bundle, orin: CudaDouble, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert GraphLoader(bundle, LoadOptions()).backend == "cpu"
    build_bundle(bundle, TRT)
    caplog.clear()
    loader = GraphLoader(bundle, LoadOptions())
    assert loader.backend == "tensorrt"
    assert "backend auto: tensorrt" in caplog.messages
    feeds = {"x": np.ones((1, 64), np.float32), "past": np.ones((2, 64), np.float32)}
    assert loader.load("grow").run(feeds)["total"][0, 0] == 4
    loader.close()


def test_auto_warns_of_stale_engines(
    bundle: Bundle, orin: CudaDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_bundle(bundle, TRT)
    install(monkeypatch, "10.13", CudaDouble())
    assert GraphLoader(bundle, LoadOptions()).backend == "cpu"
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "backend auto: not tensorrt" in warning.message
    assert "--target trt" in warning.message


def test_short_memory_stages(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaDouble(integrated=False)
    install(monkeypatch, "11.4", cuda)
    build_bundle(bundle, TRT)
    assert not GraphLoader(bundle, LoadOptions("tensorrt")).staged
    engines = sum(path.stat().st_size for path in bundle.root.rglob("*.engine"))
    cuda.total = engines + 4096
    assert GraphLoader(bundle, LoadOptions("tensorrt")).staged
    assert not GraphLoader(bundle, LoadOptions("tensorrt", "resident")).staged


@pytest.mark.parametrize("version", VERSIONS)
def test_blockwise_graphs_and_old_parsers(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version, device_of(version))
    bundle = write_cache_bundle(tmp_path / "blocks", cache_spec(name="first"), cache_spec(opset=21))
    config = BuildConfig(target="rtx" if version.startswith("rtx") else "trt")
    if version != "10.3":
        assert len(build_bundle(bundle, config)) == 2
        return
    with pytest.raises(BuildError, match=r"graph grow \(fp32\): expected opset 20 or lower.*--precision int8"):
        build_bundle(bundle, config)
    assert not (bundle.root / "engines").exists()  # refused before the first graph was built


def test_the_blockwise_limit_is_between_the_versions() -> None:
    old, new = parse_version(VERSIONS["10.3"])[:2], parse_version(VERSIONS["10.13"])[:2]
    assert old < configuration.BLOCKWISE_SINCE <= new


def test_hardware_compatibility(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="TensorRT-RTX takes the devices by name"):
        BuildConfig(compatibility="ampere+")
    same = BuildConfig(target="trt", compatibility="same-capability")
    install(monkeypatch, "10.3", CudaDouble("A10", 86, integrated=False))
    with pytest.raises(ConfigError, match=r"TensorRT 10\.13 or newer .*found 10\.3"):
        build_bundle(bundle, same)
    wide = BuildConfig(target="trt", compatibility="ampere+")
    assert all(record.built for record in build_bundle(bundle, wide))
    install(monkeypatch, "10.3", CudaDouble("RTX 4090", 89, integrated=False))
    record = stamps.read_stamp(bundle.root / "engines/trt/grow.engine")
    assert record is not None
    current = host.find_host(host_library()).stamp(bundle, bundle.manifest.graphs[0], {})
    assert stamps.compare(record.stamp, current) == []
    install(monkeypatch, "10.3", CudaDouble("T4", 75, integrated=False))
    turing = host.find_host(host_library()).stamp(bundle, bundle.manifest.graphs[0], {})
    assert stamps.compare(record.stamp, turing) == ["device: built for SM86, wanted SM75"]
    monkeypatch.setattr(host, "read_l4t", lambda: "36.4.3")
    with pytest.raises(ConfigError, match="expected no --compatibility on a Jetson"):
        build_bundle(bundle, wide)


def host_library(flavour: EngineFlavour = "tensorrt") -> Library:
    return load_library(flavour)


@pytest.mark.parametrize("version", ["10.3", "10.13", "11.4"])
def test_a_timing_cache_that_is_refused_costs_nothing(
    version: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, version, CudaDouble())
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"measured on another device")
    build_bundle(bundle, BuildConfig(target="trt", timing_cache=cache))
    assert "timing.cache is damaged, or of another device or library" in caplog.text
    assert (tmp_path / "timing.cache.refused").read_bytes() == b"measured on another device"
    assert cache.read_bytes() == TIMING_MAGIC + b".."  # both graphs measured into it
    caplog.clear()
    build_bundle(bundle, BuildConfig(target="trt", timing_cache=cache), force=True)
    assert "timing" not in caplog.text
    assert cache.read_bytes() == TIMING_MAGIC + b"...."


def test_a_timing_cache_that_cannot_be_saved_costs_no_engine(
    bundle: Bundle, orin: CudaDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    config = BuildConfig(target="trt", timing_cache=tmp_path / "file/timing.cache")
    assert all(record.built for record in build_bundle(bundle, config))
    assert "the timing cache could not be saved" in caplog.text
    folder = tmp_path / "folder"
    folder.mkdir()
    assert all(
        record.built for record in build_bundle(bundle, BuildConfig(target="trt", timing_cache=folder), force=True)
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_fp32_is_fp32(version: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT would round FP32 products to TF32 unless told not to."""
    install(monkeypatch, version, device_of(version))
    target = "rtx" if version.startswith("rtx") else "trt"
    [record, _] = build_bundle(bundle, BuildConfig(target=target))  # type: ignore[arg-type]
    plan = read_plan(record.path.read_bytes())
    assert plan is not None
    assert plan[0]["tf32"] is False


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_and_workspace(version: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version, device_of(version))
    target = "rtx" if version.startswith("rtx") else "trt"
    seen: list[BuildProgress] = []
    build_bundle(bundle, BuildConfig(target=target), seen.append)  # type: ignore[arg-type]
    assert [progress.fraction for progress in seen if progress.graph == "grow"][-1] == 1.0
    with pytest.raises(BuildError, match=r"OutOfMemory: no workspace.*may lack memory"):
        build_bundle(bundle, BuildConfig(target=target, workspace_bytes=0), force=True)  # type: ignore[arg-type]
    assert (bundle.root / "engines" / target / "grow.engine").is_file()

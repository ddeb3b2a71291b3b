"""Portable graphs of a bundle compiled to engines.

In: an opened bundle and a `BuildConfig`. Out: `engines/<target>/<graph>.engine` with a stamp beside each, written
atomically, and an `EngineRecord` for every graph. Fresh engines are kept; stale ones are rebuilt and it says why.
Networks are strongly typed: precision lives in the graph. Does not open or run engines, and guesses no sizes.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxedge.engines import files
from voxedge.engines.bundle import ENGINES_FOLDER, Bundle
from voxedge.engines.errors import BuildError, BundleError
from voxedge.engines.gpu import available_memory_bytes, free_swap_bytes
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.stamps import EngineStamp, find_differences, write_engine
from voxedge.engines.trt.api import FLAVOURS, Target, load
from voxedge.engines.trt.config import BuildConfig, check_config, check_parser, configure
from voxedge.engines.trt.host import BuildHost, find_host, timing_cache_path
from voxedge.engines.trt.monitor import BuildWatch, ProgressCallback, shared_logger
from voxedge.engines.trt.network import add_profiles, check_network, parse_graph
from voxedge.engines.trt.timing_cache import load_timing_cache, save_timing_cache

__all__ = ["BuildConfig", "EngineRecord", "build_bundle", "build_engine", "engine_path", "required_memory_bytes"]

# Peak resident memory of a build, measured with TensorRT-RTX 1.7 on FP16 and INT4 language models of 0.3 to 0.9 GB.
_MEMORY_PER_WEIGHT = 5.6
_MEMORY_BASE_BYTES = 500_000_000
# What no build can do without: the weights as they were parsed, and once more in the engine.
_LEAST_MEMORY_PER_WEIGHT = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What became of one graph."""

    graph: str
    """The graph's name."""
    path: Path
    """The engine file."""
    stamp: EngineStamp
    """What it was built from and for."""
    built: bool
    """False where the engine on disk was fresh and kept."""
    reasons: tuple[str, ...]
    """Why it was built; empty where it was kept."""
    size_bytes: int
    """Size of the engine file."""
    duration_s: float
    """Wall time of parsing and building; 0 where it was kept."""


def engine_path(bundle: Bundle, graph: GraphSpec, target: Target) -> Path:
    """Where the engine of a portable graph lies."""
    return bundle.path(f"{ENGINES_FOLDER}/{target}/{graph.name}.engine")


def build_bundle(
    bundle: Bundle, config: BuildConfig, on_progress: ProgressCallback | None = None, force: bool = False
) -> list[EngineRecord]:
    """Build the engines of all portable graphs that have none or a stale one.

    Args:
        bundle: The opened bundle; engines go below its `engines/`.
        config: Target, devices and builder options.
        on_progress: Called from the build's thread; what it raises ends the build and is raised here.
        force: Build fresh ones again, too.

    Raises:
        BuildError: A graph was refused, or there is no room for its engine.
        BackendUnavailableError: The library, or the device to build for, is not there.
        KeyboardInterrupt: Ctrl-C was pressed; finished engines stay, no partial one is left.
    """
    library = load(FLAVOURS[config.target])
    host = find_host(library, config.compute_capabilities)
    records = []
    graphs = [graph for graph in bundle.manifest.graphs if graph.flavour == "portable"]
    check_config(config, host)
    for graph in graphs:  # before the first of them is built
        check_parser(library, graph)
    for graph in graphs:
        path = engine_path(bundle, graph, config.target)
        wanted = host.stamp(bundle, graph, config.stamp_options())
        reasons = find_differences(path, wanted) or (["asked for with --force"] if force else [])
        if not reasons:
            _log.info("%s: the engine is fresh", graph.name)
            records.append(EngineRecord(graph.name, path, wanted, False, (), path.stat().st_size, 0.0))
            continue
        _log.info("%s: building the engine: %s", graph.name, "; ".join(reasons))
        records.append(_build(bundle, graph, config, path, host, tuple(reasons), on_progress))
    return records


def build_engine(
    bundle: Bundle,
    graph: GraphSpec,
    config: BuildConfig,
    out_dir: Path,
    on_progress: ProgressCallback | None = None,
) -> EngineRecord:
    """Build the engine of one portable graph into `out_dir`, whatever is there.

    Raises:
        BuildError: The graph was refused, or there is no room for its engine.
        BackendUnavailableError: The library, or the device to build for, is not there.
    """
    host = find_host(load(FLAVOURS[config.target]), config.compute_capabilities)
    path = out_dir / f"{graph.name}.engine"
    return _build(bundle, graph, config, path, host, ("asked for",), on_progress)


def required_memory_bytes(bundle: Bundle, graph: GraphSpec) -> int:
    """Host memory that a build takes at its peak, estimated from the size of the weights."""
    weights = bundle.manifest.files[graph.data].size + bundle.manifest.files[graph.path].size
    return _MEMORY_BASE_BYTES + int(_MEMORY_PER_WEIGHT * weights)


def _build(
    bundle: Bundle,
    graph: GraphSpec,
    config: BuildConfig,
    path: Path,
    host: BuildHost,
    reasons: tuple[str, ...],
    on_progress: ProgressCallback | None,
) -> EngineRecord:
    if graph.flavour != "portable":
        raise BuildError(f"graph {graph.name}: expected the portable flavour, found {graph.flavour}")
    check_config(config, host)
    check_parser(host.library, graph)
    stamp = host.stamp(bundle, graph, config.stamp_options())
    _check_sources(bundle, graph)
    _check_resources(bundle, graph, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    watch = BuildWatch(graph.name, on_progress)
    started = time.monotonic()
    serialized = watch.run(lambda: _compile(bundle, graph, config, host, watch))
    _write_engine(path, serialized, stamp)
    watch.report("written", 1.0)
    duration_s = time.monotonic() - started
    size_bytes = path.stat().st_size
    _log.info("%s: %s in %.1f s", graph.name, files.format_bytes(size_bytes), duration_s)
    return EngineRecord(graph.name, path, stamp, True, reasons, size_bytes, duration_s)


def _compile(bundle: Bundle, graph: GraphSpec, config: BuildConfig, host: BuildHost, watch: BuildWatch) -> Any:  # noqa: ANN401
    """Parse and build; returns TensorRT's IHostMemory."""
    trt = host.library.module
    logger = shared_logger(host.library)
    builder = trt.Builder(logger)
    network = builder.create_network(host.library.network_flags())
    # The parser owns the weights that it read: it must live until the build is done.
    parser = parse_graph(host.library, network, logger, graph, bundle.graph_path(graph))
    check_network(network, graph)
    builder_config = builder.create_builder_config()
    builder_config.progress_monitor = watch.progress_monitor(host.library)
    configure(host, builder_config, config, required_memory_bytes(bundle, graph))
    add_profiles(builder, builder_config, graph)
    cache = load_timing_cache(host.library, builder_config, _cache_path(host, config))
    serialized = builder.build_serialized_network(network, builder_config)
    del parser
    if serialized is None:
        raise BuildError(_explain(graph, watch.errors, required_memory_bytes(bundle, graph)))
    if cache is not None:
        save_timing_cache(cache, _cache_path(host, config))
    return serialized


def _check_sources(bundle: Bundle, graph: GraphSpec) -> None:
    for relative in (graph.path, graph.data):
        found = files.hash_file(bundle.path(relative))
        expected = bundle.manifest.files[relative].sha256
        if found != expected:
            raise BundleError(f"{bundle.root / relative}: expected sha256 {expected}, found {found}; export again")


def _check_resources(bundle: Bundle, graph: GraphSpec, path: Path) -> None:
    weights = bundle.manifest.files[graph.data].size + bundle.manifest.files[graph.path].size
    files.ensure_free_space(path.parent, weights + weights // 4, BuildError)
    needed, available = required_memory_bytes(bundle, graph), available_memory_bytes()
    _log.info("%s: building takes about %s of memory", graph.name, files.format_bytes(needed))
    if available is None:
        return
    advice = (
        f"{files.format_bytes(available)} are available: close other programs, add swap, or build desktop engines on "
        "a larger machine with --sm"
    )
    least = int(_LEAST_MEMORY_PER_WEIGHT * weights)
    if available + free_swap_bytes() < least:
        text = f"graph {graph.name}: building takes {files.format_bytes(least)} of memory at least, swap included"
        raise BuildError(f"{text}, and {advice}")
    if available < needed:
        amount = files.format_bytes(needed)
        _log.warning("%s: building takes about %s of memory and may swap or be killed; %s", graph.name, amount, advice)


def _write_engine(path: Path, serialized: Any, stamp: EngineStamp) -> None:  # noqa: ANN401
    try:
        write_engine(path, memoryview(serialized), stamp)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise
        raise BuildError(
            f"the disk is full: {path} needs {files.format_bytes(serialized.nbytes)}, "
            f"free are {files.format_bytes(files.free_bytes(path.parent))}"
        ) from error


def _cache_path(host: BuildHost, config: BuildConfig) -> Path:
    return config.timing_cache or timing_cache_path(host)


def _explain(graph: GraphSpec, errors: list[str], needed_bytes: int) -> str:
    said = "; ".join(errors[-5:]) or "the builder gave no reason; run again with -v"
    text = f"graph {graph.name} was refused: {said}"
    if "FP32 GEMM is not supported" in said:
        way = "export with --precision fp16, or leave" if graph.precision == "fp32" else "leave"
        return f"{text}. SM75 has no FP32 matrix products, not even in an FP16 graph's FP32 parts: {way} 75 out of --sm"
    if "driver version is insufficient" in said:
        return f"{text}. The NVIDIA driver is older than this library's CUDA: update it; `voxedge doctor` shows both"
    if "Could not find any implementation" in said or "OutOfMemory" in said:
        return f"{text}. It may lack memory (about {files.format_bytes(needed_bytes)}): close programs or add swap"
    return text

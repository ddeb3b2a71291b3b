"""Graphs as ONNX Runtime keeps them in memory, packed for this processor, on disk: mapped instead of held.

In: a graph of a bundle. Out: an `OrtEngine`, opened from a prepared copy where one pays. The copy is made at the first
load, fits one processor and one ONNX Runtime, and is never part of a bundle. Whatever is wrong with the cache, the
bundle's own graph is opened instead and the log says why. Does not choose graphs or backends.

A session copies quantised weights into the order that its kernels read. Stored in that order they are clean pages of a
mapped file, which the system can drop and several processes share: benchmarks/session_memory.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxedge.engines import files, folders
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BackendUnavailableError, BundleError, ConfigError, VoxedgeError
from voxedge.engines.manifest import FileRecord, GraphSpec
from voxedge.engines.memory import give_back_memory
from voxedge.engines.ort import OrtEngine, OrtOptions, graph_options, load_onnxruntime, newer_or_equal, save_prepared
from voxedge.engines.processor import processor_identity
from voxedge.engines.records import from_dict, to_dict

logger = logging.getLogger(__name__)

MIN_ONNXRUNTIME = "1.21"
"""1.20 ignores the option that stores packed weights (its library does not have the option's name)."""
MIN_DATA_BYTES = 16_000_000
"""Smaller weights are not worth a second file."""
LIMIT_BYTES = 16_000_000_000
"""All prepared copies together; the longest unused go first."""
UNUSED_S = 60 * 86400.0
"""A copy that was not opened for so long belongs to a bundle, a processor or an ONNX Runtime that is gone."""
PREPARED_PRECISIONS = ("int8", "int8-weight", "int4-weight", "mixed")
"""Not FP32, whose copy would be twice its size (7 GB for two experts of 0.6B), and not FP16, which the CPU widens."""

_GROWTH = 2.5
"""Bound on copy / weights: it holds them in both orders. Measured: 1.8 for INT4 and INT8."""
_GRAPH, _DATA, _STAMP = "graph.onnx", "graph.data", "stamp.json"
_MAX_STAMP_BYTES = 1 << 20
_SUM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Everything that decides whether a prepared copy fits."""

    graph_sha256: str
    """Of the .onnx file."""
    data_sha256: str
    """Of its weights."""
    onnxruntime: str
    """Version of ONNX Runtime."""
    processor: str
    """Model and instruction sets, see `engines.processor`."""
    options: str
    """Session options that change the graph; not the number of threads, which does not."""

    @property
    def folder(self) -> str:
        """Name of the copy's folder."""
        return hashlib.sha256(json.dumps(to_dict(self)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class SessionStamp:
    """What lies beside a prepared copy."""

    key: SessionKey
    """What it was made from and for."""
    graph: FileRecord
    """The prepared graph."""
    data_bytes: int
    """Size of the prepared weights."""
    data_sums: tuple[int, ...]
    """Sum of each 64 MiB of them as 64-bit words, see `word_sums`."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What the cache holds."""

    folder: Path
    """Where it is."""
    copies: int
    """Prepared graphs."""
    size: int
    """Bytes on disk."""


class SessionCache:
    """Prepared copies in one folder."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        """Nothing is read or written yet; None is the user's cache folder."""
        self.folder = folder or files.user_cache_folder() / "sessions"
        self.limit_bytes = limit_bytes

    def open(self, bundle: Bundle, spec: GraphSpec, options: OrtOptions) -> OrtEngine:
        """Open a graph from its prepared copy, which is made where it is missing; else from the bundle.

        Raises:
            BackendUnavailableError: As `OrtEngine`.
            BundleError: As `OrtEngine`.
        """
        plain = bundle.graph_path(spec)
        reason = why_not(bundle, spec, options)
        if reason:
            logger.debug("%s is opened as it is: %s", spec.name, reason)
            return OrtEngine(plain, spec, options)
        key = session_key(bundle, spec)
        entry = self.folder / key.folder
        prepared = self._find(entry, key) or self._make(entry, key, plain, spec, options)
        if prepared is None:
            return OrtEngine(plain, spec, options)
        try:
            return OrtEngine(prepared, spec, options)
        except BundleError as error:
            logger.warning("%s: the prepared copy was removed, %s is opened as it is: %s", entry, spec.name, error)
            _remove(entry)
            return OrtEngine(plain, spec, options)

    def prepared(self, bundle: Bundle) -> list[str]:
        """Names of the graphs that have a copy for this processor and this ONNX Runtime; nothing is read or opened."""
        try:
            return [
                f"{spec.name} ({spec.flavour})"
                for spec in bundle.manifest.graphs
                if (self.folder / session_key(bundle, spec).folder / _STAMP).is_file()
            ]
        except BackendUnavailableError:
            return []

    def use(self) -> CacheUse:
        """How much there is."""
        entries = list(self._entries())
        return CacheUse(self.folder, len(entries), sum(size for _, size, _ in entries))

    def _find(self, entry: Path, key: SessionKey) -> Path | None:
        if not (entry / _STAMP).is_file():
            return None
        try:
            _check(entry, key)
            os.utime(entry / _STAMP)  # the time of the last use
        except (OSError, VoxedgeError) as error:
            logger.warning("%s is damaged and is made again: %s", entry, error)
            _remove(entry)
            return None
        return entry / _GRAPH

    def _make(self, entry: Path, key: SessionKey, plain: Path, spec: GraphSpec, options: OrtOptions) -> Path | None:
        needed = int(_GROWTH * plain.with_name(Path(spec.data).name).stat().st_size)
        try:
            if needed > self.limit_bytes:
                raise BundleError(f"{files.format_bytes(needed)} are more than {files.format_bytes(self.limit_bytes)}")
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.ensure_free_space(self.folder, needed, BundleError)
            logger.info("preparing %s for this processor, once: at most %s", spec.name, files.format_bytes(needed))
            with _partial_folder(entry) as partial:
                save_prepared(plain, spec, partial / _GRAPH, _DATA, options)
                files.write_atomically(partial / _STAMP, json.dumps(to_dict(_stamp(partial, key))).encode())
                folders.put_in_place(partial, entry)
            self._prune(entry)
        except (OSError, VoxedgeError) as error:
            logger.warning("%s is opened without a prepared copy in %s: %s", spec.name, self.folder, error)
            return None
        finally:
            give_back_memory()
        return entry / _GRAPH

    def _entries(self) -> Iterator[tuple[Path, int, float]]:
        """Folder, bytes and time of the last use of every copy."""
        for stamp in self.folder.glob(f"*/{_STAMP}"):
            with contextlib.suppress(OSError):  # another process removes it
                yield stamp.parent, folders.folder_bytes(stamp.parent), stamp.stat().st_mtime

    def _prune(self, kept: Path) -> None:
        """Remove what was unused for long, then the longest unused until the rest fits; never the newest."""
        entries = sorted(self._entries(), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in entries)
        for folder, size, used in entries:
            stale = time.time() - used > UNUSED_S
            if folder != kept and (stale or total > self.limit_bytes):
                logger.info("removing the prepared copy %s (%s)", folder, files.format_bytes(size))
                _remove(folder)
                total -= size


def why_not(bundle: Bundle, spec: GraphSpec, options: OrtOptions) -> str:
    """Why a graph is not prepared; empty where it is."""
    if options.device != "cpu":
        return f"it runs on {options.device}"
    if spec.precision not in PREPARED_PRECISIONS:
        return f"a copy of {spec.precision} weights does not pay"
    if bundle.manifest.files[spec.data].size < MIN_DATA_BYTES:
        return f"its weights are smaller than {files.format_bytes(MIN_DATA_BYTES)}"
    version = load_onnxruntime(options.device).__version__
    if not newer_or_equal(version, MIN_ONNXRUNTIME):
        return f"ONNX Runtime {version} cannot store packed weights, {MIN_ONNXRUNTIME} can"
    return ""


def session_key(bundle: Bundle, spec: GraphSpec) -> SessionKey:
    """The key of a graph on this machine."""
    records = bundle.manifest.files
    version = load_onnxruntime("cpu").__version__
    return SessionKey(
        records[spec.path].sha256, records[spec.data].sha256, version, processor_identity(), str(graph_options(spec))
    )


def word_sums(path: Path) -> tuple[int, ...]:
    """Sums of a file's 64 MiB blocks as little-endian 64-bit words, modulo 2 ** 64.

    Against damage (a flipped bit, a hole, a cut), not against attackers, who could as well rewrite the stamp. Runs at
    the speed of memory, a hundred times faster than the whole-file SHA-256 that every load would have to wait for.
    """
    if path.stat().st_size == 0:
        return ()
    content = np.memmap(path, np.uint8, "r")
    return tuple(_word_sum(content[start : start + _SUM_BYTES]) for start in range(0, len(content), _SUM_BYTES))


def _word_sum(block: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    whole = len(block) // 8 * 8
    words = block[:whole].view("<u8").sum(dtype=np.uint64)
    return (int(words) + int.from_bytes(block[whole:].tobytes(), "little")) % (1 << 64)


def _stamp(folder: Path, key: SessionKey) -> SessionStamp:
    graph, data = folder / _GRAPH, folder / _DATA
    for path in (graph, data):
        files.sync_path(path)
    record = FileRecord(files.hash_file(graph), graph.stat().st_size)
    return SessionStamp(key, record, data.stat().st_size, word_sums(data))


def _check(entry: Path, key: SessionKey) -> None:
    """Compare a copy with its stamp.

    Raises:
        BundleError: Something is missing, damaged or of another key.
    """
    try:
        stamp = from_dict(SessionStamp, files.read_json(entry / _STAMP, _MAX_STAMP_BYTES), str(entry / _STAMP))
    except ConfigError as error:
        raise BundleError(str(error)) from error
    if stamp.key != key:
        raise BundleError(f"expected a copy for {key}, found one for {stamp.key}")
    sizes = (entry / _GRAPH).stat().st_size, (entry / _DATA).stat().st_size
    if sizes != (stamp.graph.size, stamp.data_bytes):
        raise BundleError(f"expected {stamp.graph.size} and {stamp.data_bytes} bytes, found {sizes[0]} and {sizes[1]}")
    if files.hash_file(entry / _GRAPH) != stamp.graph.sha256 or word_sums(entry / _DATA) != stamp.data_sums:
        raise BundleError("its content is not what was written")


@contextlib.contextmanager
def _partial_folder(entry: Path) -> Iterator[Path]:
    """A locked folder beside the entry, gone afterwards whatever happens; those of killed processes are removed."""
    folders.remove_abandoned(entry)
    partial = folders.partial_path(entry)
    partial.mkdir()
    lock = folders.lock_folder(partial)
    try:
        yield partial
    finally:
        folders.remove_folder(partial)
        if lock is not None:
            os.close(lock)


def _remove(entry: Path) -> None:
    """The stamp goes first: without it the rest is no copy."""
    with contextlib.suppress(OSError):
        (entry / _STAMP).unlink(missing_ok=True)
    folders.remove_folder(entry)

"""Prepared sessions: when a copy is made and reused, what damages it, and that nothing about it can stop a load."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_graphs

from voxedge.engines import session_cache
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.engines.manifest import GraphSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.engines.session_cache import SessionCache, session_key, why_not, word_sums

OPTIONS = OrtOptions(threads=1)
X = {"x": np.random.default_rng(1).standard_normal((3, toy_graphs.WIDTH)).astype(np.float32)}


@pytest.fixture(autouse=True)
def any_graph_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy graph is small and FP32."""
    monkeypatch.setattr(session_cache, "MIN_DATA_BYTES", 0)
    monkeypatch.setattr(session_cache, "PREPARED_PRECISIONS", ("fp32",))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return toy_graphs.write(tmp_path / "bundle", {"toy": toy_graphs.model(toy_graphs.attention_nodes())})


@pytest.fixture
def cache(tmp_path: Path) -> SessionCache:
    return SessionCache(tmp_path / "cache" / "sessions")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The copies that were made."""
    found: list[Path] = []
    save = session_cache.save_prepared

    def record(graph: Path, spec: GraphSpec, target: Path, data: str, options: OrtOptions) -> None:
        found.append(target)
        save(graph, spec, target, data, options)

    monkeypatch.setattr(session_cache, "save_prepared", record)
    return found


def load(cache: SessionCache, bundle: Bundle) -> np.ndarray:
    spec = bundle.manifest.graph("toy")
    result: np.ndarray = cache.open(bundle, spec, OPTIONS).run(X)["y"]
    return result


def plain(bundle: Bundle) -> np.ndarray:
    spec = bundle.manifest.graph("toy")
    result: np.ndarray = OrtEngine(bundle.graph_path(spec), spec, OPTIONS).run(X)["y"]
    return result


def entry(cache: SessionCache, bundle: Bundle) -> Path:
    return cache.folder / session_key(bundle, bundle.manifest.graph("toy")).folder


def test_made_once_then_opened(cache: SessionCache, bundle: Bundle, made: list[Path]) -> None:
    assert cache.prepared(bundle) == []
    expected = plain(bundle)
    for _ in range(3):
        np.testing.assert_array_equal(load(cache, bundle), expected)
    assert len(made) == 1
    assert cache.prepared(bundle) == ["toy (portable)"]
    assert sorted(path.name for path in entry(cache, bundle).iterdir()) == ["graph.data", "graph.onnx", "stamp.json"]
    assert (cache.use().copies, cache.use().size) == (1, sum(p.stat().st_size for p in entry(cache, bundle).iterdir()))
    assert [path.name for path in cache.folder.iterdir()] == [entry(cache, bundle).name]  # nothing half made is left


def test_the_copy_holds_packed_weights(cache: SessionCache, bundle: Bundle) -> None:
    """Both orders of two square FP32 matrices: twice the weights at least."""
    load(cache, bundle)
    assert (entry(cache, bundle) / "graph.data").stat().st_size >= 2 * 2 * 4 * toy_graphs.WIDTH**2


@pytest.mark.parametrize("field", ["graph_sha256", "data_sha256", "onnxruntime", "processor", "options"])
def test_every_part_of_the_key_counts(bundle: Bundle, field: str) -> None:
    key = session_key(bundle, bundle.manifest.graph("toy"))
    other = dataclasses.replace(key, **{field: getattr(key, field) + "x"})
    assert other.folder != key.folder


def test_another_graph_gets_another_copy(cache: SessionCache, bundle: Bundle, tmp_path: Path, made: list[Path]) -> None:
    other = toy_graphs.write(tmp_path / "other", {"toy": toy_graphs.model(toy_graphs.attention_nodes(), seed=1)})
    load(cache, bundle)
    np.testing.assert_array_equal(load(cache, other), plain(other))
    assert len(made) == cache.use().copies == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("graph.data", flip),
        ("graph.data", cut),
        ("graph.data", Path.unlink),
        ("graph.onnx", flip),
        ("graph.onnx", lambda path: path.write_bytes(b"")),
        ("stamp.json", flip),
        ("stamp.json", lambda path: path.write_text("{}")),
        ("stamp.json", lambda path: path.write_bytes(b"\xff" * 10)),
    ],
)
def test_a_damaged_copy_is_made_again(
    cache: SessionCache,
    bundle: Bundle,
    made: list[Path],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], object],
) -> None:
    load(cache, bundle)
    damage(entry(cache, bundle) / name)
    np.testing.assert_array_equal(load(cache, bundle), plain(bundle))
    assert len(made) == 2
    assert "is damaged and is made again" in caplog.text
    load(cache, bundle)
    assert len(made) == 2


def test_a_copy_that_does_not_load_is_removed(
    cache: SessionCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stamp fits, ONNX Runtime refuses it all the same."""

    def garbage(graph: Path, spec: GraphSpec, target: Path, data: str, options: OrtOptions) -> None:
        target.write_bytes(b"no graph")
        target.with_name(data).write_bytes(b"no weights")

    monkeypatch.setattr(session_cache, "save_prepared", garbage)
    np.testing.assert_array_equal(load(cache, bundle), plain(bundle))
    assert "the prepared copy was removed" in caplog.text
    assert cache.use().copies == 0


def test_a_folder_that_cannot_be_written(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands where the folder belongs; permissions do not stop the root of a container."""
    (tmp_path / "cache").write_text("not a folder")
    np.testing.assert_array_equal(load(SessionCache(tmp_path / "cache" / "sessions"), bundle), plain(bundle))
    assert "is opened without a prepared copy" in caplog.text


def test_no_room(
    cache: SessionCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_cache.files, "free_bytes", lambda folder: 1000)
    np.testing.assert_array_equal(load(cache, bundle), plain(bundle))
    assert "of free disk space, found 1 kB" in caplog.text


def test_a_disk_that_fills_while_it_is_written_leaves_nothing(
    cache: SessionCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(graph: Path, spec: GraphSpec, target: Path, data: str, options: OrtOptions) -> None:
        target.write_bytes(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(session_cache, "save_prepared", full)
    np.testing.assert_array_equal(load(cache, bundle), plain(bundle))
    assert "No space left on device" in caplog.text
    assert list(cache.folder.iterdir()) == []


def test_a_copy_larger_than_the_limit_is_not_made(
    bundle: Bundle, tmp_path: Path, made: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    np.testing.assert_array_equal(load(SessionCache(tmp_path / "cache", limit_bytes=100), bundle), plain(bundle))
    assert not made
    assert "are more than 100 bytes" in caplog.text


def fake_entry(cache: SessionCache, name: str, size: int, age_s: float) -> Path:
    folder = cache.folder / name
    folder.mkdir(parents=True)
    (folder / "graph.data").write_bytes(bytes(size))
    (folder / "stamp.json").touch()
    used = (folder / "stamp.json").stat().st_mtime - age_s
    os.utime(folder / "stamp.json", (used, used))
    return folder


def test_what_was_unused_for_long_goes(cache: SessionCache, bundle: Bundle) -> None:
    old = fake_entry(cache, "old", 10, session_cache.UNUSED_S + 60)
    recent = fake_entry(cache, "recent", 10, 3600)
    load(cache, bundle)
    assert not old.exists()
    assert recent.exists()


def test_the_longest_unused_goes_when_there_is_too_much(tmp_path: Path, bundle: Bundle) -> None:
    cache = SessionCache(tmp_path / "cache", limit_bytes=1_000_000)
    older, newer = fake_entry(cache, "older", 500_000, 7200), fake_entry(cache, "newer", 500_000, 3600)
    load(cache, bundle)  # the new copy takes about 70 kB, so one of the two has to go
    assert not older.exists()
    assert newer.exists()
    assert entry(cache, bundle).exists()


def test_a_use_makes_a_copy_young(cache: SessionCache, bundle: Bundle) -> None:
    load(cache, bundle)
    stamp = entry(cache, bundle) / "stamp.json"
    os.utime(stamp, (0, 0))
    load(cache, bundle)
    assert stamp.stat().st_mtime > 1e9


def test_what_a_killed_process_left_is_removed(cache: SessionCache, bundle: Bundle) -> None:
    left = cache.folder / f".{entry(cache, bundle).name}.partial-999999"
    left.mkdir(parents=True)
    load(cache, bundle)
    assert not left.exists()


def test_two_processes_at_once(cache: SessionCache, bundle: Bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from voxedge.engines import session_cache as s\n"
        "from voxedge.engines.bundle import Bundle; from voxedge.engines.ort import OrtOptions; import numpy as np\n"
        "s.MIN_DATA_BYTES, s.PREPARED_PRECISIONS = 0, ('fp32',)\n"
        "bundle, cache = Bundle.open(sys.argv[1]), s.SessionCache(Path(sys.argv[2]))\n"
        "spec = bundle.manifest.graph('toy')\n"
        "for _ in range(4):\n"
        "    y = cache.open(bundle, spec, OrtOptions(threads=1)).run({'x': np.ones((1, 64), np.float32)})['y']\n"
        "    s._remove(cache.folder / s.session_key(bundle, spec).folder)\n"
        "print(y.sum())\n"
    )
    command = [sys.executable, "-c", code, str(bundle.root), str(cache.folder)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert not list(cache.folder.glob(".*"))


def test_an_old_onnxruntime_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, made: list[Path]) -> None:
    spec = bundle.manifest.graph("toy")
    monkeypatch.setattr(session_cache, "load_onnxruntime", lambda device: types.SimpleNamespace(__version__="1.20.1"))
    assert why_not(bundle, spec, OPTIONS) == "ONNX Runtime 1.20.1 cannot store packed weights, 1.21 can"
    monkeypatch.setattr(session_cache, "load_onnxruntime", lambda device: types.SimpleNamespace(__version__="1.21.0"))
    assert why_not(bundle, spec, OPTIONS) == ""


def test_what_is_not_worth_it(
    bundle: Bundle, cache: SessionCache, monkeypatch: pytest.MonkeyPatch, made: list[Path]
) -> None:
    spec = bundle.manifest.graph("toy")
    assert "cuda" in why_not(bundle, spec, OrtOptions(device="cuda"))
    assert "fp16" in why_not(bundle, dataclasses.replace(spec, precision="fp16"), OPTIONS)
    monkeypatch.setattr(session_cache, "MIN_DATA_BYTES", 16_000_000)
    assert "smaller than 16 MB" in why_not(bundle, spec, OPTIONS)
    load(cache, bundle)
    assert not made
    assert not cache.folder.exists()


def test_the_loader_uses_the_users_cache_folder_unless_told_not_to(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    GraphLoader(bundle, LoadOptions("cpu", session_cache=False)).load("toy")
    assert not made
    GraphLoader(bundle, LoadOptions("cpu")).load("toy")
    assert [path.parents[1] for path in made] == [tmp_path / "xdg" / "voxedge" / "sessions"]


def test_sums_see_flips_holes_and_cuts(tmp_path: Path) -> None:
    path = tmp_path / "data"
    content = np.random.default_rng(2).integers(0, 256, 100_003, np.uint8)
    path.write_bytes(content.tobytes())
    whole = word_sums(path)
    for place in (0, 50_000, 100_002):  # the last one is in no whole word
        damaged = content.copy()
        damaged[place] ^= 128
        path.write_bytes(damaged.tobytes())
        assert word_sums(path) != whole
    hole = content.copy()
    hole[4096:8192] = 0
    path.write_bytes(hole.tobytes())
    assert word_sums(path) != whole
    path.write_bytes(b"")
    assert word_sums(path) == ()


def test_prepare_says_what_it_could_not_load(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    spec = GraphSpec("toy", "portable", "broken.onnx", "graph.data", "fp32", 20, (), (), {"any": {}})
    with pytest.raises(BundleError, match="cannot prepare it"):
        session_cache.save_prepared(broken, spec, tmp_path / "graph.onnx", "graph.data", OPTIONS)


def test_the_log_says_that_a_copy_is_made(
    cache: SessionCache, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load(cache, bundle)
    assert "preparing toy for this processor, once" in caplog.text

"""Bundles on disk: damaged ones are refused with a clear text, and no way of dying leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxedge.engines import files, folders
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import BundleError, ConfigError, ExportError, InputError, MissingResourceError
from voxedge.engines.manifest import DimRange, GraphSpec, ManifestDraft, TensorSpec

GRAPH = GraphSpec(
    name="tiny",
    flavour="portable",
    path="graphs/tiny.onnx",
    data="graphs/tiny.data",
    precision="fp32",
    opset=17,
    inputs=(TensorSpec("x", "float32", ("rows", 4)),),
    outputs=(TensorSpec("y", "float32", ("rows", 4)),),
    profiles={"main": {"rows": DimRange(1, 2, 8)}},
)
DRAFT = ManifestDraft("toy", {"sample_rate": 24000}, (GRAPH,))


def write(target: Path, content: bytes = b"weights", overwrite: bool = False) -> Bundle:
    with BundleWriter(target, overwrite=overwrite) as writer:
        writer.path("graphs/tiny.onnx").write_bytes(b"graph")
        writer.path("graphs/tiny.data").write_bytes(content)
        return writer.commit(DRAFT)


def siblings(target: Path) -> list[str]:
    return sorted(entry.name for entry in target.parent.iterdir())


def edit(target: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = target / "voxedge.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "out")
    bundle = Bundle.open(tmp_path / "out", verify_hashes=True)
    assert bundle.manifest.graph("tiny") == GRAPH
    assert bundle.manifest.files["graphs/tiny.data"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert bundle.data_path(GRAPH).read_bytes() == b"weights"
    assert siblings(tmp_path / "out") == ["out"]


def test_hash_is_compared_on_demand_only(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out/graphs/tiny.data").write_bytes(b"WEIGHTS")
    Bundle.open(tmp_path / "out")
    with pytest.raises(BundleError, match=r"tiny\.data: expected sha256"):
        Bundle.open(tmp_path / "out", verify_hashes=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"[]", "expected an object"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": NaN}', "number NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected JSON|unknown key"),
        (b"[" * 200_000, "nested too deeply"),
        (b" " * ((16 << 20) + 1), "expected at most"),
    ],
)
def test_damaged_manifest(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "out/voxedge.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.update(format_version=99), "expected format_version 1, found 99"),
        (lambda m: m["files"].update({"../x": m["files"]["graphs/tiny.data"]}), "plain relative path"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["graphs/tiny.data"]}), "plain relative path"),
        (lambda m: m["files"].update({"a\\..\\b": m["files"]["graphs/tiny.data"]}), "plain relative path"),
        (lambda m: m["graphs"][0].update(path="graphs/../../x"), "plain relative path"),
        (lambda m: m["graphs"][0].update(path="graphs/other.onnx"), "not among `files`"),
        (lambda m: m["files"]["graphs/tiny.data"].update(size=8), "expected 8 bytes, found 7"),
        (lambda m: m["files"]["graphs/tiny.data"].update(sha256="0"), "64 hex digits"),
    ],
)
def test_manifest_that_lies(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "out")


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="found nothing"):
        Bundle.open(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingResourceError, match="voxedge export"):
        Bundle.open(tmp_path / "empty")
    write(tmp_path / "out")
    (tmp_path / "out/graphs/tiny.data").unlink()
    with pytest.raises(MissingResourceError, match=r"tiny\.data is missing"):
        Bundle.open(tmp_path / "out")
    with pytest.raises(BundleError, match="found the file"):
        Bundle.open(tmp_path / "out/voxedge.json")


def test_empty_graph(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out/graphs/tiny.onnx").write_bytes(b"")
    edit(tmp_path / "out", lambda m: m["files"]["graphs/tiny.onnx"].update(size=0))
    with pytest.raises(BundleError, match="found an empty file"):
        Bundle.open(tmp_path / "out")


def test_links_may_not_leave(tmp_path: Path) -> None:
    write(tmp_path / "out")
    data = tmp_path / "out/graphs/tiny.data"
    data.rename(tmp_path / "out/inside")
    data.symlink_to("../inside")
    Bundle.open(tmp_path / "out", verify_hashes=True)
    (tmp_path / "out/inside").rename(tmp_path / "outside")
    data.unlink()
    data.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="found a link to"):
        Bundle.open(tmp_path / "out")


def test_path_never_escapes(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    (tmp_path / "out/voices").symlink_to(tmp_path)
    for relative in ("../x", "/x", "a/../../x", "", ".", "voices/x", "a//b", "a\0b"):
        with pytest.raises(BundleError):
            bundle.path(relative)
    assert bundle.path("engines/rtx/tiny.engine") == bundle.root / "engines/rtx/tiny.engine"


def test_existing_target(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    write(target)
    with pytest.raises(InputError, match="--force"):
        write(target)
    write(target, b"newer", overwrite=True)
    assert Bundle.open(target, verify_hashes=True).data_path(GRAPH).read_bytes() == b"newer"
    (target / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match=r"diary\.txt"):
        write(target, overwrite=True)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="left alone"):
        write(other, overwrite=True)
    assert siblings(target) == ["out", "photos"]


def test_writer_paths(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as writer:
        for relative in ("../x", "voxedge.json", "engines/x", "/x"):
            with pytest.raises(ConfigError):
                writer.path(relative)
    assert siblings(tmp_path / "out") == []


def test_commit_refuses_contradictions(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as writer, pytest.raises(ExportError, match="not among `files`"):
        writer.commit(DRAFT)
    bad = ManifestDraft("toy", {"x": float("nan")}, ())
    with BundleWriter(tmp_path / "out") as writer, pytest.raises(ExportError, match="not valid"):
        writer.commit(bad)
    with BundleWriter(tmp_path / "out") as writer, pytest.raises(ExportError, match="regular files"):
        writer.path("link").symlink_to("/etc/passwd")
        writer.commit(DRAFT)
    assert siblings(tmp_path / "out") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("trace failed")])
def test_failure_leaves_the_old_bundle(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "out", b"old")
    with pytest.raises(type(error)), BundleWriter(tmp_path / "out", overwrite=True) as writer:
        writer.path("graphs/tiny.data").write_bytes(b"new")
        raise error
    assert Bundle.open(tmp_path / "out", verify_hashes=True).data_path(GRAPH).read_bytes() == b"old"
    assert siblings(tmp_path / "out") == ["out"]


@pytest.mark.parametrize("atomic", [True, False])
def test_replacing_with_and_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    if not atomic:
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    write(tmp_path / "out", b"old")
    write(tmp_path / "out", b"new", overwrite=True)
    assert Bundle.open(tmp_path / "out", verify_hashes=True).data_path(GRAPH).read_bytes() == b"new"
    assert siblings(tmp_path / "out") == ["out"]


def test_two_exports_at_once(tmp_path: Path) -> None:
    with (
        BundleWriter(tmp_path / "out"),
        pytest.raises(ExportError, match="another export"),
        BundleWriter(tmp_path / "out"),
    ):
        pass


def test_disk_full(tmp_path: Path) -> None:
    write(tmp_path / "out", b"old")
    with (
        pytest.raises(ExportError, match=r"disk is full.*needs more than 5 bytes, free are \d"),
        BundleWriter(tmp_path / "out", overwrite=True) as writer,
    ):
        writer.path("graphs/tiny.onnx").write_bytes(b"graph")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert Bundle.open(tmp_path / "out").data_path(GRAPH).read_bytes() == b"old"
    assert siblings(tmp_path / "out") == ["out"]


def test_disk_full_for_real(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        write(disk / "out", b"old")
        with pytest.raises(ExportError, match=r"disk is full"):
            write(disk / "out", bytes(2 << 20), overwrite=True)
        assert Bundle.open(disk / "out", verify_hashes=True).data_path(GRAPH).read_bytes() == b"old"
        assert siblings(disk / "out") == ["out"]
        with pytest.raises(InputError, match="mount point"):
            write(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_free_space_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"of free disk space, found"), BundleWriter(tmp_path / "out", False, 10**18):
        pytest.fail("must not start")
    files.ensure_free_space(tmp_path / "not/there/yet", 1)
    assert siblings(tmp_path / "out") == []

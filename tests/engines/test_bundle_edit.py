"""Files that come and go in a finished bundle: it is whole at every step, whatever ends the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from voxedge.engines import bundle_edit, files, folders
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.bundle_edit import change_files
from voxedge.engines.errors import ConfigError, InputError
from voxedge.engines.manifest import ManifestDraft


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    with BundleWriter(tmp_path / "bundle") as writer:
        writer.path("tokenizer/tokenizer.json").write_text("{}")
        return writer.commit(ManifestDraft("toy", {}, ()))


def test_files_come_and_go(bundle: Bundle) -> None:
    changed = change_files(bundle, {"voices/a": b"one", "voices/b": b"two"})
    assert changed.path("voices/a").read_bytes() == b"one"
    changed = change_files(changed, {"voices/c": b"three"}, ["voices/a", "voices/none"])
    assert set(changed.manifest.files) == {"tokenizer/tokenizer.json", "voices/b", "voices/c"}
    assert not changed.path("voices/a").exists()
    Bundle.open(bundle.root, verify_hashes=True)


@pytest.mark.parametrize("path", ["../a", "/a", "voxedge.json", "engines/a", "tokenizer/tokenizer.json"])
def test_paths_that_may_not_be_added(bundle: Bundle, path: str) -> None:
    with pytest.raises(ConfigError):
        change_files(bundle, {path: b""})
    assert Bundle.open(bundle.root, verify_hashes=True).manifest == bundle.manifest


def test_one_process_at_a_time(bundle: Bundle) -> None:
    lock = folders.lock_folder(bundle.root)
    assert lock is not None
    with pytest.raises(InputError, match="another process"):
        change_files(bundle, {"voices/a": b"one"})
    os.close(lock)
    change_files(bundle, {"voices/a": b"one"})


@pytest.mark.parametrize("fatal", [1, 2, 3])
def test_an_interruption_leaves_the_old_or_the_new(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """Ctrl-C before each of the three writes: the new file, the manifest, and what follows it."""
    bundle = change_files(bundle, {"voices/old": b"old"})
    calls = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise KeyboardInterrupt
        files.write_partial(path, content).replace(path)

    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_edit.files, "write_atomically", write)
    if fatal == 3:
        monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        change_files(bundle, {"voices/new": b"new"}, ["voices/old"])
    monkeypatch.undo()
    found = Bundle.open(bundle.root, verify_hashes=True)
    assert set(found.manifest.files) - {"tokenizer/tokenizer.json"} == {"voices/new" if fatal == 3 else "voices/old"}

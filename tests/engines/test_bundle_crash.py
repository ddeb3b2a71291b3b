"""A writer killed with SIGKILL at its four worst moments leaves the old bundle or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_bundle import GRAPH, siblings, write

from voxedge.engines import folders
from voxedge.engines.bundle import Bundle

WRITER = """
import os, sys, time
from voxedge.engines import folders
sys.path.insert(0, sys.argv[2])
from test_bundle import DRAFT
from voxedge.engines.bundle import BundleWriter
where = sys.argv[3]
def stop(*_):
    print("ready", flush=True)
    time.sleep(600)
if where == "between renames":
    folders.exchange = lambda *_: False
    rename = type(folders.Path()).rename
    def second(self, target):
        if ".partial-" in self.name: stop()
        return rename(self, target)
    folders.Path.rename = type(folders.Path()).rename = second
if where == "before the swap":
    folders.put_in_place = stop
if where == "after the swap":
    folders.remove_folder = stop
with BundleWriter(sys.argv[1], overwrite=True) as writer:
    writer.path("graphs/tiny.onnx").write_bytes(b"graph")
    writer.path("graphs/tiny.data").write_bytes(b"new")
    if where == "while writing":
        stop()
    writer.commit(DRAFT)
"""


@pytest.mark.parametrize("where", ["while writing", "before the swap", "between renames", "after the swap"])
def test_kill_9(tmp_path: Path, where: str) -> None:
    target = tmp_path / "out"
    write(target, b"old")
    command = [sys.executable, "-c", WRITER, str(target), str(Path(__file__).parent), where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if where == "while writing":
            folders.remove_abandoned(target)  # it is alive, so its folder stays
            assert len(siblings(target)) == 2
        os.kill(process.pid, signal.SIGKILL)
    expected = b"new" if where == "after the swap" else b"old"
    assert Bundle.open(target, verify_hashes=True).data_path(GRAPH).read_bytes() == expected
    assert len(siblings(target)) == 2  # what the killed writer left
    write(target, b"newest", overwrite=True)
    assert Bundle.open(target, verify_hashes=True).data_path(GRAPH).read_bytes() == b"newest"
    assert siblings(target) == ["out"]

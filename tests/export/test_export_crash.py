"""Exports that fail, through the command line: a message, its exit code, and the bundle that was there untouched.

Killed and interrupted exports are processes of their own; damaged checkpoints are exported in this one, for speed.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Golden, edit, rewrite
from safetensors.numpy import load_file, save_file

from voxedge.engines.bundle import Bundle
from voxedge.engines.files import hash_file
from voxedge.runtime.cli.main import main

SCRIPT = str(Path(sys.executable).parent / "voxedge")
SMALLEST = "speech_conditioner"
TABLE = "conditioner.conditioners.speech_tokens.token_embedder.weight"


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden("moetts_e2e") / "checkpoint", tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def exported(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the smallest graph."""
    target = tmp_path_factory.mktemp("exported") / "out"
    checkpoint = golden("moetts_e2e") / "checkpoint"
    assert main(["export", str(checkpoint), "-o", str(target), "--components", SMALLEST, "--note", "old"]) == 0
    return target


@pytest.fixture
def target(exported: Path, tmp_path: Path) -> Path:
    """A bundle that is there already, alone in its folder."""
    return Path(shutil.copytree(exported, tmp_path / "bundles" / "out"))


def command(checkpoint: Path, target: Path, *flags: str, component: str = SMALLEST) -> list[str]:
    return ["export", str(checkpoint), "-o", str(target), "--components", component, "--note", "new", *flags]


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, by its hash."""
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def untouched(target: Path) -> Iterator[None]:
    """What is beside and in the target stays as it is, to the byte, and is a sound bundle."""
    before = tree(target.parent)
    yield
    assert tree(target.parent) == before
    assert Bundle.open(target, verify_hashes=True).manifest.note == "old"


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, *words: str) -> None:
    """The command fails with this code, and the last that it says is one message that has these words."""
    capsys.readouterr()
    assert main(argv) == code
    captured = capsys.readouterr()
    _, *errors = captured.err.split("error: ")
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors[0]
    assert "unexpected" not in errors[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""


# killed and interrupted


@contextlib.contextmanager
def running(checkpoint: Path, target: Path, begun: Callable[[int], bool]) -> Iterator[subprocess.Popen[str]]:
    """An export with --force in a process that has come as far as `begun` says."""
    argv = [SCRIPT, *command(checkpoint, target, "--force")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not begun(process.pid):
            assert process.poll() is None, "it ended too soon"
            time.sleep(0.001)
        yield process


def writing(target: Path) -> Callable[[int], bool]:
    """Whether the new bundle's folder is there."""
    return lambda pid: target.with_name(f".{target.name}.partial-{pid}").is_dir()


def loading(pid: int) -> bool:
    """Whether PyTorch is being imported, which takes seconds."""
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


def test_kill_9_leaves_the_old_bundle_and_the_next_export_cleans_up(checkpoint: Path, target: Path) -> None:
    before = tree(target)
    with running(checkpoint, target, writing(target)) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert tree(target) == before
    assert Bundle.open(target, verify_hashes=True).manifest.note == "old"
    assert len(list(target.parent.iterdir())) == 2  # what a killed process cannot take away
    assert main(command(checkpoint, target, "--force")) == 0
    assert Bundle.open(target, verify_hashes=True).manifest.note == "new"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("moment", ["loading", "writing"])
def test_ctrl_c_leaves_nothing_behind(moment: str, checkpoint: Path, target: Path) -> None:
    begun = loading if moment == "loading" else writing(target)
    with untouched(target), running(checkpoint, target, begun) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert err.endswith("error: interrupted\n")
        assert out == ""


# the target


def test_an_existing_bundle_is_replaced_only_with_force(
    checkpoint: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with untouched(target):
        refused(capsys, command(checkpoint, target), 1, "has a bundle already", "--force")
    (target / "diary.txt").write_text("mine")
    with untouched(target):
        refused(capsys, command(checkpoint, target, "--force"), 1, "diary.txt")
    (target / "diary.txt").unlink()
    assert main(command(checkpoint, target, "--force")) == 0
    assert Bundle.open(target, verify_hashes=True).manifest.note == "new"


@pytest.mark.parametrize(("lacking", "words"), [(1, "disk is full"), (5, "of free disk space")])
def test_a_full_disk(
    lacking: int, words: str, checkpoint: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With room for the weights, but not for all; and with less than that, which is seen before the work begins."""
    disk = tmp_path / "disk"
    disk.mkdir()
    pages = sum(-(-path.stat().st_size // 4096) for path in target.rglob("*") if path.is_file())
    options = f"size={4 * (2 * pages - lacking)}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        shutil.copytree(target, disk / "out")
        with untouched(disk / "out"):
            refused(capsys, command(checkpoint, disk / "out", "--force"), 4, words)
    finally:
        subprocess.run(["umount", disk], check=True)


# damaged checkpoints


def set_value(folder: str, key: str, value: float) -> Callable[[Path], object]:
    """One value of one tensor becomes another."""

    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        arrays[key] = np.array(arrays[key])
        arrays[key].flat[-1] = value
        return arrays

    return lambda checkpoint: rewrite(checkpoint / folder, change)


def cut(checkpoint: Path) -> None:
    path = checkpoint / "dit" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(checkpoint: Path) -> None:
    path = checkpoint / "dit" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[9] ^= 0x80  # in the header, which must be UTF-8
    path.write_bytes(content)


def reshape(checkpoint: Path) -> None:
    rewrite(checkpoint / "dit", lambda arrays: {**arrays, TABLE: np.ascontiguousarray(arrays[TABLE][:, :-1])})


def shard(checkpoint: Path) -> None:
    """Two shards, the second of which is not there."""
    folder = checkpoint / "text_expert"
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-{1 + number % 2:05}-of-00002.safetensors" for number, key in enumerate(arrays)}
    first = min(names.values())
    save_file({key: array for key, array in arrays.items() if names[key] == first}, folder / first)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, tuple[str, ...]]] = {
    "not a number": (set_value("dit", TABLE, float("nan")), (), 1, (TABLE, "NaN")),
    "infinity": (set_value("dit", TABLE, float("-inf")), (), 1, (TABLE,)),
    "truncated": (cut, (), 1, ("model.safetensors",)),
    "a flipped bit": (flip, (), 1, ("model.safetensors",)),
    "another shape": (reshape, (), 1, (TABLE.rpartition("speech_tokens")[2],)),
    "a missing shard": (shard, (), 1, ("model-00002-of-00002.safetensors",)),
    "no weights": (lambda checkpoint: (checkpoint / "vae/model.safetensors").unlink(), (), 2, ("vae",)),
    "an unknown key": (lambda checkpoint: edit(checkpoint, "speech.colour", "red"), (), 1, ("colour",)),
    "no JSON": (lambda checkpoint: (checkpoint / "config.json").write_text("{"), (), 1, ("config.json",)),
    "an unknown component": (lambda checkpoint: None, ("--components", "ears"), 1, ("ears", SMALLEST)),
    "beyond FP16": (
        set_value("vae", "decoder.layers.0.weight_g", 1e7),
        ("--precision", "fp16", "--components", "vae_decoder"),
        4,
        ("layers.0.weight", "65504", "--precision fp32"),
    ),
}


@pytest.mark.parametrize(("damage", "flags", "code", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_checkpoints(
    damage: Callable[[Path], object],
    flags: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
    checkpoint: Path,
    target: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(checkpoint)
    with untouched(target):
        refused(capsys, command(checkpoint, target, "--force", *flags), code, *words)


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin"])
def test_code_in_a_pickle_is_not_run(
    name: str, checkpoint: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301 - it works where pickles are trusted
    marker.unlink()
    (checkpoint / "dit" / "model.safetensors").unlink()
    (checkpoint / "dit" / name).write_bytes(pickle.dumps({"state_dict": Payload(marker)}))
    with untouched(target):
        refused(capsys, command(checkpoint, target, "--force"), 1, name)
    assert not marker.exists()

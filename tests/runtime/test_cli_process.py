"""The installed console script as a process: exit codes, closed pipes, Ctrl-C, and what importing it costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(sys.executable).parent / "voxedge")
# A verb that says when it has begun, and then waits for Ctrl-C or writes until nobody reads.
ACT = """
import sys, time, types
from voxedge.runtime.cli import main as cli
def add(verbs):
    verbs.add_parser("act").set_defaults(run=run)
def run(arguments, console):
    {body}
    return 0
cli.VERBS = (types.SimpleNamespace(add=add),)
sys.exit(cli.main(sys.argv[1:]))
"""


def act(body: str, *argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", ACT.format(body=body), "act", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_script_answers(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("voxedge ")
    done = subprocess.run([SCRIPT, "info", "nothing", "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_ctrl_c_is_130_without_a_traceback(flags: tuple[str, ...]) -> None:
    process = act("print('begun', flush=True); time.sleep(60)", *flags)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b"error: interrupted\n"
    assert bool(out) == bool(flags)


def test_a_reader_that_leaves_is_141_and_silent() -> None:
    process = act("print('begun', flush=True); [print('x' * 1000) for _ in range(100000)]")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141


def test_a_reader_that_leaves_before_the_last_flush_is_141_too() -> None:
    command = [sys.executable, "-c", ACT.format(body="sys.stdin.readline(); print('short')"), "act"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(b"go\n", timeout=30)
    assert process.returncode == 141
    assert err == b""


def test_help_does_not_load_numpy_or_libraries() -> None:
    code = (
        "import sys\n"
        "from voxedge.runtime.cli.main import main\n"
        "assert main(['say', '--help']) == 0\n"
        "sys.exit(bool({'numpy', 'onnxruntime', 'soundfile', 'torch', 'tensorrt_rtx'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

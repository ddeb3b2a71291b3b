"""The driver's side of a resident engine process.

In: an interpreter and a script of `peers/`. Out: its replies as dictionaries. Knows the line protocol, no engine.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is for the report."""


class NotInstalledError(WorkerError):
    """The peer's library is not in the given environment."""


class Worker:
    """One process that answers one JSON line per request."""

    def __init__(self, python: str, script: str, threads: int, log: Path) -> None:
        # Numpy inside a worker never needs threads; the engine gets its own number through its own settings.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        self._log = log.open("a")
        try:
            self._process = subprocess.Popen(
                [python, str(PEERS / f"{script}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
            )
        except OSError as error:
            self._log.close()
            raise NotInstalledError(f"no interpreter {python}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
        """Send one request and wait for its reply.

        Raises:
            NotInstalledError: A library is missing.
            WorkerError: The request failed, or the process died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise WorkerError("the worker has no pipes")
        try:
            stdin.write(json.dumps({"op": op, **fields}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code, last = self._process.wait(), _last_line(Path(self._log.name))
            if last.startswith("ModuleNotFoundError"):
                raise NotInstalledError(f"not installed ({last.split(': ', 1)[1]})")
            raise WorkerError(f"the process ended with code {code}: {last}; see {self._log.name}")
        reply: dict[str, Any] = json.loads(line)
        if reply.get("missing"):
            raise NotInstalledError(f"not installed ({reply['missing']})")
        if not reply["ok"]:
            raise WorkerError(str(reply["error"]).split("\n", 1)[0])
        return reply

    def close(self) -> None:
        """End the process and wait for it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"

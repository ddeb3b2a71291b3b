"""`voxedge doctor`: what works on this machine, and the command that mends what does not.

In: nothing. Out: a table (or JSON) of findings. Exit code 0 when speech on the CPU would work, 3 when it would not.
Changes nothing on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from voxedge.engines.errors import BackendUnavailableError
from voxedge.runtime.cli.common import Verbs, version
from voxedge.runtime.cli.console import Console, table


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("doctor", help="what works here, and how to mend what does not")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Show what was found."""
    from voxedge.engines import device  # it loads numpy and looks for libraries: not for `--help`

    report = device.gather()
    advice = device.advise(report)
    rows = [[("ok  " if item.ok else "MEND"), item.topic, item.found] for item in advice]
    mends = [f"{item.topic}: {item.mend}" for item in advice if not item.ok and item.mend]
    text = f"voxedge {version()}\n\n{table(rows)}"
    if mends:
        text += "\n\nTo mend what is missing (only what you want to use):\n  " + "\n  ".join(mends)
    data: dict[str, Any] = {
        "voxedge": version(),
        "report": dataclasses.asdict(report),
        "advice": [dataclasses.asdict(item) for item in advice],
        "cpu_speech": speaks_on_cpu(),
    }
    console.result(data, text)
    return 0 if data["cpu_speech"] else BackendUnavailableError.exit_code


def speaks_on_cpu() -> bool:
    """Whether ONNX Runtime loads and offers its CPU provider."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CPUExecutionProvider" in onnxruntime.get_available_providers()

"""`voxedge doctor`: what works on this machine, and the command that mends what does not.

In: nothing. Out: a table (or JSON) of findings. Exit code 0 when speech on the CPU would work, 3 when it would not.
Changes nothing on the machine.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from voxedge.engines.errors import BackendUnavailableError
from voxedge.engines.files import format_bytes
from voxedge.engines.records import to_dict
from voxedge.runtime.cli.common import Verbs, version
from voxedge.runtime.cli.console import Console, table

if TYPE_CHECKING:
    from voxedge.engines.device import DeviceReport


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("doctor", help="what works here, and how to mend what does not")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Show what was found."""
    from voxedge.engines.advice import advise
    from voxedge.engines.device import gather  # it loads ONNX Runtime: not for `--help`
    from voxedge.engines.session_cache import SessionCache

    report = gather(probe=True)
    advice = advise(report)
    speaks = speaks_on_cpu(report)
    cache = SessionCache().use()
    prepared = f"{cache.copies} prepared graph(s), {format_bytes(cache.size)} in {cache.folder}"
    rows = [("ok" if item.ok else "MEND", item.topic, item.found) for item in advice]
    rows.append(("ok", "session cache", prepared))
    mends = [f"{item.topic}: {item.mend}" for item in advice if not item.ok]
    verdict = "Speech on the CPU works here." if speaks else "Speech on the CPU does not work here."
    text = f"voxedge {version()}\n\n{table(rows)}\n\n{verdict}"
    if mends:
        text += "\nTo mend, where you want it:\n  " + "\n  ".join(mends)
    data: dict[str, Any] = {
        "voxedge": version(),
        "report": to_dict(report),
        "advice": [to_dict(item) for item in advice],
        "cpu_speech": speaks,
        "session_cache": {"folder": str(cache.folder), "copies": cache.copies, "bytes": cache.size},
    }
    console.result(data, text)
    return 0 if speaks else BackendUnavailableError.exit_code


def speaks_on_cpu(report: DeviceReport) -> bool:
    """Whether ONNX Runtime loads and offers its CPU provider."""
    return "CPUExecutionProvider" in report.providers

"""Is a bundle known to be good? What the last `voxedge verify` found, read from the report that it left in the bundle.

In: a bundle. Out: a `Readiness`. The report names the files that it is about by a digest, so that a report of other
files, such as those of an earlier export, counts for nothing. Does not verify anything (see `calibration.verify`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxedge.engines.bundle import VERIFY_REPORT, Bundle
from voxedge.engines.errors import BundleError, ConfigError
from voxedge.engines.files import read_json, write_atomically
from voxedge.engines.manifest import Manifest
from voxedge.engines.records import from_dict, to_dict

__all__ = ["VERIFY_REPORT", "Readiness", "Verdict", "files_digest", "readiness", "record_verdict"]

State = Literal["reference", "ready", "unverified", "failed"]

_MAX_REPORT_BYTES = 64 << 20
_PLAIN = frozenset({"fp32", "fp16"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The head of a report: all that the runtime needs of it."""

    files: str
    """`files_digest` of the bundle that was verified."""
    passed: bool
    """Whether the gate was open."""
    reference: str = ""
    """`files_digest` of the reference; empty where there was none."""
    failures: tuple[str, ...] = ()
    """Why the gate is closed, one sentence each."""
    created_by: str = ""
    """Name and version of the program that verified."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is known of a bundle's quality."""

    state: State
    """`reference`: FP32, what others are compared with. `ready`: verified beside its reference. `unverified`: not, or
    without a reference, or its files have changed since. `failed`: verified, and the gate is closed."""
    reason: str
    """One sentence for people, with what to type next."""
    quantised: bool
    """Whether any graph is coarser than FP16."""

    @property
    def warns(self) -> bool:
        """Whether people should be told before they use it."""
        return self.state == "failed" or (self.state == "unverified" and self.quantised)


def files_digest(manifest: Manifest) -> str:
    """SHA-256 over the paths, hashes and sizes of all files, in hex digits: equal only for equal bundles."""
    lines = [f"{path}\0{record.sha256}\0{record.size}\n" for path, record in sorted(manifest.files.items())]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def readiness(bundle: Bundle) -> Readiness:
    """Look at what `voxedge verify` left; reads one small file and no weights."""
    precisions = {graph.precision for graph in bundle.manifest.graphs}
    verdict, problem = _read(bundle)
    quantised = not precisions <= _PLAIN
    if verdict is not None and not verdict.passed:
        more = f" and {len(verdict.failures) - 1} more" if len(verdict.failures) > 1 else ""
        first = verdict.failures[0] if verdict.failures else "no reason was recorded"
        return Readiness("failed", f"verification failed: {first}{more}", quantised)
    if precisions == {"fp32"}:
        return Readiness("reference", "FP32: what other precisions are compared with", quantised)
    if verdict is not None and verdict.reference:
        return Readiness("ready", "verified beside its FP32 reference", quantised)
    if verdict is not None:
        problem = "it was verified without a reference"
    return Readiness("unverified", f"{problem}; type: voxedge verify {bundle.root} --reference FP32-BUNDLE", quantised)


def record_verdict(bundle: Bundle, verdict: Verdict, report: Mapping[str, Any]) -> Path:
    """Leave a report in the bundle, in one step; returns its path.

    Args:
        bundle: What was verified.
        verdict: The outcome.
        report: Everything that was measured; plain JSON types.

    Raises:
        OSError: The bundle's folder may not be written to, or the disk is full.
    """
    path = bundle.path(VERIFY_REPORT)
    path.parent.mkdir(exist_ok=True)
    data = {"verdict": to_dict(verdict), "report": report}
    write_atomically(path, json.dumps(data, indent=1, allow_nan=False).encode())
    return path


def _read(bundle: Bundle) -> tuple[Verdict | None, str]:
    """The verdict that is about these files, or why there is none."""
    try:
        path = bundle.path(VERIFY_REPORT)
        if not path.exists():
            return None, "it was not verified"
        data = read_json(path, _MAX_REPORT_BYTES)
        verdict = from_dict(Verdict, data.get("verdict") if isinstance(data, dict) else None, VERIFY_REPORT)
    except (BundleError, ConfigError, OSError):
        return None, f"its {VERIFY_REPORT} is damaged"
    if verdict.files != files_digest(bundle.manifest):
        return None, "its files have changed since it was verified"
    return verdict, ""

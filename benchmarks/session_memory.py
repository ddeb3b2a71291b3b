"""Memory of two resident experts on ONNX Runtime's CPU provider, opened as they are and from prepared sessions.

In: a shape and precisions. A random MoE-TTS language model is written, exported and quantised once; then every setting
runs in a process of its own. Out: a table, a JSON file, and the table of docs/benchmarks.md. Fails when a prepared
session holds more than 0.3 x the anonymous memory of the default one, or gives other logits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import describe
from report import machine_lines, markdown_table, replace_region, text_table
from shapes import SHAPES, write_checkpoint

PACKAGES = ("voxedge", "onnxruntime", "numpy")
PRECISIONS = ("int8-weight", "int4-weight")
GOAL = 0.3
"""Anonymous memory with prepared sessions / without."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Both experts of one bundle in one setting."""

    precision: str
    """Of the bundle."""
    setting: str
    """`default`, `prepared: first load` or `prepared`."""
    load_s: float
    """Seconds to load both experts."""
    anonymous: int
    """RssAnon after a prompt and some steps, in bytes: memory that cannot be dropped."""
    file: int
    """RssFile at the same time: clean pages of mapped files, shared and reclaimable."""
    step_ms: float
    """Median decode step of the speech expert."""
    logits: str
    """Hash of the last logits."""
    disk: int
    """Bytes in the session cache afterwards."""


def bundles(shape: str, work: Path, precisions: list[str]) -> dict[str, Path]:
    """One quantised bundle of both experts for each precision; written once."""
    from voxedge.calibration.quantise.bundle import quantise_bundle
    from voxedge.calibration.quantise.config import QuantiseConfig
    from voxedge.export.config import ExportConfig
    from voxedge.export.systems import export_checkpoint

    source = work / f"experts-{shape}-fp32"
    found = {precision: work / f"experts-{shape}-{precision}" for precision in precisions}
    missing = {precision: folder for precision, folder in found.items() if not folder.is_dir()}
    if missing and not source.is_dir():
        checkpoint = write_checkpoint(work / f"checkpoint-{shape}-bf16", SHAPES[shape])
        export_checkpoint(checkpoint, source, ExportConfig(components=("text_expert", "speech_expert")))
    for precision, folder in missing.items():
        quantise_bundle(source, folder, QuantiseConfig(precision, block_size=64))  # type: ignore[arg-type]
    return found


def measure(precision: str, bundle: Path, cache: Path, threads: int) -> list[Sessions]:
    """The default, the load that makes the prepared copies, and a load that finds them."""
    shutil.rmtree(cache, ignore_errors=True)
    found = []
    for setting, flags in (("default", []), ("prepared: first load", ["--prepared"]), ("prepared", ["--prepared"])):
        child = [sys.executable, str(Path(__file__).with_name("session_child.py")), str(bundle), "--cache", str(cache)]
        output = subprocess.run(
            [*child, "--threads", str(threads), *flags], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        disk = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        found.append(Sessions(precision, setting, disk=disk, **json.loads(output)))
        print(text_table(*rows(found[-1:])), file=sys.stderr, flush=True)
    return found


def rows(sessions: list[Sessions]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; MB are 10^6 bytes."""
    header = ["two experts", "load s", "anonymous MB", "file MB", "step ms", "cache on disk MB"]
    table = [
        [f"{each.precision}, {each.setting}", f"{each.load_s:.1f}"]
        + [f"{value / 1e6:.0f}" for value in (each.anonymous, each.file)]
        + [f"{each.step_ms:.1f}", f"{each.disk / 1e6:.0f}"]
        for each in sessions
    ]
    return header, table


def verdict(sessions: list[Sessions]) -> tuple[str, bool]:
    """A sentence for each precision, and whether all are as they should be."""
    lines, good = [], True
    for precision in dict.fromkeys(each.precision for each in sessions):
        default, first, later = (each for each in sessions if each.precision == precision)
        if later.disk < later.anonymous // 100:
            lines.append(f"{precision}: no session was prepared, as its graphs are too small; nothing is compared.")
            continue
        share, same = later.anonymous / default.anonymous, default.logits == first.logits == later.logits
        good = good and share <= GOAL and same
        words = "the same logits" if same else "OTHER LOGITS"
        lines.append(
            f"{precision}: prepared sessions hold {share:.2f} x the anonymous memory (goal {GOAL}), and give {words}."
        )
    return "\n".join(lines), good


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure the memory of prepared sessions.")
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="repeat for more; default: all")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and bundles")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file with session_memory:begin and session_memory:end")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    machine, sessions = describe(PACKAGES), []
    for precision, bundle in bundles(arguments.shape, arguments.work, arguments.precision or list(PRECISIONS)).items():
        sessions += measure(precision, bundle, arguments.work / "session-cache", arguments.threads)
    header, table = rows(sessions)
    text, good = verdict(sessions)
    settings = f"Shape {arguments.shape}, blocks of 64, {arguments.threads} thread(s)."
    print("\n\n".join((machine_lines(machine), settings, text_table(header, table), text)))
    if arguments.output:
        found = {"machine": asdict(machine), "sessions": [asdict(each) for each in sessions]}
        arguments.output.write_text(json.dumps(found, indent=1))
    if arguments.markdown:
        parts = (machine_lines(machine), settings, markdown_table(header, table), text)
        replace_region(arguments.markdown, "session_memory", "\n\n".join(parts))
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

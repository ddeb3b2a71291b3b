"""Peak memory of exporting a language model, from small to large, beside plain `torch.onnx.export`.

In: shapes. For each a random checkpoint of MoE-TTS or MOSS-TTS is written (or reused) and exported by a fresh process
whose memory is followed. Out: a table, a JSON file, and the table of docs/benchmarks.md. A plain export whose weights
would not fit is reported as such, not tried. Needs disk for one checkpoint and its export at a time (4b: about 32 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from export_child import PRECISIONS
from machine import MemoryPeaks, MemorySampler, describe
from moss_shapes import MODELS, write_released
from report import machine_lines, markdown_table, replace_region, text_table
from shapes import SHAPES, write_checkpoint

PACKAGES = ("voxedge", "torch", "onnx", "onnx-ir", "onnxscript", "numpy")
LIMIT_BYTES = 1_000_000_000
"""What an export may take at any size of the model, PyTorch's import included."""
_PLAIN_FACTOR = 1.5
"""Memory that a plain export is expected to need, in multiples of its weights."""
_METHODS = {"ours": "voxedge", "plain": "torch.onnx.export, speech expert alone"}
_MOSS = {f"moss-{model}": model for model in MODELS}


@dataclass(frozen=True, slots=True)
class Export:
    """One export, or why it was not done."""

    shape: str
    """Name in `shapes.SHAPES`, or `moss-` and one in `moss_shapes.MODELS`."""
    method: str
    """`ours` or `plain`."""
    checkpoint_gb: float
    """Bytes of the checkpoint's weights / 10^9."""
    exported_gb: float = 0.0
    """Bytes of everything written / 10^9."""
    seconds: float = 0.0
    """Wall time of the whole process."""
    peaks: MemoryPeaks | None = None
    """Peak memory; None where it was not run or failed."""
    failure: str = ""
    """Last line of its error output, or why it was not tried."""


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(shape: str, method: str, checkpoint: Path, work: Path, precision: str) -> Export:
    """Run one export in a fresh process and follow its memory; its output is deleted."""
    size_gb = _folder_bytes(checkpoint) / 1e9
    if method == "plain":
        need = SHAPES[shape].step_weights * (2 if precision == "fp16" else 4) * _PLAIN_FACTOR
        if need > _available_bytes():
            return Export(shape, method, size_gb, failure=f"not tried: about {need / 1e9:.0f} GB of memory needed")
    output, log = work / f"export-{shape}-{method}", work / f"export-{shape}-{method}.log"
    shutil.rmtree(output, ignore_errors=True)
    script = str(Path(__file__).with_name("export_child.py"))
    command = [sys.executable, script, method, str(checkpoint), str(output), "--precision", precision]
    started = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, text=True, env={**os.environ})
        peaks = MemorySampler(process).finish()
    seconds = time.perf_counter() - started
    exported_gb = _folder_bytes(output) / 1e9 if output.is_dir() else 0.0
    shutil.rmtree(output, ignore_errors=True)
    if process.returncode != 0:
        lines = log.read_text().strip().splitlines() or ["no output"]
        return Export(shape, method, size_gb, seconds=seconds, failure=f"failed: {lines[-1][:300]}")
    return Export(shape, method, size_gb, exported_gb, seconds, peaks)


def rows(exports: list[Export]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; memory in MB (10^6 bytes)."""
    header = ["shape, exporter", "checkpoint GB", "exported GB", "s", "peak RSS MB", "anonymous MB", "file MB"]
    table = []
    for export in exports:
        row = [f"{export.shape}, {_METHODS[export.method]}", f"{export.checkpoint_gb:.2f}"]
        if export.peaks is None:
            table.append([*row, "-", "-", "-", "-", "-"])
            continue
        peaks = export.peaks
        memory = (max(peaks.high_water, peaks.rss), peaks.anonymous, peaks.file)
        row += [f"{export.exported_gb:.2f}", f"{export.seconds:.0f}", *(f"{value / 1e6:.0f}" for value in memory)]
        table.append(row)
    return header, table


def verdict(exports: list[Export]) -> str:
    """Whether the bound holds, and how memory grows from the first to the last shape."""
    ours = [export for export in exports if export.method == "ours" and export.peaks is not None]
    missing = [f"{export.shape}, {_METHODS[export.method]}: {export.failure}" for export in exports if export.failure]
    return "\n".join([*missing, _bound(ours) if ours else "No export of ours succeeded."])


def _bound(ours: list[Export]) -> str:
    peaks = [max(export.peaks.high_water, export.peaks.rss) for export in ours if export.peaks is not None]
    words = "under" if max(peaks) < LIMIT_BYTES else "OVER"
    text = f"voxedge's largest peak is {max(peaks) / 1e6:.0f} MB, {words} {LIMIT_BYTES / 1e6:.0f} MB"
    if len(ours) > 1:
        growth = peaks[-1] / peaks[0] - 1
        text += f"; from {ours[0].shape} to {ours[-1].shape} it changes by {growth:+.1%}"
    return text + "."


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the peak memory of exports.")
    parser.add_argument(
        "--shape", choices=(*SHAPES, *_MOSS), action="append", help="repeat for more; default 0.6b and 4b"
    )
    parser.add_argument("--plain", choices=SHAPES, action="append", default=[], help="also plain torch.onnx.export")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and exports")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the checkpoints")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the exports")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file with the marks REGION:begin and REGION:end")
    parser.add_argument("--region", default="export_memory", help="of the Markdown file")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> list[Export]:
    """All exports, one checkpoint on disk at a time."""
    wanted = arguments.shape or ["0.6b", "4b"]
    exports = []
    for shape in dict.fromkeys([*wanted, *arguments.plain]):
        folder = arguments.work / f"checkpoint-{shape}-{arguments.dtype}"
        checkpoint = (
            write_released(folder, _MOSS[shape])
            if shape in _MOSS
            else write_checkpoint(folder, SHAPES[shape], arguments.dtype)
        )
        methods = ["ours"] * (shape in wanted) + ["plain"] * (shape in arguments.plain)
        for method in methods:
            exports.append(measure(shape, method, checkpoint, arguments.work, arguments.precision))
            print(text_table(*rows(exports[-1:])), file=sys.stderr, flush=True)
        if not arguments.keep:
            shutil.rmtree(checkpoint)
    return exports


def main() -> None:
    """Run from the command line; fails when an export of ours fails or breaks the bound."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    machine, exports = describe(PACKAGES), run(arguments)
    settings = f"Checkpoints in {arguments.dtype}, exported as {arguments.precision}."
    header, table = rows(exports)
    print("\n\n".join((machine_lines(machine), settings, text_table(header, table), verdict(exports))))
    if arguments.output:
        found = {"machine": asdict(machine), "settings": settings, "exports": [asdict(export) for export in exports]}
        arguments.output.write_text(json.dumps(found, indent=1))
    if arguments.markdown:
        parts = (machine_lines(machine), settings, markdown_table(header, table), verdict(exports))
        replace_region(arguments.markdown, arguments.region, "\n\n".join(parts))
    ours = [export for export in exports if export.method == "ours"]
    if any(export.peaks is None or export.peaks.high_water >= LIMIT_BYTES for export in ours):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

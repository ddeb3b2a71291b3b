"""How much faster several texts of a MOSS-TTS are in step than one after the other.

In: checkpoints or bundles of a model and of a codec. Out: frames per second of all texts together, for several sizes of
a batch that take turns in one run. Every text gets as many frames, so that all runs do the same work.

    .venv/bin/python benchmarks/moss_shapes.py --model v1.5 --layers 8 --width 1024 --output WORK/model
    .venv/bin/python benchmarks/moss_together.py --model WORK/model --markdown docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from codec_shapes import SMALLEST, write_codec
from machine import LoadMeter, describe
from moss_hour import GOLDEN, PACKAGES, bundle_of
from report import machine_lines, markdown_table, replace_region, text_table

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import VoxedgeError
from voxedge.runtime.directions import Directions
from voxedge.runtime.synthesizer import Request, Synthesizer

TEXT = "The quick brown fox jumps over the lazy dog."


def measure(voice: Synthesizer, sizes: list[int], texts: int, frames: int, rounds: int) -> dict[int, list[float]]:
    """Seconds of each round by size; the first round is dropped."""
    asked = [Request(TEXT, seed=number, directions=Directions(frames=frames)) for number in range(texts)]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds + 1):
        for size in sizes:
            started = time.perf_counter()
            for found in voice.synthesize_batch(asked, together=size):
                if isinstance(found, VoxedgeError):
                    raise found
            if turn:
                seconds[size].append(time.perf_counter() - started)
    return seconds


def fitting_codec(model: Path, folder: Path) -> Path:
    """Write the smallest codec with a model's codebooks."""
    sizes = Bundle.open(model).manifest.settings["codebooks"]
    return write_codec(folder, dataclasses.replace(SMALLEST, codebooks=len(sizes), size=max(sizes)))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=GOLDEN / "moss_delay" / "checkpoint")
    parser.add_argument("--codec", type=Path, help="its time counts too; a small one that fits unless given")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--frames", type=int, default=25, help="of each text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="page with the marks moss_together")
    arguments = parser.parse_args()
    meter = LoadMeter([])
    with tempfile.TemporaryDirectory() as name:
        model = bundle_of(arguments.model, Path(name), "model")
        codec = bundle_of(arguments.codec or fitting_codec(model, Path(name) / "checkpoint"), Path(name), "codec")
        with Synthesizer.from_pretrained(model, backend="cpu", threads=arguments.threads, codec=codec) as voice:
            seconds = measure(voice, arguments.together, arguments.texts, arguments.frames, arguments.rounds)
    medians = {size: statistics.median(times) for size, times in seconds.items()}
    total, first = arguments.texts * arguments.frames, medians[arguments.together[0]]
    header = ("together", "frames/s", "times as fast")
    rows = [[str(size), f"{total / median:.1f}", f"{first / median:.2f}"] for size, median in medians.items()]
    text = (
        f"{arguments.texts} texts of {arguments.frames} frames with their sound, {arguments.threads} thread(s), FP32; "
        f"other load {meter.foreign_cores():.1f} cores."
    )
    print(f"{text}\n\n{text_table(header, rows)}")
    if arguments.markdown:
        page = "\n\n".join((machine_lines(describe(PACKAGES)), text, markdown_table(header, rows)))
        replace_region(arguments.markdown, "moss_together", page)


if __name__ == "__main__":
    main()

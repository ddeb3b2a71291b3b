"""How fast the audio codec decodes beside the same module in torch, and how much memory an hour takes.

In: the released shape with its depth divided, random weights; the small golden codec for the hour. Out: a table of
real-time factors (whole signals and streams of 1, 4 and 8 frames), interleaved in one run, and resident memory as an
hour goes by; text, JSON and the tables of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec_shapes import released, write_codec
from codec_torch import TorchStream, load_decoder
from machine import LoadMeter, describe
from report import machine_lines, markdown_table, replace_region, text_table

from voxedge.engines.bundle import Bundle
from voxedge.export.checkpoint.moss_codec import load_moss_codec
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import DECODER

PACKAGES = ("voxedge", "onnxruntime", "torch", "numpy")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "moss_audio_tokenizer" / "checkpoint"
PIECES = (1, 4, 8)
HOUR_S = 3600.0
MARKS = 6

Feed = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Figure:
    """One way of decoding."""

    name: str
    frames_per_call: int
    rtf: float
    """Median of the rounds: seconds of work per second of sound."""
    foreign_cores: float
    """Load of others meanwhile, in cores."""


def speed(work: Path, divide: int, frames: int, rounds: int, threads: int) -> tuple[list[Figure], float]:
    """Interleaved figures, and the largest difference of both sounds as a share of the largest sample."""
    checkpoint = write_codec(work / "checkpoint", released(divide))
    bundle = export_checkpoint(checkpoint, work / "bundle", ExportConfig(components=(DECODER,)))
    config = load_moss_codec(checkpoint).config
    codec = Codec.from_pretrained(bundle.root, backend="cpu", threads=threads)
    torch.set_num_threads(threads)
    module = load_decoder(bundle, config)
    codes = np.random.default_rng(0).integers(0, codec.settings.codebook_size, (codec.codebooks, frames))

    def ours() -> Feed:
        return codec.stream().feed

    def theirs() -> Feed:
        return TorchStream(bundle, module, config.context).feed

    sounds = [run(start, codes, 8)[1] for start in (ours, theirs)]
    error = float(np.abs(sounds[0].reshape(-1) - sounds[1]).max() / np.abs(sounds[1]).max())
    ways = [(name, start, size) for size in (*PIECES, 64) for name, start in (("voxedge", ours), ("torch", theirs))]
    seconds: dict[tuple[str, int], list[float]] = {}
    load: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds + 1):
        for name, start, size in ways:
            meter = LoadMeter([])
            seconds.setdefault((name, size), []).append(run(start, codes, size)[0])
            load.setdefault((name, size), []).append(meter.foreign_cores())
    duration_s = frames / codec.frame_rate
    figures = [
        Figure(name, size, statistics.median(seconds[name, size][1:]) / duration_s, max(load[name, size][1:]))
        for name, _, size in ways
    ]
    return figures, error


def run(start: Callable[[], Feed], codes: np.ndarray, size: int) -> tuple[float, np.ndarray]:
    """Seconds and samples of one stream."""
    feed = start()
    begun = time.perf_counter()
    parts = [feed(codes[:, first : first + size]) for first in range(0, codes.shape[1], size)]
    return time.perf_counter() - begun, np.concatenate(parts)


def hour(work: Path) -> tuple[list[tuple[float, float]], float, int]:
    """Minutes and resident MB as an hour of sound is decoded and thrown away, the RTF, and bytes of the state."""
    bundle: Bundle = export_checkpoint(GOLDEN, work / "small", ExportConfig(components=(DECODER,)))
    codec = Codec.from_pretrained(bundle.root, backend="cpu", threads=1)
    rng = np.random.default_rng(0)
    frames, marks = round(HOUR_S * codec.frame_rate), []
    begun = time.perf_counter()
    with codec.stream() as stream:
        size = 8
        for first in range(0, frames, size):
            stream.feed(rng.integers(0, codec.settings.codebook_size, (codec.codebooks, size)))
            if first * MARKS // frames != (first + size) * MARKS // frames or not first:
                marks.append((first / codec.frame_rate / 60.0, _resident_mb()))
        spent = time.perf_counter() - begun
        return marks, spent / HOUR_S, stream.state.nbytes


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--divide", type=int, default=8, help="of every depth; 1 is the released codec (7 GB on disk)")
    parser.add_argument("--frames", type=int, default=250, help="20 s, twice the window, at the released rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="a folder with space; a temporary one unless given")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path, help="page with the marks codec_decode")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        marks, small_rtf, state = hour(Path(folder))
        figures, error = speed(Path(folder), arguments.divide, arguments.frames, arguments.rounds, arguments.threads)
    machine = describe(PACKAGES)
    header = ("frames per call", "voxedge RTF", "torch RTF", "torch / voxedge", "others' load, cores")
    rows = [_row([figure for figure in figures if figure.frames_per_call == size]) for size in (*PIECES, 64)]
    depths = ", ".join(str(stage.layers) for stage in released(arguments.divide).stages)
    text = (
        f"Released widths, windows and codebooks, layers of the stacks from the waveform {depths} "
        f"(released 12, 12, 12, 32); {arguments.frames} frames ({arguments.frames / 12.5:g} s), "
        f"{arguments.threads} thread(s), FP32; largest difference of both sounds {error:.1e} of the largest sample."
    )
    memory = ", ".join(f"{minutes:.0f} min {megabytes:.1f} MB" for minutes, megabytes in marks)
    rest = (
        f"An hour of the small golden codec, 8 frames per call: RTF {small_rtf:.4f}, state {state / 1e6:.2f} MB, "
        f"resident memory after {memory}."
    )
    print(f"{text}\n\n{text_table(header, rows)}\n\n{rest}")
    if arguments.output:
        content: dict[str, Any] = {"machine": asdict(machine), "figures": [asdict(each) for each in figures]}
        content |= {"difference": error, "hour_mb": marks, "hour_rtf": small_rtf, "state_bytes": state}
        arguments.output.write_text(json.dumps(content, indent=1))
    if arguments.markdown:
        page = "\n\n".join((machine_lines(machine), text, markdown_table(header, rows), rest))
        replace_region(arguments.markdown, "codec_decode", page)


def _row(pair: list[Figure]) -> list[str]:
    ours, theirs = pair
    load = max(ours.foreign_cores, theirs.foreign_cores)
    size = "64 (whole)" if ours.frames_per_call == 64 else str(ours.frames_per_call)
    return [size, f"{ours.rtf:.3f}", f"{theirs.rtf:.3f}", f"{theirs.rtf / ours.rtf:.2f}", f"{load:.2f}"]


if __name__ == "__main__":
    main()

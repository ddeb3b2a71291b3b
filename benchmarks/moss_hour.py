"""An hour of speech from a small MOSS-TTS through the real runtime: does memory stay flat?

In: checkpoints or bundles of a model and of a codec; the small golden ones unless given. Out: resident memory as the
minutes go by, the real-time factor, and the time to the first sound. One long text is spoken as a stream, whose pieces
are as long as the model may speak at once; the sound is thrown away.

    .venv/bin/python benchmarks/moss_hour.py --markdown docs/benchmarks.md
    .venv/bin/python benchmarks/moss_hour.py --model tests/golden/moss_delay/checkpoint --minutes 5
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import LoadMeter, describe
from report import machine_lines, markdown_table, replace_region, text_table

from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint
from voxedge.runtime.synthesizer import Synthesizer

PACKAGES = ("voxedge", "onnxruntime", "numpy")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SENTENCE = "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm afternoon sun. "
PIECE_S = 15.0


@dataclass(frozen=True, slots=True)
class Mark:
    """Memory at one moment."""

    minutes: float
    """Of sound so far."""
    resident_mb: float
    """Of the whole process."""
    anonymous_mb: float
    """Of that, what is no mapped file."""
    wall_s: float
    """Since the text was given."""


def bundle_of(place: Path, work: Path, name: str) -> Path:
    """The bundle itself, or one that is exported from a checkpoint."""
    if (place / "voxedge.json").is_file():
        return place
    return export_checkpoint(place, work / name, ExportConfig()).root


def memory_mb() -> tuple[float, float]:
    """Resident and anonymous memory of this process."""
    pages = [int(count) for count in Path("/proc/self/statm").read_text().split()]
    size = resource.getpagesize() / 1e6
    return pages[1] * size, (pages[1] - pages[2]) * size


def speak(voice: Synthesizer, minutes: float, marks: int) -> tuple[list[Mark], float]:
    """Marks from the first sound on, and the seconds to the first sound."""
    frames = max(1, round(PIECE_S * voice.codec.frame_rate))
    limits = dataclasses.replace(voice.default_config.sampling, min_tokens=frames, max_tokens=frames)
    config = dataclasses.replace(voice.default_config, sampling=limits)
    text = SENTENCE * min(20 + int(8 * minutes * 60.0 / PIECE_S), 1000)  # more than enough; the stream ends in time
    found: list[Mark] = []
    heard, first_s, started = 0, 0.0, time.perf_counter()
    stream = voice.stream(text, seed=1, config=config)
    for chunk in stream:
        wall_s = time.perf_counter() - started
        first_s = first_s or wall_s
        before, heard = heard, heard + len(chunk.samples)
        step = minutes * 60.0 * voice.sample_rate / marks
        if not found or int(before / step) != int(heard / step):
            found.append(Mark(heard / voice.sample_rate / 60.0, *memory_mb(), wall_s))
            print(f"minute {found[-1].minutes:.1f}: {found[-1].resident_mb:.1f} MB", file=sys.stderr, flush=True)
        if heard >= minutes * 60.0 * voice.sample_rate:
            break
    else:
        raise SystemExit(
            f"expected {minutes:g} minutes of speech, the text was spoken in {heard / voice.sample_rate:.0f} s"
        )
    stream.close()
    return found, first_s


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=GOLDEN / "moss_local_v15" / "checkpoint")
    parser.add_argument("--codec", type=Path, default=GOLDEN / "moss_audio_tokenizer" / "checkpoint")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--marks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path, help="page with the marks moss_hour")
    arguments = parser.parse_args()
    meter = LoadMeter([])
    with tempfile.TemporaryDirectory() as name:
        model = bundle_of(arguments.model, Path(name), "model")
        codec = bundle_of(arguments.codec, Path(name), "codec")
        with Synthesizer.from_pretrained(model, backend="cpu", threads=arguments.threads, codec=codec) as voice:
            voice.warmup()
            marks, first_s = speak(voice, arguments.minutes, arguments.marks)
            channels = len(voice.bundle.manifest.settings["codebooks"])
            rate = f"{voice.codec.frame_rate:g} frames of {channels} codes a second"
    header = ("minutes", "resident MB", "anonymous MB", "wall s")
    rows = [[f"{m.minutes:.1f}", f"{m.resident_mb:.1f}", f"{m.anonymous_mb:.1f}", f"{m.wall_s:.0f}"] for m in marks]
    rtf = marks[-1].wall_s / (60.0 * marks[-1].minutes)
    text = (
        f"{arguments.model.parent.name if arguments.model.name == 'checkpoint' else arguments.model.name}, {rate}, "
        f"{arguments.threads} thread(s), FP32: RTF {rtf:.3f}, first sound after {1e3 * first_s:.0f} ms (warm); "
        f"other load {meter.foreign_cores():.1f} cores."
    )
    machine = describe(PACKAGES)
    print(f"{text}\n\n{text_table(header, rows)}")
    if arguments.output:
        content = {
            "machine": asdict(machine),
            "marks": [asdict(mark) for mark in marks],
            "rtf": rtf,
            "first_s": first_s,
        }
        arguments.output.write_text(json.dumps(content, indent=1))
    if arguments.markdown:
        page = "\n\n".join((machine_lines(machine), text, markdown_table(header, rows)))
        replace_region(arguments.markdown, "moss_hour", page)


if __name__ == "__main__":
    main()

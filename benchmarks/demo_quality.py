"""Quality and speed of the demo voice, for every precision that is given, beside the synthesiser it learned from.

In: bundles of the voice (`NAME=FOLDER`; none: the built-in one) and the held-out lists of examples/demo_voice. Out: a
table, a JSON file, and the table of docs/benchmarks.md. Run it from the repository's root:
`PYTHONPATH=. python benchmarks/demo_quality.py --work DIR`. Needs the Debian package flite, and pocketsphinx from PyPI.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from machine import describe
from report import machine_lines, markdown_table, replace_region, text_table
from voice_measures import Sound, SpeakerClassifier, StockEnglish, error_rate, median_f0

from examples.demo_voice import corpus, sentences, synthesiser
from examples.demo_voice.descriptions import SPEAKERS, Style
from voxedge.calibration.recogniser import PocketSphinx
from voxedge.runtime.synthesizer import Synthesizer

VOICES = {"woman": "slt", "man": "rms", "scot": "awb"}
_RATE = 16_000
_CONTROL_SENTENCES = 2  # spoken with every description
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one bundle, or of the synthesiser itself; None: not measured."""

    name: str
    """Of the row."""
    narrow: float
    """Word error rate of the narrow sentences."""
    open: float | None
    """Of open text."""
    gender: float | None = None
    """Share of utterances whose described gender is heard."""
    accent: float | None = None
    """Share whose speaker is heard."""
    speed: float | None = None
    """Share of slow and fast pairs in the right order."""
    pitch: float | None = None
    """Share of low and high pairs in the right order."""
    metaphor: float | None = None
    """Share of speed and pitch pairs that are in the right order where a metaphor describes them, gender too."""
    rtf: float | None = None
    """Wall time / duration, warm."""
    first_audio_s: float | None = None
    """Until the first piece of a stream, median, warm."""
    megabytes: float | None = None
    """Of the bundle."""


@dataclass(frozen=True, slots=True)
class Description:
    """A line of the list."""

    kind: str
    """`known`: known words in new sentences; `metaphor`: nothing of the kind was ever seen."""
    description: str
    """As the user would write it."""
    voice: str
    """Key of `VOICES`."""
    speed: int
    """-1, 0 or 1."""
    pitch: int
    """-1, 0 or 1."""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--work", type=Path, required=True, help="for sounds and language models")
    parser.add_argument("--sentences", type=int, default=100, help="of each list")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--open", action="store_true", help="open text too, for the first bundle")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path, help="page to put the table into")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    judge = Judge(arguments.work, arguments.sentences)
    rows = [judge.original(arguments.open)]
    for number, named in enumerate(arguments.bundles or ["built-in="]):
        name, _, folder = named.partition("=")
        with Synthesizer.from_pretrained(folder or None, threads=arguments.threads) as voice:
            rows.append(judge.voice(name, voice, arguments.open and number == 0))
        print(rows[-1], flush=True)
    report(rows, arguments)


class Judge:
    """Lists, recognisers and the classifier."""

    def __init__(self, work: Path, count: int) -> None:
        """Learn the domain's language and the speakers' sound."""
        rng = random.Random("domain")
        held_out = {sentences.key(text) for text in corpus.test_sentences()}
        drawn = [
            text for text in (sentences.sentence(rng) for _ in range(20_000)) if sentences.key(text) not in held_out
        ]
        self.work, self.narrow_texts = work, corpus.test_sentences()[:count]
        self.open_texts = (corpus.FOLDER / "test_open.txt").read_text().splitlines()[:count]
        self.narrow, self.stock = PocketSphinx(drawn), StockEnglish()
        styles = [Style(SPEAKERS[n % 3], rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1))) for n in range(150)]
        spoken = [_flite(sentences.sentence(rng), style, work) for style in styles]
        self.classifier = SpeakerClassifier(spoken, [style.speaker for style in styles])

    def original(self, open_text: bool) -> Figures:
        """The synthesiser's own sound, speakers in turn; kept in a file, since it never changes."""
        kept = self.work / f"flite-{len(self.narrow_texts)}{'-open' if open_text else ''}.json"
        if kept.exists():
            return Figures(**json.loads(kept.read_text()))
        narrow, unlimited = (
            [_flite(text, Style(SPEAKERS[n % 3], 0, 0), self.work) for n, text in enumerate(texts)]
            for texts in (self.narrow_texts, self.open_texts)
        )
        rate = error_rate(self.stock, self.open_texts, unlimited) if open_text else None
        row = Figures("flite itself", error_rate(self.narrow, self.narrow_texts, narrow), rate)
        kept.write_text(json.dumps(asdict(row)))
        return row

    def voice(self, name: str, voice: Synthesizer, open_text: bool) -> Figures:
        """A bundle."""
        plain = ("A woman.", "A man.", "A scottish man.")
        for seed in range(_WARM_UP):
            voice.synthesize("Hello world.", description=plain[seed], seed=seed)
        narrow, seconds, spent = [], 0.0, 0.0
        for number, text in enumerate(self.narrow_texts):
            audio = voice.synthesize(text, description=plain[number % 3], seed=number)
            narrow.append(_mono(audio.samples))
            seconds, spent = seconds + audio.duration_s, spent + audio.timing.wall_s
            soundfile.write(self.work / f"{name}-{number:03d}.wav", narrow[-1], _RATE)
        unlimited = None
        if open_text:
            spoken = [
                _mono(voice.synthesize(text, description=plain[number % 3], seed=number).samples)
                for number, text in enumerate(self.open_texts)
            ]
            unlimited = error_rate(self.stock, self.open_texts, spoken)
        return Figures(
            name,
            error_rate(self.narrow, self.narrow_texts, narrow),
            unlimited,
            **self.control(voice),
            rtf=spent / seconds,
            first_audio_s=float(
                np.median([_first_audio(voice, text, n) for n, text in enumerate(self.narrow_texts[:20])])
            ),
            megabytes=sum(record.size for record in voice.bundle.manifest.files.values()) / 1e6,
        )

    def control(self, voice: Synthesizer) -> dict[str, float]:
        """How far descriptions are followed."""
        with (corpus.FOLDER / "test_descriptions.tsv").open() as file:
            lines = [
                Description(row["kind"], row["description"], row["voice"], int(row["speed"]), int(row["pitch"]))
                for row in csv.DictReader(file, delimiter="\t")
            ]
        sounds = {
            line: [
                _mono(voice.synthesize(text, description=line.description, seed=seed).samples)
                for seed, text in enumerate(self.narrow_texts[:_CONTROL_SENTENCES])
            ]
            for line in lines
        }
        heard = {line: [self.classifier.speaker(sound) for sound in spoken] for line, spoken in sounds.items()}
        known = [line for line in lines if line.kind == "known"]
        strange = [line for line in lines if line.kind == "metaphor"]
        return {
            "gender": _share([(who == "slt") == (line.voice == "woman") for line in known for who in heard[line]]),
            "accent": _share([who == VOICES[line.voice] for line in known for who in heard[line]]),
            "speed": _share(_pairs(known, sounds, "speed")),
            "pitch": _share(_pairs(known, sounds, "pitch")),
            "metaphor": _share(
                [(who == "slt") == (line.voice == "woman") for line in strange for who in heard[line]]
                + _pairs(strange, sounds, "speed")
                + _pairs(strange, sounds, "pitch")
            ),
        }


def report(rows: list[Figures], arguments: argparse.Namespace) -> None:
    """Print, and write what was asked for."""
    header = (
        "",
        "WER narrow",
        "WER open",
        "gender",
        "speaker",
        "speed",
        "pitch",
        "metaphors",
        "RTF",
        "first audio",
        "MB",
    )
    cells = [
        (
            row.name,
            *(_percent(value) for value in (row.narrow, row.open, row.gender, row.accent, row.speed, row.pitch)),
            _percent(row.metaphor),
            *("" if value is None else f"{value:.{digits}f}{unit}" for value, digits, unit in _timings(row)),
        )
        for row in rows
    ]
    machine = describe(("numpy", "onnxruntime", "pocketsphinx", "torch"))
    print(text_table(header, cells))
    if arguments.output:
        data: dict[str, Any] = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
        arguments.output.write_text(json.dumps(data, indent=2) + "\n")
    if arguments.markdown:
        said = f"{arguments.sentences} sentences of each list, {arguments.threads} threads. {machine_lines(machine)}"
        replace_region(arguments.markdown, "demo-quality", f"{markdown_table(header, cells)}\n\n{said}")


def _timings(row: Figures) -> tuple[tuple[float | None, int, str], ...]:
    return ((row.rtf, 2, ""), (row.first_audio_s, 2, " s"), (row.megabytes, 1, ""))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _share(right: list[bool]) -> float:
    return sum(right) / max(1, len(right))


def _pairs(lines: list[Description], sounds: dict[Description, list[Sound]], what: str) -> list[bool]:
    """For every low and high (or slow and fast) description of one voice, sentence by sentence: is the order right?"""
    measure = median_f0 if what == "pitch" else lambda sound: -float(len(sound))
    return [
        measure(low) < measure(high)
        for less in lines
        for more in lines
        if less.voice == more.voice and getattr(less, what) == -1 and getattr(more, what) == 1
        for low, high in zip(sounds[less], sounds[more], strict=True)
    ]


def _first_audio(voice: Synthesizer, text: str, seed: int) -> float:
    started = time.perf_counter()
    stream = voice.stream(text, description="A woman.", seed=seed)
    next(stream)
    spent = time.perf_counter() - started
    for _ in stream:
        pass
    return spent


def _flite(text: str, style: Style, work: Path) -> Sound:
    return synthesiser.speak(text, style, work / "flite.wav").samples.astype(np.float32) / 32768.0


def _mono(samples: Sound) -> Sound:
    return samples[:, 0] if samples.ndim == 2 else samples


if __name__ == "__main__":
    main()

"""MOSS-TTS of a golden case: its bundle, its prompts, its recorded uniform numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from golden_graphs import read

from voxedge.engines.backend import Engine
from voxedge.engines.bundle import Bundle
from voxedge.engines.manifest import Flavour
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.export.checkpoint.moss_tts import MossCheckpoint, load_moss_tts
from voxedge.export.config import ExportConfig
from voxedge.export.systems.moss_tts import settings
from voxedge.runtime.sampling import SamplingConfig
from voxedge.runtime.systems.moss_grid import Grid
from voxedge.runtime.systems.moss_model import MossModel
from voxedge.runtime.systems.moss_prompt import MossPrompt
from voxedge.runtime.systems.moss_settings import MossSettings

CASES = ("moss_delay", "moss_local", "moss_local_v15", "moss_local_v15_abs")
CONFIG = ExportConfig()
GREEDY = SamplingConfig(temperature=0.0)


@dataclass
class Recorded:
    """Uniform numbers in the order in which the reference drew them; zeros behind their end."""

    numbers: list[float] = field(default_factory=list)
    used: int = 0

    def uniform(self) -> float:
        """The next number."""
        self.used += 1
        return self.numbers[self.used - 1] if self.used <= len(self.numbers) else 0.0


@dataclass
class Case:
    """One golden case."""

    folder: Path
    checkpoint: MossCheckpoint
    settings: MossSettings
    arrays: dict[str, np.ndarray]
    notes: dict[str, Any]
    bundle: Bundle | None = None

    @classmethod
    def open(cls, folder: Path, bundle: Path | None = None) -> Case:
        """Read the recordings, and the bundle where graphs are to be run."""
        checkpoint = load_moss_tts(folder / "checkpoint")
        return cls(
            folder=folder,
            checkpoint=checkpoint,
            settings=settings(checkpoint, CONFIG),
            arrays=read(folder),
            notes=json.loads((folder / "prompts.json").read_text(encoding="utf-8")),
            bundle=None if bundle is None else Bundle.open(bundle),
        )

    @property
    def flavours(self) -> list[Flavour]:
        """Of the backbone; the other graphs have one."""
        assert self.bundle is not None
        return [graph.flavour for graph in self.bundle.manifest.graphs if graph.name == "backbone"]

    def model(self, flavour: Flavour) -> MossModel:
        """The model on ONNX Runtime."""
        assert self.bundle is not None
        bundle, engines = self.bundle, {}

        def load(name: str) -> Engine:
            if name not in engines:
                spec = bundle.manifest.graph(name, flavour)
                engines[name] = OrtEngine(bundle.graph_path(spec), spec, OrtOptions(threads=1))
            return engines[name]

        return MossModel(self.settings, load)

    def prompt(self, name: str) -> tuple[MossPrompt, dict[str, Any]]:
        """A recorded prompt and how it was rendered."""
        entry = self.notes["prompts"][name]
        fields = dict(entry["user"])
        references = fields.pop("reference", None)
        if references is not None:
            fields["references"] = tuple(None if each is None else self.codes(each) for each in references)
        if "assistant" in entry:
            fields["prefix"] = self.codes(entry["assistant"][0])
        return MossPrompt(**fields), entry

    def codes(self, name: str) -> np.ndarray:
        """Recorded codes [T, n]."""
        return self.arrays[name].astype(np.int32)

    def grid(self, name: str) -> Grid:
        """Recorded rows of a prompt."""
        return self.arrays[f"prompt_{name}_input_ids"].astype(np.int32)

    def expected_rows(self, key: str) -> np.ndarray:
        """New rows of a trace; the local models' start length does not count their audio_start row."""
        start = int(self.arrays.get(f"{key}_start_length", 0))
        return self.arrays[f"{key}_assistant_ids"][start + (self.settings.kind != "delay") :]

    def traces(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Keys of recorded traces of known prompts and the prompt's name."""
        for name in self.notes["prompts"]:
            key = f"{prefix}_{name}"
            if f"{key}_assistant_ids" in self.arrays:
                yield key, name

    def sampling(self, setting: str) -> tuple[SamplingConfig, SamplingConfig]:
        """Text and audio rules of a recorded setting."""
        values = self.notes["sampled_kwargs"][setting]
        text, audio = (
            SamplingConfig(
                values[f"{what}_temperature"],
                top_k=values[f"{what}_top_k"],
                top_p=values[f"{what}_top_p"],
                repetition_penalty=values.get(f"{what}_repetition_penalty", 1.0),
            )
            for what in ("text", "audio")
        )
        return text, audio

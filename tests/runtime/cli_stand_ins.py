"""Stand-ins for tests of the command line: a bundle without real graphs, and a synthesizer that makes a tone.

They follow the interfaces of `engines.bundle` and `runtime.synthesizer`, so that a test of a verb needs no model; what
they cannot show (that the real ones agree) is shown by the tests that speak with the built-in voice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import InferenceError, VoxedgeError
from voxedge.engines.manifest import DimRange, GraphSpec, ManifestDraft, TensorSpec
from voxedge.runtime.audio import Audio, AudioChunk, FinishReason, Timing
from voxedge.runtime.cli.console import Console
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.requests import Request
from voxedge.runtime.sampling import SamplingConfig

RATE = 8000
GRAPH = GraphSpec(
    name="tiny",
    flavour="portable",
    path="graphs/tiny.onnx",
    data="graphs/tiny.data",
    precision="fp32",
    opset=17,
    inputs=(TensorSpec("x", "float32", ("rows", 4)),),
    outputs=(TensorSpec("y", "float32", ("rows", 4)),),
    profiles={"main": {"rows": DimRange(1, 2, 8)}},
)


def write_bundle(target: Path, note: str = "") -> Bundle:
    """A valid bundle whose graph cannot be loaded."""
    with BundleWriter(target) as writer:
        writer.path(GRAPH.path).write_bytes(b"graph")
        writer.path(GRAPH.data).write_bytes(b"weights")
        settings = {"sample_rate": RATE, "prompt": {"system": "Speak."}, "strides": [2, 4]}
        return writer.commit(ManifestDraft("toy", settings, (GRAPH,), created_by="voxedge tests", note=note))


CONFIG = SynthesisConfig(SamplingConfig(temperature=0.7, top_k=25))


@dataclass
class ToneSynthesizer:
    """Speaks a sine of three pieces whose frequency is the seed; keeps what it was asked."""

    bundle: Bundle
    failure: BaseException | None = None
    finish_reason: FinishReason = "stop"
    default_config: SynthesisConfig = CONFIG
    backend: str = "cpu"
    sample_rate: int = RATE
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> ToneSynthesizer:
        return self

    def __exit__(self, *error: object) -> None:
        self.asked.append({"closed": True})

    def stream(self, text: str, **options: Any) -> Iterator[AudioChunk]:  # noqa: ANN401 - recorded as they come
        """Three pieces."""
        self.asked.append({"text": text, **options})
        ramp = np.arange(3 * 800, dtype=np.float32) / RATE
        tone = 0.5 * np.sin(2 * np.pi * options["seed"] * ramp).astype(np.float32)[:, None]  # [T, 1]
        for index, piece in enumerate(np.split(tone, 3)):
            if self.failure is not None and index == 1:
                raise self.failure
            last = index == 2
            yield AudioChunk(piece, RATE, index, last, self.finish_reason if last else None)

    def synthesize(self, text: str, **options: Any) -> Audio:  # noqa: ANN401
        """The pieces joined."""
        samples = np.concatenate([chunk.samples for chunk in self.stream(text, **options)])
        timing = Timing(wall_s=0.06, audio_s=0.3, first_audio_s=0.02, tokens=12)
        return Audio(samples, RATE, options["seed"], self.finish_reason, timing)

    def synthesize_batch(self, requests: Iterable[Request], *, together: int) -> Iterator[Audio | VoxedgeError]:
        """Each in its turn; a text that says `fail` does."""
        self.asked.append({"together": together})
        for request in requests:
            if "fail" in request.text:
                yield InferenceError("expected speech, found silence")
            else:
                yield self.synthesize(request.text, seed=request.seed, description=request.description)


def opener(synthesizer: ToneSynthesizer) -> Any:  # noqa: ANN401 - has the type of what it stands in for
    """Stands in for `open_synthesizer` and records what would be loaded."""

    def open_synthesizer(bundle: Path | None, arguments: argparse.Namespace, console: Console) -> ToneSynthesizer:
        synthesizer.asked.append({"bundle": bundle, "backend": arguments.backend, "memory": arguments.memory})
        return synthesizer

    return open_synthesizer

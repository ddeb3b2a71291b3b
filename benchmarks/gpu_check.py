"""One command for whenever a GPU is at hand: do the engines run there, are they right, and how fast is a decode step?

In: a bundle (the built-in voice unless given) and a shape with random weights. Out: a JSON file and a table on stdout:
tokens of every backend beside the CPU's, INT8 and other layers of every engine, what ONNX Runtime leaves to the CPU,
and decode steps of TensorRT (CUDA graphs on and off), ONNX Runtime on CUDA (the same; see gpu_steps.py) and
transformers (eager and torch.compile), interleaved in one run. What is not installed or does not run is reported with
its reason; nothing is left out silently. The JSON file is written anew after every part, so a run that is cut off
leaves what it found.

    python benchmarks/gpu_check.py --work /path/with/space --output gpu_check.json
    python benchmarks/gpu_check.py --work /path/with/space --bundle moe-tts-int8 --parts engines voice
    python benchmarks/gpu_check.py --work /path/with/space --parts export   # needs no GPU, so it can be done before
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_decode import GRAPH, TARGETS, Findings, Plan, Traffic, decode, decode_table, first_line, row
from gpu_steps import place
from machine import describe
from report import replace_region, text_table
from shapes import SHAPES, LmShape, write_checkpoint

from voxedge.engines.bundle import Bundle
from voxedge.engines.device import gather
from voxedge.engines.errors import VoxedgeError
from voxedge.engines.loader import BackendName, choose_graph
from voxedge.engines.records import to_dict
from voxedge.engines.trt.api import FLAVOURS, Target
from voxedge.engines.trt.builder import build_bundle, engine_path
from voxedge.engines.trt.config import BuildConfig
from voxedge.engines.trt.layers import count_by_type, read_layers
from voxedge.runtime.synthesizer import Synthesizer, built_in_voice

TEXT = "The quick brown fox jumps over the lazy dog."
PACKAGES = ("voxedge", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "transformers", "numpy")
PARTS = ("export", "engines", "placement", "voice", "logits", "decode")


@dataclass(frozen=True, slots=True)
class Voice:
    """What one backend said."""

    backend: str
    """Which one."""
    tokens: tuple[int, ...]
    """Drawn speech tokens."""
    tokens_equal: bool
    """Whether they are the CPU's."""
    max_difference: float
    """Largest difference of a sample from the CPU's, where the tokens are equal; else NaN, in JSON null."""
    cold_s: float
    """Wall time of the first utterance, which loads everything."""
    warm_s: float
    """Wall time of the second."""


def speak(bundle: Path, backend: BackendName, expected: tuple[tuple[int, ...], Any] | None) -> tuple[Voice, Any]:
    """Say the text twice, greedily, so that equal logits give equal tokens."""
    with Synthesizer.from_pretrained(bundle, backend=backend) as voice:
        base = voice.default_config
        sampling = dataclasses.replace(base.sampling, temperature=0.0, min_tokens=24, max_tokens=48)
        config = dataclasses.replace(base, sampling=sampling)
        cold, warm = (voice.synthesize(TEXT, seed=1, config=config) for _ in range(2))
    tokens = cold.speech_tokens
    equal = expected is None or tokens == expected[0]
    difference = float("nan")
    if equal and expected is not None:
        difference = float(np.abs(cold.samples - expected[1]).max())
    figure = Voice(backend, tokens, equal, difference, cold.timing.wall_s, warm.timing.wall_s)
    return figure, (tokens, cold.samples)


def check_voice(bundle: Path, backends: Sequence[BackendName], failures: dict[str, str]) -> Iterator[Voice]:
    """Every backend beside the CPU."""
    first, expected = speak(bundle, "cpu", None)
    yield first
    for backend in backends:
        try:
            yield speak(bundle, backend, expected)[0]
        except VoxedgeError as error:
            failures[f"voice on {backend}"] = str(error)


def build(bundle: Path, target: Target, failures: dict[str, str]) -> dict[str, Any]:
    """Engines of a bundle: how long each took, how large it is, and what its layers compute in."""
    found: dict[str, Any] = {}
    try:
        for record in build_bundle(Bundle.open(bundle), BuildConfig(target=target)):
            found[record.graph] = {"seconds": record.duration_s, "bytes": record.size_bytes}
    except VoxedgeError as error:
        failures[f"building for {target}"] = str(error)
        return found
    for graph in Bundle.open(bundle).manifest.graphs:
        if graph.flavour == "portable":
            try:
                layers = read_layers(engine_path(Bundle.open(bundle), graph, target))
                found[graph.name]["layers"] = count_by_type(layers)
            except VoxedgeError as error:
                failures[f"layers of {graph.name} for {target}"] = str(error)
    return found


def export_lm(work: Path, shape: LmShape) -> tuple[Path, Path]:
    """A random checkpoint, and the FP16 bundle of its speech expert."""
    from voxedge.export.config import ExportConfig
    from voxedge.export.systems import export_checkpoint

    checkpoint, bundle = work / "lm-checkpoint", work / "lm-bundle"
    if not (checkpoint / "config.json").is_file():
        write_checkpoint(checkpoint, shape)
    if not (bundle / "voxedge.json").is_file():
        export_checkpoint(checkpoint, bundle, ExportConfig(precision="fp16", components=(GRAPH,)))
    return checkpoint, bundle


def run(options: argparse.Namespace) -> Findings:
    """The parts that were asked for, in the order of `PARTS`."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    findings = Findings(options.output)
    failures = findings.failures
    findings.add("machine", asdict(describe(PACKAGES)))
    findings.add("device", to_dict(gather(probe=True)))
    bundle = work / "voice"
    if not bundle.is_dir():
        shutil.copytree(options.bundle or built_in_voice(), bundle, copy_function=shutil.copyfile)
    if "engines" in options.parts:
        findings.add("engines", {target: build(bundle, target, failures) for target in TARGETS})
    if "placement" in options.parts:
        findings.add("placement", place_voice(bundle, failures))
    if "voice" in options.parts:
        backends: list[BackendName] = ["cuda", *(FLAVOURS[target] for target in TARGETS)]
        voices: list[dict[str, Any]] = []
        for voice in check_voice(bundle, backends, failures):
            voices.append(_finite(asdict(voice)))
            findings.add("voices", voices)
    if options.shape != "none":
        _language_model(options, findings)
    findings.save()
    return findings


def _language_model(options: argparse.Namespace, findings: Findings) -> None:
    checkpoint, path = export_lm(options.work, SHAPES[options.shape])
    if "engines" in options.parts:
        built = {target: build(path, target, findings.failures) for target in TARGETS}
        findings.add("engines of the language model", built)
    if "decode" in options.parts:
        plan = Plan(tuple(options.contexts), options.prefill, options.steps, options.rounds, "logits" in options.parts)
        decode(checkpoint, Bundle.open(path), plan, findings)


def place_voice(bundle: Path, failures: dict[str, str]) -> dict[str, Any]:
    """Who computes what when ONNX Runtime runs the voice on CUDA."""
    opened = Bundle.open(bundle)
    graphs = [
        choose_graph(opened.manifest, name, "cuda") for name in {graph.name: None for graph in opened.manifest.graphs}
    ]
    try:
        return {graph.name: place(opened.graph_path(graph), "cuda") for graph in graphs}
    except Exception as error:  # as above
        failures["placement on cuda"] = first_line(error)
        return {}


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in record.items()
    }


def tables(findings: Findings, traffic: Traffic | None) -> str:
    """The findings for people."""
    found = findings.found
    voices = [
        (
            voice["backend"],
            "yes" if voice["tokens_equal"] else "NO",
            str(voice["max_difference"]),
            f"{voice['warm_s']:.2f}",
        )
        for voice in found.get("voices", ())
    ]
    text = text_table(("voice", "tokens as on the CPU", "largest difference", "warm s"), voices) if voices else ""
    if traffic is not None and found.get("decode"):
        rows = [row(figure, traffic, found.get("logits", {})) for figure in found["decode"]]
        text += "\n\n" + text_table(("engine", "what", "ms", "tokens/s", "GB/s", "of peak", "logits' error"), rows)
    return text + "".join(f"\n- {name}: {reason}" for name, reason in findings.failures.items())


def main() -> None:
    """Parse, run, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and engines; kept")
    parser.add_argument("--bundle", type=Path, help="a voice; the built-in one unless given")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="what to do; all unless given")
    parser.add_argument("--shape", choices=(*SHAPES, "none"), default="0.6b", help="of the timed language model")
    parser.add_argument("--contexts", type=int, nargs="+", default=[0, 512, 2048])
    parser.add_argument("--prefill", type=int, default=256, help="tokens of the timed prefill")
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a visit")
    parser.add_argument("--rounds", type=int, default=5, help="visits that count")
    parser.add_argument("--peak-gb-s", type=float, help="the device's memory bandwidth, 3350 for an H100 SXM")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--markdown", type=Path, help="Markdown file to put the table of steps into")
    options = parser.parse_args()
    findings = run(options)
    if options.markdown and findings.found.get("decode"):
        replace_region(options.markdown, "gpu_decode", decode_table(findings.found))
    traffic = None if options.shape == "none" else Traffic(SHAPES[options.shape], options.peak_gb_s)
    print(tables(findings, traffic))


if __name__ == "__main__":
    main()

"""One command for whenever a GPU is at hand: do the engines run there, are they right, and how fast is a decode step?

In: a bundle (the built-in voice unless given) and a shape with random weights. Out: a JSON file and a table on stdout:
tokens of every backend beside the CPU's, INT8 and other layers of every engine, and decode steps of TensorRT (CUDA
graphs on and off), ONNX Runtime on CUDA and transformers with torch.compile, interleaved in one run. What is not
installed or does not run is reported with its reason; nothing is left out silently.

It has never run on a GPU. What ran without one is its CPU path and, in tests/benchmarks, its TensorRT path on the test
doubles of TensorRT and of the CUDA driver, which say nothing about speed.

    python benchmarks/gpu_check.py --work /path/with/space --output gpu_check.json
    python benchmarks/gpu_check.py --work /path/with/space --bundle moe-tts-int8 --shape none   # tokens and layers only

ONNX Runtime's own CUDA graphs are not measured: they need every input on the device, and the token ids of voxedge's
decoding loop come from the host.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from machine import describe
from report import text_table
from shapes import SHAPES, LmShape, write_checkpoint

from voxedge.engines.bundle import Bundle
from voxedge.engines.device import gather
from voxedge.engines.errors import VoxedgeError
from voxedge.engines.loader import BackendName
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.engines.records import to_dict
from voxedge.engines.stamps import EngineFlavour
from voxedge.engines.trt.api import FLAVOURS, Target
from voxedge.engines.trt.builder import build_bundle, engine_path
from voxedge.engines.trt.config import BuildConfig
from voxedge.engines.trt.layers import count_by_type, read_layers
from voxedge.engines.trt.loading import EngineSource
from voxedge.engines.trt.runner import TrtOptions
from voxedge.runtime.decoder import Decoder, KvCache
from voxedge.runtime.synthesizer import Synthesizer, built_in_voice

TEXT = "The quick brown fox jumps over the lazy dog."
PACKAGES = ("voxedge", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "transformers", "numpy")
TARGETS: tuple[Target, ...] = ("rtx", "trt")
GRAPH = "speech_expert"


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


@dataclass(frozen=True, slots=True)
class DecodeFigure:
    """Decode steps of one engine after a context."""

    engine: str
    """Label."""
    context: int
    """Tokens in the cache before the first timed step."""
    ms: float
    """Median over rounds of the median step; lower is better."""
    rounds_ms: tuple[float, ...]
    """The rounds behind it, without the dropped first ones."""


class Steps(Protocol):
    """Something that decodes."""

    def rewind(self, context: int) -> None:
        """Make `context` tokens the past."""

    def step(self) -> None:
        """Append one token and wait for its logits."""


class OurSteps:
    """`runtime.decoder` over any engine of the language model."""

    def __init__(self, engine: Any, capacity: int) -> None:  # noqa: ANN401 - an `engines.backend.Engine`
        self._decoder = Decoder(engine)
        self._cache = KvCache(engine, self._decoder.cache_shape, capacity)
        self._filled = 0

    def rewind(self, context: int) -> None:
        """Fill the cache once, then only set its length back."""
        self._cache.length = min(self._filled, context)
        missing = context - self._cache.length
        if missing:
            self._decoder.forward(np.arange(missing, dtype=np.int32) % 97, self._cache)
            self._filled = context

    def step(self) -> None:
        """Append token 1."""
        self._decoder.forward(np.array([1], np.int32), self._cache)
        self._filled = max(self._filled, self._cache.length)


class CompiledTransformers:
    """Hugging Face's model over a static cache, its step compiled by torch.compile with CUDA graphs."""

    def __init__(self, folder: Path, capacity: int, device: str = "cuda", mode: str | None = "reduce-overhead") -> None:
        import torch
        import transformers  # type: ignore[import-not-found]

        self._torch, self._device = torch, device
        dtype = torch.float16 if device == "cuda" else torch.float32
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self._model = model.to(device).eval()
        self._cache: Any = transformers.StaticCache(config=model.config, max_cache_len=capacity)
        self._forward = torch.compile(self._model.forward, mode=mode, fullgraph=True) if mode else self._model.forward
        self._length = 0

    def _run(self, forward: Callable[..., Any], ids: Any) -> Any:  # noqa: ANN401 - tensors
        torch = self._torch
        place = torch.arange(self._length, self._length + ids.shape[1], device=self._device)
        with torch.inference_mode():
            found = forward(
                input_ids=ids,
                past_key_values=self._cache,
                cache_position=place,
                position_ids=place[None],
                use_cache=True,
                logits_to_keep=1,
            )
        self._length += ids.shape[1]
        return found.logits[0, -1].float().cpu()

    def rewind(self, context: int) -> None:
        """Fill a cleared cache in eager mode: the compiled step sees one token only."""
        with self._torch.inference_mode():
            self._cache.reset()
        self._length = 0
        if context:
            self._run(self._model.forward, self._torch.arange(context, device=self._device)[None] % 97)

    def step(self) -> None:
        """Append token 1."""
        self._run(self._forward, self._torch.ones((1, 1), dtype=self._torch.long, device=self._device))


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


def decoders(
    checkpoint: Path, bundle_path: Path, capacity: int, graphs: int, failures: dict[str, str]
) -> dict[str, Steps]:
    """Everything that loads, resident at once."""
    bundle = Bundle.open(bundle_path)
    makers: dict[str, Callable[[], Steps]] = {
        "onnxruntime cuda fp16": lambda: OurSteps(_cuda_engine(bundle), capacity),
        "transformers fp16, torch.compile": lambda: CompiledTransformers(checkpoint / GRAPH, capacity),
    }
    for target in TARGETS:
        for label, count in (("", 0), (", CUDA graphs", graphs)):
            makers[f"{FLAVOURS[target]} fp16{label}"] = _trt_maker(bundle, FLAVOURS[target], count, capacity)
    found: dict[str, Steps] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as error:  # whatever a missing or broken peer raises is the answer
            failures[f"decode with {name}"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _cuda_engine(bundle: Bundle) -> OrtEngine:
    spec = bundle.manifest.graph(GRAPH, "ort")
    return OrtEngine(bundle.graph_path(spec), spec, OrtOptions(device="cuda"))


def _trt_maker(bundle: Bundle, flavour: EngineFlavour, graphs: int, capacity: int) -> Callable[[], Steps]:
    return lambda: OurSteps(EngineSource(bundle, flavour, TrtOptions(graphs)).load(GRAPH), capacity)


def time_decode(
    engines: dict[str, Steps], contexts: Sequence[int], steps: int, rounds: int, failures: dict[str, str]
) -> list[DecodeFigure]:
    """Visits in turns: A B C, A B C, ...; the first two rounds warm up, and are where graphs are captured."""
    figures = []
    for context in contexts:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds + 2):
            for name in [name for name in times if name in engines]:
                try:
                    times[name].append(_visit(engines[name], context, steps))
                except Exception as error:  # as above
                    failures[f"decode with {name} at {context}"] = f"{type(error).__name__}: {error}".splitlines()[0]
                    del engines[name]
        for name in engines:
            kept = times[name][2:]
            figures.append(DecodeFigure(name, context, statistics.median(kept), tuple(kept)))
    return figures


def _visit(engine: Steps, context: int, steps: int) -> float:
    engine.rewind(context)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    bundle = work / "voice"
    if not bundle.is_dir():
        shutil.copytree(options.bundle or built_in_voice(), bundle, copy_function=shutil.copyfile)
    engines = {target: build(bundle, target, failures) for target in TARGETS}
    backends: list[BackendName] = ["cuda", *(FLAVOURS[target] for target in TARGETS)]
    voices = list(check_voice(bundle, backends, failures))
    figures: list[DecodeFigure] = []
    if options.shape != "none":
        checkpoint, lm = export_lm(work, SHAPES[options.shape])
        lm_engines = {target: build(lm, target, failures) for target in TARGETS}
        engines |= {f"{target}, {options.shape}": found for target, found in lm_engines.items()}
        capacity = max(options.contexts) + options.steps + 64
        ready = decoders(checkpoint, lm, capacity, options.steps * len(options.contexts), failures)
        figures = time_decode(ready, options.contexts, options.steps, options.rounds, failures)
    return {
        "machine": asdict(describe(PACKAGES)),
        "device": to_dict(gather(probe=True)),
        "shape": options.shape,
        "voices": [_finite(asdict(voice)) for voice in voices],
        "engines": engines,
        "decode": [asdict(figure) for figure in figures],
        "failures": failures,
    }


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in record.items()
    }


def tables(found: dict[str, Any]) -> str:
    """The findings for people."""
    voices = [
        (
            voice["backend"],
            "yes" if voice["tokens_equal"] else "NO",
            str(voice["max_difference"]),
            f"{voice['warm_s']:.2f}",
        )
        for voice in found["voices"]
    ]
    text = text_table(("voice", "tokens as on the CPU", "largest difference", "warm s"), voices)
    decode = [(row["engine"], str(row["context"]), f"{row['ms']:.2f}") for row in found["decode"]]
    if decode:
        text += "\n\n" + text_table(("decode step", "context", "ms"), decode)
    return text + "".join(f"\n- {name}: {reason}" for name, reason in found["failures"].items())


def main() -> None:
    """Parse, run, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and engines; kept")
    parser.add_argument("--bundle", type=Path, help="a voice; the built-in one unless given")
    parser.add_argument("--shape", choices=(*SHAPES, "none"), default="0.6b", help="of the timed language model")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512, 1024])
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a visit")
    parser.add_argument("--rounds", type=int, default=5, help="visits that count")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    options = parser.parse_args()
    found = run(options)
    print(tables(found))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()

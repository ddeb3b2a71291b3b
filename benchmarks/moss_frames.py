"""Frames per second of MOSS-TTS's local transformers: all channels in one call, against one call for each channel.

In: a released shape, scaled by its channels and layers where memory asks for it. Out: a table. Three ways to make the
same frames take turns in one run: voxedge's frame step, one ONNX Runtime call for each channel over a cache with numpy
between the calls (how the published runtimes do it), and the same modules run by torch. Weights are random; greedy.

    .venv/bin/python benchmarks/moss_frames.py --model v1.5 --threads 2
    .venv/bin/python benchmarks/moss_frames.py --model v1 --channels 8 --layers 1
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from machine import LoadMeter
from torch import Tensor, nn

from voxedge.engines.backend import Buffer
from voxedge.engines.manifest import DimRange, GraphSpec, TensorSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig
from voxedge.export.checkpoint.qwen3 import QwenConfig
from voxedge.export.checkpoint.tensors import Block, LazyTensor, block_indices
from voxedge.export.graph import Traced, trace
from voxedge.export.modules.attention import RotaryTables
from voxedge.export.modules.basic import LayerNorm
from voxedge.export.modules.cache import PortableHistory
from voxedge.export.modules.local_lm import Depth, DepthFrame, Exit, GptFrame, GptLayer
from voxedge.export.moss_graphs import FrameTracer
from voxedge.export.weights import save_graphs
from voxedge.runtime.frame_step import FrameStep
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.sampling import SamplingConfig

CODES = 1024
_BLOCK = np.random.default_rng(0).standard_normal(4_194_301, dtype=np.float32) * np.float32(0.02)
_GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """A local transformer as released, or scaled."""

    local: DepthConfig | GptConfig
    width: int
    codebooks: tuple[int, ...]
    scaled: str
    """How it differs from the release."""


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """Random weights of any shape, made when they are read."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Values of one random block, again and again; norms are 1."""
        for index in block_indices(self.shape, 4, max_bytes):
            sizes = [part.stop - part.start for part in index]
            yield index, np.ones(sizes, np.float32) if len(self.shape) == 1 else np.resize(_BLOCK, sizes)


def shape_of(model: str, channels: int | None, layers: int | None) -> Shape:
    """Sizes of a release (docs/moss.md), with fewer channels or layers where asked for."""
    full = (32, 4) if model == "v1" else (12, 1)
    chosen = (channels or full[0], layers or full[1])
    scaled = "as released" if chosen == full else f"{chosen[0]} of {full[0]} channels, {chosen[1]} of {full[1]} layers"
    codebooks = (CODES,) * chosen[0]
    if model == "v1":
        layer = QwenConfig(1536, chosen[1], 16, 8, 128, 8960, 1e-6, 1e6, 151936, 40960, tied=False)
        return Shape(DepthConfig(layer, 2048), 2048, codebooks, scaled)
    return Shape(GptConfig(2560, chosen[1], 32, 9728, "silu", 1e-6, 1e4, "binary"), 2560, codebooks, scaled)


class ChannelStep(nn.Module):
    """One position of the local transformer over a cache: what is exported where every channel is a call of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gpt = isinstance(shape.local, GptConfig)
        if isinstance(shape.local, GptConfig):
            self.layers = nn.ModuleList(GptLayer(shape.local, torch.float32) for _ in range(shape.local.layers))
            self.norm: nn.Module = LayerNorm(shape.width, shape.local.eps)
        else:
            depth = Depth(shape.local, shape.width, torch.float32)
            self.layers, self.norm, self.enter = depth.layers, depth.norm, depth.enter
            self.exit = Exit(shape.local, shape.width, torch.float32)
        self.repeat = 1 if self.gpt else 2
        self.rotary = RotaryTables(len(shape.codebooks) + 2, heads_of(shape)[1], torch.float32)

    def forward(self, x: Tensor, past: list[Tensor]) -> list[Tensor]:
        """Run x [B, 1, d] as the next position; gives what the head reads [B, 1, d] and the new rows of the cache."""
        history = PortableHistory(past, 1, self.repeat, self.rotary)
        y = x if self.gpt else self.enter(x)
        for number, layer in enumerate(self.layers):
            y = layer(y, number, history)
        y = self.norm(y)
        return [y if self.gpt else self.exit(y), *history.kept]


def heads_of(shape: Shape) -> tuple[int, int]:
    """Key heads and their width."""
    local = shape.local
    if isinstance(local, GptConfig):
        return local.heads, local.width // local.heads
    return local.language.kv_heads, local.language.head_dim


def layers_of(shape: Shape) -> int:
    """Layers of the local transformer."""
    return shape.local.layers if isinstance(shape.local, GptConfig) else shape.local.language.layers


def opened(name: str, traced: Traced, dims: Mapping[str, DimRange], folder: Path, threads: int, uses: int) -> OrtEngine:
    """Save a traced graph with random weights and open it."""
    tensors: dict[str, LazyTensor] = {}
    for key, value in traced.model.graph.initializers.items():
        if value.const_value is None and value.shape is not None:
            sizes = tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
            stored = traced.stored.get(key)
            turned = stored is not None and stored.transform == "transpose"
            tensors[stored.name if stored else key] = RandomTensor(key, sizes[::-1] if turned else sizes)
    path = folder / f"{name}.onnx"
    save_graphs({"portable": traced}, tensors, {"portable": path}, folder / f"{name}.data", lambda count: None)
    spec = GraphSpec(
        name=name,
        flavour="portable",
        path=path.name,
        data=f"{name}.data",
        precision="fp32",
        opset=traced.opset,
        inputs=traced.inputs,
        outputs=traced.outputs,
        profiles={"main": dict(dims)},
        weight_uses=uses,
    )
    return OrtEngine(path, spec, OrtOptions(threads=threads))


def one_call(shape: Shape, folder: Path, threads: int) -> Callable[[], None]:
    """voxedge: the frame step."""
    traced = FrameTracer(shape.local, shape.width, shape.codebooks, torch.float32)()
    channels = len(shape.codebooks)
    step = FrameStep(opened("frame", traced, {"batch": DimRange(1, 1, 1)}, folder, threads, channels))
    draws = step.draws(_GREEDY, NoiseStream(0, "benchmark"))
    state = _BLOCK[: shape.width]
    text = None if isinstance(shape.local, GptConfig) else state

    def make() -> None:
        draws.next(state, text)

    return make


def call_for_each(shape: Shape, folder: Path, threads: int) -> Callable[[], None]:
    """One call for each channel, its bindings made once; heads, draws and tables in numpy."""
    layers, (groups, dim), channels = layers_of(shape), heads_of(shape), len(shape.codebooks)
    leaves = [f"{layer}.{leaf}" for layer in range(layers) for leaf in ("key", "value")]
    caches = [TensorSpec(f"past.{leaf}", "float32", ("past", "batch", groups, dim)) for leaf in leaves]
    given = TensorSpec("x", "float32", ("batch", 1, shape.width))
    traced = trace(lambda: ChannelStep(shape), (given, caches), ["y", *(f"new.{leaf}" for leaf in leaves)])
    ranges = {"batch": DimRange(1, 1, 1), "past": DimRange(0, 1, channels)}
    engine = opened("step", traced, ranges, folder, threads, 1)
    x, y = np.zeros((1, 1, shape.width), np.float32), np.zeros((1, 1, shape.width), np.float32)
    rows = {leaf: Buffer.of(np.zeros((channels, 1, groups, dim), np.float32)) for leaf in leaves}
    heads = np.resize(_BLOCK, (channels, CODES, shape.width))
    bindings = []
    for channel in range(channels):
        binding = engine.binding()
        binding.bind("x", Buffer.of(x))
        binding.bind("y", Buffer.of(y))
        for leaf, buffer in rows.items():
            binding.bind(f"past.{leaf}", buffer.rows(0, channel))
            binding.bind(f"new.{leaf}", buffer.rows(channel, channel + 1))
        bindings.append(binding)

    def make() -> None:
        x[0, 0] = _BLOCK[: shape.width]
        for channel, binding in enumerate(bindings):
            binding.run()
            x[0, 0] = heads[channel, int(np.argmax(heads[channel] @ y[0, 0]))]

    return make


def by_torch(shape: Shape, threads: int) -> Callable[[], None]:
    """The modules that are exported, run as they are."""
    torch.set_num_threads(threads)
    local = shape.local
    frame: nn.Module = (
        GptFrame(local, shape.codebooks, torch.float32)
        if isinstance(local, GptConfig)
        else DepthFrame(local, shape.width, shape.codebooks, torch.float32)
    )
    for value in frame.parameters():
        value.data.copy_(
            torch.from_numpy(
                np.resize(_BLOCK, tuple(value.shape)) if value.ndim > 1 else np.ones(value.shape, np.float32)
            )
        )
    state = torch.from_numpy(_BLOCK[: shape.width].copy())[None]
    noise = [torch.zeros(1, len(shape.codebooks)), torch.ones(1, len(shape.codebooks), CODES)]
    rules = [torch.ones(1), torch.full((1,), 2.0), torch.ones(1, dtype=torch.int32)]
    leading = (state,) if isinstance(local, GptConfig) else (state, state)

    def make() -> None:
        with torch.inference_mode():
            frame(*leading, noise, rules)

    return make


def read_bytes(shape: Shape) -> int:
    """Weights that one frame reads, FP32: the layers for every channel, and each head once."""
    width, channels, local = shape.width, len(shape.codebooks), shape.local
    heads = channels * CODES * width
    if isinstance(local, GptConfig):
        return 4 * (channels * local.layers * (4 * width * width + 2 * width * local.inner) + heads)
    layer, narrow = local.language, local.language.hidden_size
    block = 2 * narrow * (layer.heads + layer.kv_heads) * layer.head_dim + 3 * narrow * layer.intermediate_size
    gated = (2 * width + narrow) * local.projection + (2 * narrow + width) * local.projection
    return 4 * (channels * (layer.layers * block + gated) + heads)


def bandwidth(threads: int) -> float:
    """Bytes per second that reading memory alone reaches."""
    parts = [np.ones(1 << 25, np.float32) for _ in range(threads)]
    slices = range(0, 1 << 25, 1 << 16)

    def read(part: npt.NDArray[np.float32]) -> None:
        for start in slices:
            np.max(part[start : start + (1 << 16)])

    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(read, parts))
            times.append(time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / min(times)


def measure(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each frame; the ways take turns, and the first round is dropped."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, make in ways.items():
            started = time.perf_counter()
            make()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=("v1", "v1.5"), default="v1.5")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    shape = shape_of(arguments.model, arguments.channels, arguments.layers)
    meter = LoadMeter([])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = {
            "voxedge, one call": one_call(shape, folder, arguments.threads),
            "a call for each channel": call_for_each(shape, folder, arguments.threads),
            "torch, same modules": by_torch(shape, arguments.threads),
        }
        times = measure(ways, arguments.rounds)
    limit = read_bytes(shape) / bandwidth(arguments.threads)
    size = f"{read_bytes(shape) / 1e9:.2f} GB a frame"
    print(f"{arguments.model} ({shape.scaled}), FP32, {arguments.threads} thread(s), {size}")
    print(f"reading alone: {1e3 * limit:.0f} ms; other load: {meter.foreign_cores():.1f} cores\n")
    print("| way | ms/frame | frames/s | of the bandwidth |\n|---|---|---|---|")
    for way, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {way} | {1e3 * median:.1f} | {1.0 / median:.2f} | {limit / median:.0%} |")


if __name__ == "__main__":
    main()

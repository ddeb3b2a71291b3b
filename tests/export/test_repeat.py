"""A graph whose layers were repeated is the graph of a full trace, node for node; unlike layers are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_qwen
import torch
from torch import Tensor, nn

from voxedge.calibration.lint import require_portable
from voxedge.engines.errors import ExportError
from voxedge.engines.manifest import DimRange, GraphSpec, TensorSpec
from voxedge.export import repeat
from voxedge.export.checkpoint.dit import DitConfig
from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig
from voxedge.export.checkpoint.qwen3 import LanguageModel
from voxedge.export.checkpoint.tensors import InMemory
from voxedge.export.config import ExportConfig
from voxedge.export.decoder_graphs import DecoderOptions, decoder_plan
from voxedge.export.graph import Traced, trace
from voxedge.export.modules.basic import Linear
from voxedge.export.modules.dit import DiffusionTransformer
from voxedge.export.moss_graphs import FrameTracer
from voxedge.export.repeat import Stack
from voxedge.export.weights import save_graphs

LAYERS = 5  # two copies: the second reads the first
QWEN = replace(tiny_qwen.QWEN, layers=LAYERS)
DIT = DitConfig(io_channels=8, embed_dim=32, depth=LAYERS, num_heads=2, rotary_dim=16, input_concat_dim=4)
FURTHER = {
    "adaLN": replace(DIT, global_cond_type="adaLN", num_memory_tokens=2, qk_norm="ln"),
    "cross": replace(DIT, cond_token_dim=16, project_cond_tokens=False, global_cond_dim=12),
}


def nodes(traced: Traced) -> list[tuple[object, ...]]:
    """Name, operator, inputs, outputs and shapes of every node, sorted; constants by value: their numbers differ."""
    constants = {
        value.name: str(value.const_value.numpy().tolist())
        for value in traced.model.graph.initializers.values()
        if value.const_value is not None
    }
    listed = []
    for node in traced.model.graph:
        inputs = tuple(constants.get(value.name, value.name) if value is not None else None for value in node.inputs)
        attributes = tuple(sorted((key, str(item.value)) for key, item in node.attributes.items()))
        outputs = tuple((value.name, str(value.shape)) for value in node.outputs)
        listed.append((node.name, node.domain, node.op_type, inputs, outputs, attributes))
    return sorted(listed)


def parameters(traced: Traced) -> dict[str, tuple[str, str]]:
    """Shapes and types of the weights."""
    graph = traced.model.graph
    return {name: (str(v.shape), str(v.dtype)) for name, v in graph.initializers.items() if v.const_value is None}


def assert_same(repeated: Traced, whole: Traced) -> None:
    """Everything but the numbers of constants."""
    assert repeated.inputs == whole.inputs
    assert repeated.outputs == whole.outputs
    assert repeated.stored == whole.stored
    assert parameters(repeated) == parameters(whole)
    assert nodes(repeated) == nodes(whole)


def both(make: Callable[[], Traced], monkeypatch: pytest.MonkeyPatch) -> tuple[Traced, Traced]:
    repeated = make()
    monkeypatch.setattr(repeat, "TRACED_LAYERS", LAYERS)
    return repeated, make()


@pytest.mark.parametrize("flavour", ["portable", "ort"])
def test_decoder(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With probes, so that the stream from layer to layer is an output of the graph, too."""
    tensors = {name: InMemory(name, np.zeros((50, 32), np.float32)) for name in ("embed_tokens.weight", "norm.weight")}
    options = DecoderOptions(head=tensors["embed_tokens.weight"], probes=("prenorm", "hidden"), flavours=(flavour,))
    plan = decoder_plan("lm", LanguageModel(QWEN, tensors), options, ExportConfig(max_context=64))
    assert_same(*both(plan.trace[flavour], monkeypatch))


@pytest.mark.parametrize("kind", FURTHER)
def test_diffusion_transformer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FURTHER[kind]
    arguments = [
        TensorSpec("latents", "float32", ("batch", 8, "frames")),
        TensorSpec("time", "float32", ("batch",)),
        [TensorSpec("concat", "float32", ("batch", 4, "frames"))],
    ]
    if config.cross_attention:
        arguments[2] += [
            TensorSpec("context", "float32", ("batch", "tokens", 16)),
            TensorSpec("global", "float32", ("batch", 12)),
        ]

    def make() -> Traced:
        stack = Stack("/transformer/layers", "transformer.layers", LAYERS)
        shallow = replace(config, depth=stack.traced)
        return trace(lambda: DiffusionTransformer(shallow, 64, torch.float16), arguments, ["prediction"], stack=stack)

    assert_same(*both(make, monkeypatch))


GPT = GptConfig(width=32, layers=1, heads=2, inner=48, activation="gelu_new", eps=1e-5, rope_base=1e4, gate="binary")
LOCAL = {
    "v1": DepthConfig(replace(QWEN, layers=2), 40),
    "v1.5": GPT,
    "v1.5 with learned positions": replace(GPT, rope_base=None),
}


@pytest.mark.parametrize("kind", LOCAL)
def test_channels_of_a_frame(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several streams, of which keys, values and what was drawn grow from channel to channel."""
    tracer = FrameTracer(LOCAL[kind], 32, (20,) * LAYERS, torch.float32)
    assert_same(*both(tracer, monkeypatch))


def test_channels_that_differ_are_traced_whole() -> None:
    """Four are more than would be traced of channels that are alike."""
    traced = FrameTracer(GPT, 32, (20, 20, 16, 20), torch.float32)()
    assert [output.shape for output in traced.outputs if output.name in ("codes", "logits")] == [
        ("batch", 4),
        ("batch", 4, 20),
    ]
    assert str(traced.model.graph.initializers["channels.2.head.weight"].shape) == "[32,16]"


def test_a_frame_of_released_codebooks_is_portable(tmp_path: Path) -> None:
    """1024 codes count up to more bytes than may be inside a graph file."""
    traced = FrameTracer(GPT, 32, (1024, 1024), torch.float32)()
    shapes = {name: tuple(value.shape) for name, value in traced.model.graph.initializers.items() if value.shape}
    tensors = {name: InMemory(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    for name, rule in traced.stored.items():
        tensors[rule.name] = InMemory(
            name, np.zeros(shapes[name][:: -1 if rule.transform == "transpose" else 1], np.float32)
        )
    paths = {"portable": tmp_path / "frame.onnx"}
    save_graphs({"portable": traced}, tensors, paths, tmp_path / "frame.data", lambda count: None)  # type: ignore[arg-type]
    spec = GraphSpec(
        "frame",
        "portable",
        "frame.onnx",
        "frame.data",
        "fp32",
        traced.opset,
        traced.inputs,
        traced.outputs,
        {"main": {"batch": DimRange(1, 1, 1)}},
    )
    require_portable(paths["portable"], spec)


class Uneven(nn.Module):
    """Layers of which one may be another."""

    def __init__(self, layers: int, other: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(8, 8, torch.float32, bias=number == other) for number in range(layers))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("streams", "other", "message"),
    [(1, 2, "to be alike"), (2, None, "expected 2 values from layer to layer of /layers, found 1")],
)
def test_unlike_layers_are_refused(streams: int, other: int | None, message: str) -> None:
    stack = Stack("/layers", "layers", LAYERS, streams=streams)
    given = [TensorSpec("x", "float32", ("batch", 8))]
    with pytest.raises(ExportError, match=message):
        trace(lambda: Uneven(stack.traced, other), given, ["y"], stack=stack)

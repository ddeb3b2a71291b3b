"""Graphs of MOSS-TTS beside its backbone: summed embeddings, text heads, and the frame step of the local transformers.

In: a checkpoint and the export options. Out: `GraphPlan`s: shapes, inputs, outputs, profiles and tensor names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from voxedge.engines.errors import CheckpointError
from voxedge.engines.manifest import DimRange, TensorSpec
from voxedge.export.assemble import GraphPlan, Profiles
from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig
from voxedge.export.checkpoint.moss_tts import MossCheckpoint
from voxedge.export.checkpoint.rearrange import RotaryHalves, Rows
from voxedge.export.checkpoint.tensors import InMemory, LazyTensor
from voxedge.export.config import DTYPES, ExportConfig
from voxedge.export.decoder_graphs import layer_tensors
from voxedge.export.graph import Argument, Traced, trace
from voxedge.export.modules.attention import rotary_tables
from voxedge.export.modules.basic import Linear
from voxedge.export.modules.embedding_sum import EmbeddingSum
from voxedge.export.modules.local_lm import DepthFrame, DepthText, GptFrame, frame_streams
from voxedge.export.repeat import Stack

EMBEDDING_ROWS = 128
"""Most rows of one call: their embeddings of all channels are in memory at once, 64 MB at 32 channels of width 4096."""
LARGEST_CODEBOOK = 3839
"""TensorRT sorts fewer than 3840 numbers."""

_ONE = {"batch": DimRange(1, 1, 1)}
_RULES = (
    TensorSpec("temperature", "float32", (1,)),
    TensorSpec("top_p", "float32", (1,)),
    TensorSpec("top_k", "int32", (1,)),
)


@dataclass(frozen=True, slots=True)
class _Embeddings:
    text_rows: int
    audio_rows: int
    channels: int
    width: int
    dtype: torch.dtype

    def __call__(self) -> Traced:
        arguments = (
            TensorSpec("ids", "int32", ("batch", "new")),
            TensorSpec("rows", "int32", ("batch", "new", self.channels)),
        )
        return trace(
            lambda: EmbeddingSum(self.text_rows, self.audio_rows, self.width, self.dtype), arguments, ["embeds"]
        )


@dataclass(frozen=True, slots=True)
class _TextHead:
    width: int
    rows: int
    dtype: torch.dtype

    def __call__(self) -> Traced:
        return trace(lambda: Linear(self.width, self.rows, self.dtype), (_state(self.width),), ["logits"])


@dataclass(frozen=True, slots=True)
class _DepthText:
    local: DepthConfig
    width: int
    rows: int
    dtype: torch.dtype

    def __call__(self) -> Traced:
        return trace(
            lambda: DepthText(self.local, self.width, self.rows, self.dtype), (_state(self.width),), ["logits"]
        )


@dataclass(frozen=True, slots=True)
class FrameTracer:
    """Traces the frame step of given sizes."""

    local: DepthConfig | GptConfig
    width: int
    codebooks: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self) -> Traced:
        """Trace it."""
        channels, size = len(self.codebooks), max(self.codebooks)
        noise = [
            TensorSpec("uniforms", "float32", ("batch", channels)),
            TensorSpec("penalties", "float32", ("batch", channels, size)),
        ]
        arguments: tuple[Argument, ...] = (_state(self.width), noise, list(_RULES))
        outputs = ["codes", "embeds", "gate", "logits"]
        if isinstance(self.local, DepthConfig):
            arguments = (_state(self.width), TensorSpec("text", "float32", ("batch", self.width)), *arguments[1:])
            outputs.remove("gate")
        return trace(self._module, arguments, outputs, stack=self._stack or ())

    @property
    def _stack(self) -> Stack | None:
        """The channels, where all are alike: of 32 with 4 layers each, three are traced in a tenth of the time."""
        layers = self.local.layers if isinstance(self.local, GptConfig) else self.local.language.layers
        alike = len(set(self.codebooks)) == 1
        return Stack("/channels", "channels", len(self.codebooks), streams=frame_streams(layers)) if alike else None

    def _module(self) -> nn.Module:
        channels = self._stack.traced if self._stack else None
        if isinstance(self.local, DepthConfig):
            return DepthFrame(self.local, self.width, self.codebooks, self.dtype, channels)
        return GptFrame(self.local, self.codebooks, self.dtype, channels)


def embeddings_plan(name: str, checkpoint: MossCheckpoint, config: ExportConfig) -> GraphPlan:
    """Sum of the text table and all audio tables.

    A graph of its own: an engine holds its weights once for each profile, and of gigabytes of tables a step reads one
    row of each.
    """
    text, audio = checkpoint.text_table, checkpoint.audio_table
    rows = min(EMBEDDING_ROWS, config.max_prefill)
    return GraphPlan(
        name=name,
        precision=config.precision,
        trace={
            "portable": _Embeddings(
                text.shape[0], audio.shape[0], len(checkpoint.audio_tables), text.shape[1], _dtype(config)
            )
        },
        tensors={"text.weight": text, "audio.weight": audio},
        profiles={"portable": {"main": {**_ONE, "new": DimRange(1, 1, rows)}}},
    )


def text_head_plan(name: str, checkpoint: MossCheckpoint, config: ExportConfig) -> GraphPlan:
    """The whole text head, which the delay model needs outside audio only."""
    head = checkpoint.text_head
    tracer = _TextHead(head.shape[1], head.shape[0], _dtype(config))
    return _plan(name, config, tracer, {"weight": head})


def depth_text_plan(name: str, checkpoint: MossCheckpoint, config: ExportConfig) -> GraphPlan:
    """The text channel of local v1."""
    local, head = checkpoint.config.local, checkpoint.text_head
    if not isinstance(local, DepthConfig):
        raise CheckpointError("expected the local transformer v1: no other draws its text tokens by it")
    tracer = _DepthText(local, head.shape[1], head.shape[0], _dtype(config))
    return _plan(name, config, tracer, {**_depth(checkpoint), **_exit(checkpoint, "exit", 0), "head.weight": head})


def frame_plan(name: str, checkpoint: MossCheckpoint, config: ExportConfig) -> GraphPlan:
    """The frame step of either local transformer.

    Raises:
        CheckpointError: A codebook is too large to be sorted on a device.
    """
    local, codebooks = checkpoint.config.local, checkpoint.config.codebooks
    if local is None or max(codebooks) > LARGEST_CODEBOOK:
        raise CheckpointError(f"expected a local transformer over codebooks of at most {LARGEST_CODEBOOK} codes")
    width = checkpoint.text_table.shape[1]
    tracer = FrameTracer(local, width, codebooks, _dtype(config))
    tensors = {"table.weight": checkpoint.audio_table}
    tensors.update({f"channels.{j}.head.weight": head for j, head in enumerate(checkpoint.audio_heads)})
    if isinstance(local, DepthConfig):
        tensors.update(_depth(checkpoint))
        for channel in range(len(codebooks)):
            tensors.update(_exit(checkpoint, f"channels.{channel}.leave", channel + 1))
    else:
        tensors.update(_gpt(checkpoint, local))
    return replace(_plan(name, config, tracer, tensors), weight_uses=len(codebooks))


def _plan(
    name: str, config: ExportConfig, tracer: _TextHead | _DepthText | FrameTracer, tensors: Mapping[str, LazyTensor]
) -> GraphPlan:
    profiles: Profiles = {"main": _ONE}
    return GraphPlan(name, config.precision, {"portable": tracer}, tensors, {"portable": profiles})


def _state(width: int) -> TensorSpec:
    return TensorSpec("state", "float32", ("batch", width))


def _dtype(config: ExportConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, DTYPES[config.precision])
    return dtype


def _depth(checkpoint: MossCheckpoint) -> dict[str, LazyTensor]:
    layers = checkpoint.local("local_transformer.")
    enter = checkpoint.local("speech_embedding_to_local_mlp.")
    return {
        **{f"depth.{name}": tensor for name, tensor in layer_tensors(layers).items()},
        **{f"depth.enter.{name}": tensor for name, tensor in layer_tensors(enter).items()},
    }


def _exit(checkpoint: MossCheckpoint, name: str, channel: int) -> dict[str, LazyTensor]:
    mlp = checkpoint.local(f"local_to_speech_embedding_mlps.{channel}.")
    norm = checkpoint.tensors[f"layer_norm_before_lm_heads.{channel}.weight"]
    named = layer_tensors(mlp)
    return {**{f"{name}.mlp.{leaf}": tensor for leaf, tensor in named.items()}, f"{name}.norm.weight": norm}


def _gpt(checkpoint: MossCheckpoint, local: GptConfig) -> dict[str, LazyTensor]:
    tensors = checkpoint.local("local_transformer.")
    slot = checkpoint.config.ids.gen_slot
    own = {"gate.weight": checkpoint.gate, "slot": Rows(checkpoint.text_table, slot, slot + 1)}
    if local.rope_base is None:
        return {**tensors, **own, "wpe": tensors["wpe.weight"]}
    dim, positions = local.width // local.heads, len(checkpoint.config.codebooks) + 1
    joint = {name: tensor for name, tensor in tensors.items() if ".attn.c_attn." in name}
    rotated = {name: RotaryHalves(tensor, dim, 2 * local.width) for name, tensor in joint.items()}
    cos, sin = rotary_tables(dim, positions, local.rope_base)
    return {
        **tensors,
        **rotated,
        **own,
        "rotary.cos": InMemory("rotary.cos", cos),
        "rotary.sin": InMemory("rotary.sin", sin),
    }

"""Graphs of a streaming codec: shapes, inputs, outputs, profiles and tensor names.

In: a codec as read from its checkpoint, and the export options. Out: the `GraphPlan`s `codec_encoder` and
`codec_decoder`, and the settings that the runtime needs. Does not know language models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from voxedge.engines.manifest import DimRange, TensorSpec
from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.moss_codec import CodecCheckpoint, CodecConfig, Module, Transformer
from voxedge.export.checkpoint.rearrange import RotaryHalves
from voxedge.export.checkpoint.tensors import Array, InMemory, LazyTensor, materialise
from voxedge.export.config import DTYPES, Precision
from voxedge.export.graph import Traced, trace
from voxedge.export.modules.attention import rotary_tables
from voxedge.export.modules.codec import CodecDecoder, CodecEncoder
from voxedge.export.repeat import Stack
from voxedge.runtime.codec_settings import DECODER, ENCODER, CodecSettings

FRAMES_PER_CALL = DimRange(1, 8, 64)
"""Frames of one call. Longer signals go on with the state of the last call; from 64 on a frame does not get cheaper."""
MAX_BATCH = 8


def codec_plans(checkpoint: CodecCheckpoint, precision: Precision) -> list[GraphPlan]:
    """Plan both directions."""
    return [_plan(ENCODER, checkpoint, precision), _plan(DECODER, checkpoint, precision)]


def codec_settings(checkpoint: CodecCheckpoint) -> CodecSettings:
    """What the runtime needs beside the graphs."""
    config = checkpoint.config
    return CodecSettings(
        sample_rate=config.sample_rate,
        hop=config.hop,
        codebooks=config.quantiser.codebooks,
        codebook_size=config.quantiser.size,
        context=config.context,
        fingerprint=_fingerprint(checkpoint),
    )


def _fingerprint(checkpoint: CodecCheckpoint) -> str:
    """SHA-256 of all codebooks in order, as little-endian FP32."""
    digest = hashlib.sha256()
    for number in range(checkpoint.config.quantiser.codebooks):
        digest.update(_array(checkpoint, f"quantizer.quantizers.{number}.codebook.weight").astype("<f4").tobytes())
    return digest.hexdigest()


def _plan(name: str, checkpoint: CodecCheckpoint, precision: Precision) -> GraphPlan:
    config = checkpoint.config
    quantiser = _search_tensors(checkpoint) if name == ENCODER else _sum_tensors(checkpoint)
    limits = {"batch": DimRange(1, 1, MAX_BATCH), "frames": FRAMES_PER_CALL}
    return GraphPlan(
        name=name,
        precision=precision,
        trace={"portable": _Tracer(name, config, precision)},
        tensors={**_chain_tensors(name, checkpoint), **quantiser},
        # One profile for whole signals and streams: a TensorRT-RTX engine would hold the weights once for each.
        profiles={"portable": {"main": {**limits, "past": DimRange(0, config.context, config.context)}}},
    )


@dataclass(frozen=True, slots=True)
class _Tracer:
    name: str
    config: CodecConfig
    precision: Precision

    def __call__(self) -> Traced:
        modules = _modules(self.name, self.config)
        stacks = [
            Stack(f"/chain/stages.{number}/layers", f"chain.stages.{number}.layers", module.layers, *_state(index))
            for index, (number, module) in enumerate(_transformers(modules))
        ]
        traced = [stack.traced for stack in stacks]
        past = [spec for index, stack in enumerate(stacks) for spec in self._past(index, stack)]
        kept = [spec.name.replace("past.", "new.", 1) for spec in past]
        frames = FRAMES_PER_CALL.max + self.config.context
        dtype = getattr(torch, DTYPES[self.precision])
        if self.name == ENCODER:
            audio = TensorSpec("audio", "float32", ("batch", "frames", self.config.hop))
            given = (audio, TensorSpec("lengths", "int32", ("batch",)), past)
            return trace(
                lambda: CodecEncoder(self.config, traced, frames, dtype), given, ["codes", *kept], stack=stacks
            )
        codes = TensorSpec("codes", "int32", (self.config.quantiser.codebooks, "batch", "frames"))
        return trace(
            lambda: CodecDecoder(self.config, traced, frames, dtype), (codes, past), ["audio", *kept], stack=stacks
        )

    def _past(self, index: int, stack: Stack) -> list[TensorSpec]:
        _, module = _transformers(_modules(self.name, self.config))[index]
        shape = ("past", "batch", module.rate, module.heads, module.head_dim)
        dtype: Literal["float16", "float32"] = DTYPES[self.precision]
        prefix, _ = _state(index)
        return [
            TensorSpec(f"{prefix}.{layer}.{leaf}", dtype, shape)
            for layer in range(stack.traced)
            for leaf in ("key", "value")
        ]


def _state(index: int) -> tuple[str, str]:
    """Prefixes of a stack's inputs and outputs."""
    return f"past.{index}", f"new.{index}"


def _modules(name: str, config: CodecConfig) -> tuple[Module, ...]:
    return config.encoder if name == ENCODER else config.decoder


def _transformers(modules: tuple[Module, ...]) -> list[tuple[int, Transformer]]:
    """Stacks of layers with their places in the list of modules."""
    return [(number, module) for number, module in enumerate(modules) if isinstance(module, Transformer)]


def _chain_tensors(name: str, checkpoint: CodecCheckpoint) -> dict[str, LazyTensor]:
    """Weights of one direction by the module's names, and the rotary tables."""
    side = "encoder" if name == ENCODER else "decoder"
    tensors: dict[str, LazyTensor] = {}
    for number, stack in _transformers(_modules(name, checkpoint.config)):
        prefix, place = f"{side}.{number}.", f"chain.stages.{number}."
        for key, tensor in checkpoint.tensors.items():
            if key.startswith(prefix):
                tensors[place + key.removeprefix(prefix)] = _paired(key, tensor, stack)
        positions = stack.rate * (FRAMES_PER_CALL.max + checkpoint.config.context)
        cos, sin = rotary_tables(stack.head_dim, positions, stack.period)
        tensors[f"{place}rotary.cos"] = InMemory("rotary.cos", cos)
        tensors[f"{place}rotary.sin"] = InMemory("rotary.sin", sin)
    return tensors


def _paired(key: str, tensor: LazyTensor, stack: Transformer) -> LazyTensor:
    return RotaryHalves(tensor, stack.head_dim, 2 * stack.width) if key.endswith(".attn.qkv.weight") else tensor


def _search_tensors(checkpoint: CodecCheckpoint) -> Mapping[str, LazyTensor]:
    """The quantiser of the encoder: the checkpoint's own tensors, and the directions of the entries."""
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if key.startswith("quantizer.")}
    for number in range(checkpoint.config.quantiser.codebooks):
        name = f"quantizer.quantizers.{number}"
        entries = _array(checkpoint, f"{name}.codebook.weight")  # [size, dim]
        # 1e-12 as in the reference: an entry of zeros has no direction and is nobody's nearest.
        lengths = np.maximum(np.linalg.norm(entries, axis=1, keepdims=True), 1e-12)
        directions = (entries / lengths).astype(np.float32)[..., None]  # [size, dim, 1]
        tensors[f"{name}.nearest.weight"] = InMemory(f"directions of {name}", directions)
    return tensors


def _sum_tensors(checkpoint: CodecCheckpoint) -> dict[str, LazyTensor]:
    """The quantiser of the decoder; see `CodeSum`."""
    config = checkpoint.config.quantiser
    entries = np.zeros((config.codebooks, config.size + 1, config.dim + 1), np.float32)
    mix = np.zeros((config.width, config.codebooks, config.dim + 1), np.float32)
    for number in range(config.codebooks):
        name = f"quantizer.quantizers.{number}"
        entries[number, :-1, :-1] = _array(checkpoint, f"{name}.codebook.weight")
        entries[number, :-1, -1] = 1.0
        if config.dim == config.width:  # no projection
            mix[:, number, :-1] = np.eye(config.dim)
            continue
        mix[:, number, :-1] = _array(checkpoint, f"{name}.out_proj.weight")[..., 0]
        mix[:, number, -1] = _array(checkpoint, f"{name}.out_proj.bias")
    tensors: dict[str, LazyTensor] = {
        "quantizer.entries.weight": InMemory("entries", entries.reshape(-1, config.dim + 1)),
        "quantizer.mix.weight": InMemory("mix", mix.reshape(config.width, -1)),
    }
    leaves = [key for key in checkpoint.tensors if key.startswith("quantizer.output_proj.")]
    return {**tensors, **{key: checkpoint.tensors[key] for key in leaves}}


def _array(checkpoint: CodecCheckpoint, name: str) -> Array:
    """A small tensor in memory, in FP64."""
    return materialise(checkpoint.tensors[name]).astype(np.float64)

"""Graphs of a diffusion decoder and of its vocoder, for every system that has them.

In: a diffusion transformer or an autoencoder as read from a checkpoint, and the export options. Out: `GraphPlan`s.
Does not know language models, prompts or solvers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from voxedge.engines.manifest import DimRange, TensorSpec
from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.dit import DitCheckpoint, DitConfig
from voxedge.export.checkpoint.oobleck import CoderConfig, VaeCheckpoint
from voxedge.export.checkpoint.tensors import InMemory, LazyTensor
from voxedge.export.config import DTYPES, ExportConfig
from voxedge.export.graph import Traced, trace
from voxedge.export.modules.attention import rotary_tables
from voxedge.export.modules.basic import Embedding
from voxedge.export.modules.dit import DiffusionTransformer
from voxedge.export.modules.oobleck import decoder, encoder
from voxedge.export.repeat import Stack

ROTARY_THETA = 10000.0
ENCODER_SECONDS = 30


def conditioner_plan(name: str, table: LazyTensor) -> GraphPlan:
    """Rows of the speech-token table: ids [B, L] to embeddings [B, L, C]; always FP32, it is read once per stretch."""
    rows, width = table.shape
    arguments = [TensorSpec("ids", "int32", ("batch", "tokens"))]
    limits = {"batch": DimRange(1, 1, 2), "tokens": DimRange(1, 250, 4096)}
    return GraphPlan(
        name=name,
        precision="fp32",
        trace={"portable": lambda: trace(lambda: Embedding(rows, width, torch.float32), arguments, ["embeddings"])},
        tensors={"weight": table},
        profiles={"portable": {"main": limits}},
    )


def dit_plan(name: str, checkpoint: DitCheckpoint, latent_rate: float, config: ExportConfig) -> GraphPlan:
    """The denoiser F(x, t) for stretches of up to `config.max_seconds`; guidance is one batch of two."""
    shape = checkpoint.config
    frames = max(2, math.ceil(config.max_seconds * latent_rate))
    positions = frames + shape.num_memory_tokens + frames * (shape.prepend_cond_dim > 0) + 1
    arguments: list[Any] = [
        TensorSpec("latents", "float32", ("batch", shape.io_channels, "frames")),
        TensorSpec("time", "float32", ("batch",)),
        _conditioning(shape),
    ]
    cos, sin = rotary_tables(shape.rotary_dim, positions, ROTARY_THETA)
    limits = {"batch": DimRange(1, 2, 2), "frames": DimRange(1, min(500, frames), frames)}
    if shape.cross_attention or shape.prepend_cond_dim:
        limits["tokens"] = DimRange(1, min(250, frames), frames)
    dtype = getattr(torch, DTYPES[config.precision])
    stack = Stack("/transformer/layers", "transformer.layers", shape.depth)

    def tracer() -> Traced:
        shallow = replace(shape, depth=stack.traced)
        return trace(lambda: DiffusionTransformer(shallow, positions, dtype), arguments, ["prediction"], stack=stack)

    return GraphPlan(
        name=name,
        precision=config.precision,
        trace={"portable": tracer},
        tensors={
            **checkpoint.tensors,
            "transformer.rotary.cos": InMemory("rotary.cos", cos),
            "transformer.rotary.sin": InMemory("rotary.sin", sin),
        },
        profiles={"portable": {"main": limits}},
    )


def _conditioning(shape: DitConfig) -> list[TensorSpec]:
    """Inputs besides latents and time, in the order that the module takes them."""
    paths = [
        TensorSpec("concat", "float32", ("batch", shape.input_concat_dim, "frames")),
        TensorSpec("context", "float32", ("batch", "tokens", shape.cond_token_dim)),
        TensorSpec("global", "float32", ("batch", shape.global_cond_dim)),
        TensorSpec("prepend", "float32", ("batch", "tokens", shape.prepend_cond_dim)),
    ]
    return [spec for spec in paths if 0 not in spec.shape]


def vae_plans(checkpoint: VaeCheckpoint, config: ExportConfig) -> list[GraphPlan]:
    """`vae_decoder`, and `vae_encoder` where the checkpoint has one."""
    width = checkpoint.decoder.latent_dim
    latents = TensorSpec("latents", "float32", ("batch", width, "frames"))
    plans = [_coder_plan("vae_decoder", decoder, checkpoint.decoder, latents, "audio", checkpoint, config)]
    if checkpoint.encoder is not None:
        audio = TensorSpec("audio", "float32", ("batch", checkpoint.encoder.audio_channels, "samples"))
        plans.append(_coder_plan("vae_encoder", encoder, checkpoint.encoder, audio, "moments", checkpoint, config))
    return plans


def _coder_plan(
    name: str,
    build: Any,  # noqa: ANN401 - `decoder` or `encoder` of modules.oobleck
    coder: CoderConfig,
    given: TensorSpec,
    result: str,
    checkpoint: VaeCheckpoint,
    config: ExportConfig,
) -> GraphPlan:
    prefix = name.removeprefix("vae_") + "."
    tensors = {key.removeprefix(prefix): tensor for key, tensor in checkpoint.tensors.items() if key.startswith(prefix)}
    dtype = getattr(torch, DTYPES[config.precision])
    lengths, minimum = {"frames": DimRange(1, 68, 512)}, {}
    if given.name == "audio":
        second = checkpoint.sample_rate
        minimum = {"samples": 2 * coder.hop}  # torch takes a length of 1 for a constant; the graph has no such limit
        lengths = {"samples": DimRange(coder.hop, 3 * second, ENCODER_SECONDS * second)}

    def module() -> nn.Module:
        built: nn.Module = build(coder, dtype)
        return built

    return GraphPlan(
        name=name,
        precision=config.precision,
        trace={"portable": lambda: trace(module, [given], [result], minimum)},
        tensors=tensors,
        profiles={"portable": {"main": {"batch": DimRange(1, 1, 2), **lengths}}},
    )

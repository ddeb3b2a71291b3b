"""Graphs of a causal decoder, for every system that has one: shapes, inputs, outputs, profiles and tensor names.

In: a Qwen3-shaped checkpoint, what can be sampled from it, and the export options. Out: a `GraphPlan` of both flavours.
Does not know experts or codecs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from voxedge.engines.manifest import DimRange, Flavour, TensorSpec
from voxedge.export.assemble import GraphPlan, Profiles
from voxedge.export.checkpoint.qwen3 import LanguageModel, QwenConfig
from voxedge.export.checkpoint.rearrange import Stacked
from voxedge.export.checkpoint.tensors import InMemory, LazyTensor
from voxedge.export.checkpoint.transforms import Elementwise
from voxedge.export.config import DTYPES, ExportConfig
from voxedge.export.graph import Traced, trace
from voxedge.export.modules.attention import rotary_tables
from voxedge.export.modules.decoder_lm import JOINT, DecoderForm, DecoderLm
from voxedge.export.repeat import Stack


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How one decoder's graph differs from another's beyond its checkpoint."""

    head: LazyTensor | None = None
    """Rows that can be sampled, [C, d]; None for a graph without logits."""
    norm: LazyTensor | None = None
    """Final norm [d] of another decoder to use instead of its own."""
    logits: Literal["one", "all"] = "one"
    """Logits at the position that the input `logits_at` gives, or at all."""
    probes: tuple[Literal["prenorm", "hidden"], ...] = ()
    """Further outputs, for comparisons."""
    embeds: bool = False
    """Takes embeddings `embeds` instead of `ids`; the tables are in a graph of their own."""
    state: bool = False
    """Also gives `state`, what the head reads."""
    flavours: tuple[Flavour, ...] = ("portable", "ort")
    """Which graphs to make."""
    phases: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    """Optimisation profiles; a TensorRT-RTX engine holds the weights once for each, so no more than are used."""


def decoder_plan(name: str, model: LanguageModel, options: DecoderOptions, config: ExportConfig) -> GraphPlan:
    """Plan the graphs of one decoder."""
    context = min(config.max_context, model.config.max_positions)
    flavours = tuple(flavour for flavour in options.flavours if flavour == "portable" or _fits_ort(model.config))
    form = DecoderForm(
        head_rows=0 if options.head is None else options.head.shape[0],
        max_context=context,
        dtype=getattr(torch, DTYPES[config.precision]),
        logits=options.logits,
        probes=options.probes,
        embeds=options.embeds,
        state=options.state,
    )
    return GraphPlan(
        name=name,
        precision=config.precision,
        trace={flavour: _Tracer(model.config, form, flavour) for flavour in flavours},
        tensors=_tensors(model, options, context),
        profiles={flavour: _profiles(flavour, options, context, config.max_prefill) for flavour in flavours},
    )


def _fits_ort(model: QwenConfig) -> bool:
    """Whether GroupQueryAttention takes the heads: it refuses widths that are no multiple of 16."""
    return model.head_dim % 16 == 0


@dataclass(frozen=True, slots=True)
class _Tracer:
    config: QwenConfig
    form: DecoderForm
    flavour: Flavour

    def __call__(self) -> Traced:
        kept = "present" if self.flavour == "ort" else "new"
        stack = Stack("/layers", "layers", self.config.layers, inputs="past", outputs=kept, streams=2)
        shallow = replace(self.config, layers=stack.traced)
        leaves = [f"{layer}.{leaf}" for layer in range(stack.traced) for leaf in ("key", "value")]
        given = TensorSpec("ids", "int32", ("batch", "new"))
        if self.form.embeds:
            given = TensorSpec("embeds", "float32", ("batch", "new", self.config.hidden_size))
        arguments = (given, self._positions(), self._caches(leaves))
        heads = [name for name, there in (("logits", self.form.head_rows), ("state", self.form.state)) if there]
        outputs = [*heads, *self.form.probes, *(f"{kept}.{leaf}" for leaf in leaves)]
        return trace(lambda: DecoderLm(shallow, self.form, self.flavour), arguments, outputs, stack=stack)

    def _positions(self) -> list[TensorSpec]:
        specs = [TensorSpec("logits_at", "int32", ("batch",))] if self.form.logits == "one" else []
        if self.flavour == "ort":
            specs += [TensorSpec("lengths", "int32", ("batch",)), TensorSpec("total", "int32", (1,))]
        return specs

    def _caches(self, leaves: list[str]) -> list[TensorSpec]:
        groups, dim = self.config.kv_heads, self.config.head_dim
        rows: tuple[int | str, ...] = ("past", "batch", groups, dim)
        if self.flavour == "ort":
            rows = ("batch", groups, "capacity", dim)
        dtype: Literal["float16", "float32"] = "float16" if self.form.dtype == torch.float16 else "float32"
        return [TensorSpec(f"past.{leaf}", dtype, rows) for leaf in leaves]


def layer_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors of Qwen3 layers and gated feed-forwards under the names of `modules.decoder_lm`; others keep theirs."""
    named = {key.replace(".self_attn.", ".attn."): tensor for key, tensor in tensors.items()}
    for joint, parts in JOINT.items():
        first, *others = (f"{part}.weight" for part in parts)
        for stem in [key.removesuffix(first) for key in named if key.endswith(first)]:
            joined = [named.pop(stem + leaf) for leaf in (first, *others)]
            named[f"{stem}{joint}.weight"] = Stacked(_of_one_type(joined))
    return named


def _of_one_type(tensors: Sequence[LazyTensor]) -> tuple[LazyTensor, ...]:
    """Tensors as they are, or all in FP32 where a checkpoint stores some wider than others."""
    if len({tensor.dtype for tensor in tensors}) == 1:
        return tuple(tensors)
    return tuple(Elementwise(tensor, lambda values: values, "float32") for tensor in tensors)


def _tensors(model: LanguageModel, options: DecoderOptions, context: int) -> Mapping[str, LazyTensor]:
    """Names of the checkpoint to names of the module."""
    cos, sin = rotary_tables(model.config.head_dim, context, model.config.rope_theta)
    tables = {} if options.embeds else {"embed.weight": model.tensors["embed_tokens.weight"]}
    head = {} if options.head is None else {"head.weight": options.head}
    return {
        **layer_tensors(model.tensors),
        **tables,
        **head,
        "norm.weight": options.norm or model.tensors["norm.weight"],
        "rotary.cos": InMemory("rotary.cos", cos),
        "rotary.sin": InMemory("rotary.sin", sin),
    }


def _profiles(flavour: Flavour, options: DecoderOptions, context: int, max_prefill: int) -> Profiles:
    """Prefill (many new tokens, over any past) and decode (one new token) are two profiles, never one compromise."""
    one = DimRange(1, 1, 1)
    prefill = min(max_prefill, context)
    history = DimRange(0, 0, context - 1), DimRange(1, min(512, context - 1), context - 1)
    if flavour == "ort":
        history = (DimRange(1, min(1024, context), context),) * 2
    name = "capacity" if flavour == "ort" else "past"
    profiles = {
        "prefill": {"batch": one, "new": DimRange(1, min(128, prefill), prefill), name: history[0]},
        "decode": {"batch": one, "new": one, name: history[1]},
    }
    return {phase: profiles[phase] for phase in options.phases}

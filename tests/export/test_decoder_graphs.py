"""What a decoder's layer is made of in each flavour, and how a checkpoint's projections become its products."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tiny_qwen import QWEN

from voxedge.engines.manifest import Flavour
from voxedge.export.checkpoint.qwen3 import LanguageModel, layer_shapes
from voxedge.export.checkpoint.tensors import InMemory, LazyTensor, materialise
from voxedge.export.config import ExportConfig
from voxedge.export.decoder_graphs import DecoderOptions, decoder_plan, layer_tensors

# Every node is a call, and every product one that all threads begin and end together.
FUSED = {
    "SkipSimplifiedLayerNormalization": 2,
    "SimplifiedLayerNormalization": 2,  # of queries and keys
    "MatMul": 4,
    "Split": 2,
    "Reshape": 4,  # to heads and back, of queries and keys; values stay as they are
    "GroupQueryAttention": 1,
    "Sigmoid": 1,
    "Mul": 2,
}


def checkpoint(dtype: str = "float32") -> dict[str, LazyTensor]:
    """One random layer under the names of a release."""
    random = np.random.default_rng(0)
    shapes = layer_shapes(QWEN)
    return {
        f"layers.0.{name}": InMemory(name, random.standard_normal(shape).astype(dtype))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("flavour", "expected"), [("ort", FUSED), ("portable", {"MatMul": 6})])
def test_nodes_of_a_layer(flavour: Flavour, expected: dict[str, int]) -> None:
    zeros = InMemory("zeros", np.zeros((50, 32), np.float32))
    named: dict[str, LazyTensor] = {"embed_tokens.weight": zeros, "norm.weight": InMemory("n", np.zeros(32, "f4"))}
    plan = decoder_plan("toy", LanguageModel(QWEN, named), DecoderOptions(head=zeros), ExportConfig())
    nodes = [node for node in plan.trace[flavour]().model.graph if str(node.name).startswith("/layers.1/")]
    found = Counter(node.op_type for node in nodes)
    assert {name: found[name] for name in expected} == expected  # two products of the portable one are the attention's
    if flavour == "ort":
        assert len(nodes) == sum(expected.values())


def test_projections_are_stacked_in_order() -> None:
    given = checkpoint()
    named = layer_tensors(given)
    for joint, parts in {
        "attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    }.items():
        whole = np.concatenate([materialise(given[f"layers.0.{part}.weight"]) for part in parts])
        np.testing.assert_array_equal(materialise(named[f"layers.0.{joint}.weight"]), whole)
    others = {name.removeprefix("layers.0.") for name in named}
    assert others == {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "attn.qkv_proj.weight",
        "attn.o_proj.weight",
        "attn.q_norm.weight",
        "attn.k_norm.weight",
        "mlp.gate_up_proj.weight",
        "mlp.down_proj.weight",
    }


def test_projections_of_two_types_are_stacked_in_the_wider() -> None:
    half = checkpoint("float16")
    given = half | {"layers.0.mlp.up_proj.weight": checkpoint()["layers.0.mlp.up_proj.weight"]}
    found = layer_tensors(given)["layers.0.mlp.gate_up_proj.weight"]
    whole = np.concatenate([materialise(given[f"layers.0.mlp.{part}.weight"]) for part in ("gate_proj", "up_proj")])
    assert found.dtype == "float32"
    np.testing.assert_array_equal(materialise(found), whole)

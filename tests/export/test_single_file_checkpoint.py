"""Both experts in one file: every public way to mark them is found, incomplete marks are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    Golden,
    assert_same_expert,
    edit,
    rewrite,
)
from safetensors.numpy import load_file

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.moe_tts import load_moe_tts
from voxedge.export.checkpoint.tensors import materialise

LAYOUTS = ("checkpoint", "checkpoint_moe_gen", "checkpoint_moe_prefix")


@pytest.fixture
def case(golden: Golden, tmp_path: Path) -> Path:
    """A copy of all layouts of one case, to damage."""
    target = tmp_path / "case"
    for layout in LAYOUTS:
        shutil.copytree(golden("moetts_lm") / layout, target / layout)
    return target


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_moe_gen", "_mot_gen"),
        ("_moe_gen", "_speech"),
        ("_moe_gen", "_y"),
        ("_moe_gen", "_ve"),
    ],
)
@pytest.mark.parametrize("detect", [False, True])
def test_suffix_families(case: Path, old: str, new: str, detect: bool) -> None:
    folder = case / "checkpoint_moe_gen"
    rewrite(folder, lambda arrays: {key.replace(old, new): array for key, array in arrays.items()})
    rule = None if detect else {"prefix": "language_model.", "speech_marker": new, "marker_position": "suffix"}
    edit(folder, "single_file", rule)
    assert_same_expert(load_moe_tts(case / "checkpoint").speech, load_moe_tts(folder).speech)


def marked(key: str, style: str) -> str:
    """A key of the suffix layout in another style."""
    speech, plain = "_moe_gen" in key, key.replace("_moe_gen", "").removeprefix("language_model.")
    if style == "prefix":
        head, _, tail = key.removeprefix("language_model.").rpartition("_moe_gen")
        parent, _, module = head.rpartition(".")
        return f"{parent}.speech_{module}{tail}" if speech else plain
    numbers = ("experts.0", "experts.1") if style == "numbered" else ("text_expert", "speech_expert")
    if "embed_tokens" in key:
        return plain
    if style == "named at the root":
        return f"{numbers[speech]}.{plain}"
    return plain.replace("model.", f"model.{numbers[speech]}.", 1)


@pytest.mark.parametrize("style", ["prefix", "numbered", "named", "named at the root"])
def test_other_markings_are_found(case: Path, style: str) -> None:
    folder = case / "checkpoint_moe_gen"
    rewrite(folder, lambda arrays: {marked(key, style): array for key, array in arrays.items()})
    edit(folder, "single_file", None)
    first, other = load_moe_tts(case / "checkpoint"), load_moe_tts(folder)
    assert_same_expert(first.speech, other.speech)
    assert_same_expert(first.text, other.text)


def test_feed_forward_experts_share_the_rest(case: Path) -> None:
    """Mono-InternVL's kind: only the feed-forward is routed, so both experts use the same attention and norms."""
    folder = case / "checkpoint_moe_gen"
    rewrite(folder, lambda arrays: {k: a for k, a in arrays.items() if "_moe_gen" not in k or "mlp_moe_gen" in k})
    edit(folder, "routing", None)
    checkpoint = load_moe_tts(folder)
    assert checkpoint.final_norm == "text"
    assert checkpoint.speech.tensors["norm.weight"] is checkpoint.text.tensors["norm.weight"]
    name = "layers.1.self_attn.q_proj.weight"
    assert checkpoint.speech.tensors[name] is checkpoint.text.tensors[name]
    name = "layers.1.mlp.up_proj.weight"
    assert not np.array_equal(materialise(checkpoint.speech.tensors[name]), materialise(checkpoint.text.tensors[name]))


def test_deliberately_shared_modules_are_named_in_the_configuration(case: Path) -> None:
    folder = case / "checkpoint_moe_gen"
    rewrite(folder, lambda arrays: {k: a for k, a in arrays.items() if "q_norm_moe_gen" not in k})
    with pytest.raises(CheckpointError, match=r"not marked: self_attn\.q_norm\.weight"):
        load_moe_tts(folder)
    edit(folder, "single_file.shared", ["self_attn.q_norm"])
    checkpoint = load_moe_tts(folder)
    name = "layers.0.self_attn.q_norm.weight"
    assert checkpoint.speech.tensors[name] is checkpoint.text.tensors[name]


def test_a_speech_expert_with_its_own_rows_needs_no_offset_into_the_matrix(case: Path) -> None:
    folder, rows = case / "checkpoint_moe_gen", load_file(case / "checkpoint/speech_expert/model.safetensors")
    own = {"language_model.model.embed_tokens_moe_gen.weight": rows["model.embed_tokens.weight"]}
    rewrite(folder, lambda arrays: {**arrays, **own})
    first, other = load_moe_tts(case / "checkpoint"), load_moe_tts(folder)
    assert_same_expert(first.speech, other.speech)


BROKEN_FILES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "one layer unmarked": (
        lambda arrays: {k: a for k, a in arrays.items() if "layers.2.mlp_moe_gen.up_proj" not in k},
        r"`mlp\.up_proj\.weight` is marked `_moe_gen` in some layers but not in \[2\]",
    ),
    "nothing marked": (lambda arrays: {k: a for k, a in arrays.items() if "_moe_gen" not in k}, "found none"),
    "another prefix": (
        lambda arrays: {k.replace("language_model.", "", 1): a for k, a in arrays.items()},
        "begin with `language_model.`",
    ),
    "biases": (
        lambda arrays: {**arrays, "language_model.model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)},
        "bias-free",
    ),
    "marked biases": (
        lambda arrays: {**arrays, "language_model.model.layers.0.self_attn.q_proj_moe_gen.bias": np.zeros(64, "f4")},
        "bias-free",
    ),
    "fused projections": (
        lambda arrays: {**arrays, "language_model.model.layers.0.attention.wqkv.weight": np.zeros(64, np.float32)},
        "InternLM2",
    ),
    "mixture of transformers": (
        lambda arrays: {**arrays, "layers.0.attention.local_experts_wq.0.weight": np.zeros(64, np.float32)},
        "Mixture-of-Transformers",
    ),
    "no embedding": (lambda arrays: {k: a for k, a in arrays.items() if "embed_tokens" not in k}, "embed_tokens"),
    "text module missing": (
        lambda arrays: {k: a for k, a in arrays.items() if not k.endswith("layers.1.mlp.up_proj.weight")},
        r"text expert\).*\n.*missing: layers\.1\.mlp\.up_proj\.weight",
    ),
    "unknown module": (
        lambda arrays: {**arrays, "language_model.visual.weight": np.zeros(3, np.float32)},
        r"unknown: visual\.weight",
    ),
    "final norm not marked": (
        lambda arrays: {k: a for k, a in arrays.items() if ".norm_moe_gen" not in k},
        'set it to "text"',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_broken_single_files(case: Path, change: Callable[..., dict[str, Any]], message: str) -> None:
    folder = case / "checkpoint_moe_gen"
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_moe_tts(folder)


def test_the_offset_trap(case: Path) -> None:
    """Both conventions of numbering speech tokens occur; the wrong one must not load."""
    folder = case / "checkpoint_moe_gen"  # 369 rows, speech at len(tokenizer) = 288
    edit(folder, "speech.token_id_offset", 320)
    with pytest.raises(CheckpointError, match=r"exceed the 369 rows.*len\(tokenizer\) = 288.*appended.* begin at 288"):
        load_moe_tts(folder)
    edit(folder, "speech.token_id_offset", 200)
    with pytest.raises(CheckpointError, match=r"ids up to 287, but text has 200 rows"):
        load_moe_tts(folder)
    edit(folder, "speech.token_id_offset", None)
    with pytest.raises(CheckpointError, match=r"len\(tokenizer\) = 288"):
        load_moe_tts(folder)


def test_an_offset_that_points_to_padding_rows(case: Path) -> None:
    folder = case / "checkpoint_moe_prefix"  # 401 rows, speech at 320; rows 288..319 are padding
    key = "model.embed_tokens.weight"

    def pad(arrays: dict[str, Any]) -> dict[str, Any]:
        arrays[key][288:320] = 0.01
        return arrays

    rewrite(folder, pad)
    edit(folder, "speech.token_id_offset", 288)
    with pytest.raises(CheckpointError, match="not trained"):
        load_moe_tts(folder)

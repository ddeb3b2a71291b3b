"""Qwen3 folders: both dialects of configuration, and refusal by name of everything that is not Qwen3."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.config_file import Section, load_config
from voxedge.export.checkpoint.qwen3 import load_qwen3, parse_qwen3
from voxedge.export.checkpoint.tensors import materialise

QWEN3_4B: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1000000,
    "rope_scaling": None, "max_position_embeddings": 40960, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 36,
}  # fmt: skip
MODERN_ROPE = {"rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_the_published_configuration() -> None:
    config = parse_qwen3(QWEN3_4B, "config.json")
    assert (config.heads * config.head_dim, config.hidden_size) == (4096, 2560)
    assert (config.layers, config.kv_heads, config.vocab_size, config.tied) == (36, 8, 151936, True)
    assert (config.rope_theta, config.max_positions) == (1e6, 40960)


def test_the_later_dialect() -> None:
    assert parse_qwen3({**without(QWEN3_4B, "rope_theta"), **MODERN_ROPE}, "config.json").rope_theta == 5e6
    both = {**QWEN3_4B, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert parse_qwen3(both, "config.json").rope_theta == 1e6


def test_a_sliding_window_that_no_layer_uses_is_fine() -> None:
    unused = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 36}
    assert parse_qwen3({**QWEN3_4B, **unused}, "config.json").layers == 36
    assert parse_qwen3({**QWEN3_4B, "sliding_window": 4096}, "config.json").layers == 36


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no theta": (without(QWEN3_4B, "rope_theta"), "rope_theta"),
    "two thetas": ({**QWEN3_4B, **MODERN_ROPE}, r"1000000.0, 5000000.0"),
    "yarn": ({**QWEN3_4B, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    "linear, old spelling": ({**QWEN3_4B, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    "yarn in the later dialect": (
        {**without(QWEN3_4B, "rope_theta"), "rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}},
        "yarn",
    ),
    "theta per kind of layer": (
        {**without(QWEN3_4B, "rope_theta"), "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "full_attention",
    ),
    "partial rotation": ({**QWEN3_4B, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "sliding window": (
        {**QWEN3_4B, "use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28},
        "use_sliding_window",
    ),
    "sliding layers": (
        {**QWEN3_4B, "use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 36},
        "64 tokens",
    ),
    "biases": ({**QWEN3_4B, "attention_bias": True}, "attention_bias"),
    "gelu": ({**QWEN3_4B, "hidden_act": "gelu"}, "hidden_act"),
    "another model": ({**QWEN3_4B, "model_type": "qwen2"}, "model_type"),
    "quantised": ({**QWEN3_4B, "quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "no head_dim": (without(QWEN3_4B, "head_dim"), "head_dim"),
    "odd head_dim": ({**QWEN3_4B, "head_dim": 127}, "head_dim"),
    "uneven groups": ({**QWEN3_4B, "num_key_value_heads": 5}, "divisible"),
    "text as number": ({**QWEN3_4B, "hidden_size": "2560"}, "hidden_size"),
    "boolean as number": ({**QWEN3_4B, "num_hidden_layers": True}, "num_hidden_layers"),
    "negative": ({**QWEN3_4B, "vocab_size": -1}, "vocab_size"),
    "far too many layers": ({**QWEN3_4B, "num_hidden_layers": 10**9}, "num_hidden_layers"),
    "huge theta": ({**QWEN3_4B, "rope_theta": 10**400}, "rope_theta"),
    "number as boolean": ({**QWEN3_4B, "tie_word_embeddings": 1}, "tie_word_embeddings"),
}


@pytest.mark.parametrize(("config", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_option(config: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        parse_qwen3(config, "config.json")


@pytest.mark.parametrize("case", ["qwen3_lm", "qwen3_lm_untied"])
def test_golden_folders_give_the_stored_values(golden: Callable[[str], Path], case: str) -> None:
    folder = golden(case) / "checkpoint"
    stored = {key: array for shard in folder.glob("*.safetensors") for key, array in load_file(shard).items()}
    raw = json.loads((folder / "config.json").read_text())
    model = load_qwen3(folder)
    assert model.config.hidden_size == raw["hidden_size"] and model.config.head_dim == raw["head_dim"]
    assert model.config.tied == raw["tie_word_embeddings"]
    for key, array in stored.items():
        np.testing.assert_array_equal(materialise(model.tensors[key.removeprefix("model.")], 999), array)
    if model.config.tied:
        assert model.tensors["lm_head.weight"] is model.tensors["embed_tokens.weight"]
    assert len(model.tensors) == len(stored) + model.config.tied
    assert all(file.is_file() for file in model.files) and len(model.files) == len(list(folder.glob("model*"))) + 1


@pytest.fixture
def folder(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    target = tmp_path / "qwen"
    shutil.copytree(golden("qwen3_lm") / "checkpoint", target)
    return target


def test_every_flipped_weight_header_byte_is_harmless_or_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    shapes = {name: each.shape for name, each in load_qwen3(folder).tensors.items()}
    length = 8 + int.from_bytes(content[:8], "little")
    for position in range(0, length, 7):
        content[position] ^= 1 << position % 7
        file.write_bytes(content)
        content[position] ^= 1 << position % 7
        try:
            found = load_qwen3(folder).tensors
        except CheckpointError:
            continue
        assert {name: each.shape for name, each in found.items()} == shapes


def test_weights_without_the_leading_model_are_accepted(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({key.removeprefix("model."): array for key, array in load_file(file).items()}, file)
    assert "layers.0.mlp.up_proj.weight" in load_qwen3(folder).tensors


def test_a_tied_model_that_repeats_its_head_uses_the_embedding(folder: Path) -> None:
    file = folder / "model.safetensors"
    arrays = load_file(file)
    save_file({**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"] + 1}, file)
    model = load_qwen3(folder)
    assert model.tensors["lm_head.weight"] is model.tensors["embed_tokens.weight"]


def test_missing_files_and_wrong_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 97}))
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.mlp\.down_proj\.weight: expected \[48, 97\], found \[48, 96"
    ):
        load_qwen3(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MissingResourceError, match=r"config\.json"):
        load_qwen3(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "\xff", "[" * 100_000, "nul\0"])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_config(tmp_path / "config.json")


def test_yaml_is_read_safely(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: [1, 2.5, text]}\n")
    assert load_config(path) == {"a": {"b": [1, 2.5, "text"]}}
    marker = tmp_path / "marker"
    code = f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    for text in (code, "- 1", "a: [", "b: &x {c: 1}\na: {<<: *x}"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.yaml"):
            load_config(path)
    assert not marker.exists()


def test_configuration_files_have_a_size_limit(tmp_path: Path) -> None:
    for name in ("config.json", "config.yaml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10_000_001)
        with pytest.raises(CheckpointError, match="10000000 bytes"):
            load_config(tmp_path / name)


def test_messages_about_self_containing_values_stay_short(tmp_path: Path) -> None:
    """A few lines of YAML can stand for an exponentially large value; naming it must not write it out."""
    lines = ["a0: &a0 [x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 30)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    section = Section(load_config(tmp_path / "config.yaml"), "config.yaml")
    with pytest.raises(CheckpointError, match="a29") as error:
        section.integer("a29")
    assert len(str(error.value)) < 300

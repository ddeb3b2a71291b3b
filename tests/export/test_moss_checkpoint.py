"""MOSS-TTS checkpoints: which model a folder holds, what is refused, and that nothing is read as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig, parse_moss
from voxedge.export.checkpoint.moss_tts import GATE, load_moss_tts
from voxedge.export.checkpoint.tensors import materialise
from voxedge.export.config import ExportConfig
from voxedge.export.systems.moss_tts import delay_head, graph_plans, settings
from voxedge.runtime.systems.moss_grid import TableRows

CASES = ("moss_delay", "moss_local", "moss_local_v15", "moss_local_v15_abs")
# Smallest block that one row of any golden tensor, and one head of rotated rows, fits into.
BLOCK_BYTES = 16_384


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, golden: Callable[[str], Path]) -> Path:
    return golden(request.param) / "checkpoint"


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return values


def changed(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}), encoding="utf-8")


def test_the_model_is_told_by_its_fields(folder: Path) -> None:
    config = load_moss_tts(folder).config
    kinds = {"moss_delay": ("delay", type(None)), "moss_local": ("local", DepthConfig)}
    kind, local = kinds.get(folder.parent.name, ("local_v15", GptConfig))
    assert (config.kind, type(config.local)) == (kind, local)
    known = settings(load_moss_tts(folder), ExportConfig())
    assert len(known.codebooks) == config_of(folder)["n_vq"]
    assert known.codec_name.startswith("OpenMOSS-Team/MOSS-Audio-Tokenizer")


def test_every_tensor_is_read_in_blocks(folder: Path) -> None:
    for plan in graph_plans(load_moss_tts(folder), ExportConfig()):
        for name, tensor in plan.tensors.items():
            read = 0
            for _, values in tensor.blocks(BLOCK_BYTES):
                assert values.nbytes <= BLOCK_BYTES, (plan.name, name)
                read += values.size
            assert read == np.prod(tensor.shape), (plan.name, name)


def test_rows_of_the_stacked_table(folder: Path) -> None:
    checkpoint = load_moss_tts(folder)
    known, table = settings(checkpoint, ExportConfig()), materialise(checkpoint.audio_table)
    grid = np.full((1, 1 + known.channels), known.pad_code, np.int32)
    pads = TableRows(known).of(grid)[0]
    for channel, size in enumerate(known.codebooks):
        own = materialise(checkpoint.audio_tables[channel])
        assert len(own) == size + 1
        np.testing.assert_array_equal(table[pads[channel]], own[-1])
        assert own[-1].any() == (known.kind != "local_v15")
        grid[0, 1 + channel] = size - 1
        np.testing.assert_array_equal(table[TableRows(known).of(grid)[0, channel]], own[-2])
    assert not table[TableRows(known, 1).of(grid)[0, 1:]].any()


def test_one_product_for_what_can_be_drawn_inside_audio(golden: Callable[[str], Path]) -> None:
    checkpoint = load_moss_tts(golden("moss_delay") / "checkpoint")
    head, ids = materialise(delay_head(checkpoint)), checkpoint.config.ids
    text = materialise(checkpoint.text_head)
    np.testing.assert_array_equal(head[:2], text[[ids.gen_slot, ids.delay_slot]])
    assert len(head) == 2 + sum(checkpoint.config.codebooks)


def test_a_gate_that_is_missing_is_that_of_the_text_head(copy: Callable[..., Path]) -> None:
    folder = copy("moss_local_v15")
    with_gate = load_moss_tts(folder)
    assert GATE in with_gate.tensors
    ids = with_gate.config.ids
    rows = materialise(with_gate.text_head)[[ids.gen_slot, ids.audio_end]]

    tensors = load_file(folder / "model.safetensors")
    del tensors[GATE]
    save_file(tensors, folder / "model.safetensors")
    np.testing.assert_array_equal(materialise(load_moss_tts(folder).gate), rows)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("moss_delay", {"audio_vocab_size": 31, "audio_pad_code": 31}, "the weights do not fit"),
        ("moss_delay", {"n_vq": 5}, "missing: "),
        ("moss_delay", {"n_vq": 0}, "`n_vq`"),
        ("moss_delay", {"audio_pad_code": 40}, "pad code right behind"),
        ("moss_delay", {"im_end_token_id": 640}, "special ids below vocab_size"),
        ("moss_delay", {"language_config": None}, "`language_config`"),
        ("moss_local_v15", {"audio_codebook_sizes": [32, 32]}, "4 sizes"),
        ("moss_local_v15", {"audio_pad_token_id": 31}, "pad code right behind"),
        ("moss_local_v15", {"gpt2_config": {"n_embd": 32}}, "the backbone's width"),
        ("moss_local_v15", {"gpt2_config": {"scale_attn_weights": False}}, "scale_attn_weights"),
        ("moss_local_v15", {"gpt2_config": {"activation_function": "swish9"}}, "activation_function"),
    ],
)
def test_what_does_not_fit_is_named(
    case: str, changes: dict[str, object], message: str, copy: Callable[..., Path]
) -> None:
    folder = copy(case)
    changed(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_moss_tts(folder)


def test_defaults_are_those_of_the_releases(golden: Callable[[str], Path]) -> None:
    values = config_of(golden("moss_delay") / "checkpoint")
    qwen = {**values["language_config"], "vocab_size": 155648}
    del qwen["rope_theta"]
    config = parse_moss({"model_type": "moss_tts_delay", "language_config": qwen}, "config.json")
    assert (len(config.codebooks), config.codebooks[0], config.pad_code) == (32, 1024, 1024)
    assert config.language.rope_theta == 1e6
    assert (config.ids.audio_start, config.ids.delay_slot, config.sample_rate) == (151652, 151662, 24000)

"""MoE-TTS folders: all layouts give the same tensors; parts that do not belong together are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    Golden,
    assert_same_expert,
    edit,
    rewrite,
)
from safetensors.numpy import load_file

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.moe_tts import load_moe_tts
from voxedge.export.checkpoint.tensors import materialise

LAYOUTS = ("checkpoint", "checkpoint_moe_gen", "checkpoint_moe_prefix")
CASES = ("moetts_lm", "moetts_lm_b")


@pytest.fixture
def case(golden: Golden, tmp_path: Path) -> Path:
    """A copy of all layouts of one case, to damage."""
    target = tmp_path / "case"
    for layout in LAYOUTS:
        shutil.copytree(golden("moetts_lm") / layout, target / layout)
    return target


@pytest.mark.parametrize("name", CASES)
def test_three_layouts_give_identical_tensors(golden: Golden, name: str) -> None:
    first, *others = (load_moe_tts(golden(name) / layout) for layout in LAYOUTS)
    stored = json.loads((golden(name) / "checkpoint" / "config.json").read_text())
    assert first.final_norm == stored["routing"]["final_norm"]
    assert first.speech_vocabulary.eos_id == stored["speech"]["eos"]["id"]
    assert first.prompt.system == stored["prompt"]["system"]
    assert first.tokenizer_file.is_file()
    for other in others:
        assert_same_expert(first.text, other.text)
        assert_same_expert(first.speech, other.speech)
        assert (other.final_norm, other.prompt) == (first.final_norm, first.prompt)
        # every id that the tokenizer can give has its row, in every layout
        assert other.text.config.vocab_size == min(
            other.speech_vocabulary.token_id_offset, first.text.config.vocab_size
        )
        assert first.tokenizer_file.samefile(other.tokenizer_file)


@pytest.mark.parametrize("name", CASES)
def test_directory_layout_is_the_two_folders(golden: Golden, name: str) -> None:
    folder = golden(name) / "checkpoint"
    checkpoint = load_moe_tts(folder)
    for part, model in (("text_expert", checkpoint.text), ("speech_expert", checkpoint.speech)):
        stored = load_file(folder / part / "model.safetensors")
        for key, array in stored.items():
            np.testing.assert_array_equal(materialise(model.tensors[key.removeprefix("model.")]), array)
        tied = "lm_head.weight" not in stored
        assert model.config.tied == tied
        assert (model.tensors["lm_head.weight"] is model.tensors["embed_tokens.weight"]) == tied
    assert checkpoint.speech.config.vocab_size == checkpoint.speech_vocabulary.num_rows
    assert (checkpoint.dit, checkpoint.vae, checkpoint.sample_rate) == (None, None, None)


def test_complete_bundle(golden: Golden) -> None:
    checkpoint = load_moe_tts(golden("moetts_e2e") / "checkpoint")
    assert checkpoint.dit is not None and checkpoint.vae is not None
    assert (checkpoint.sample_rate, checkpoint.latent_rate) == (48000, 50.0)
    assert checkpoint.dit.token_table.shape[0] >= checkpoint.speech_vocabulary.num_tokens
    assert checkpoint.dit.config.io_channels == checkpoint.vae.latent_dim
    names = {f"{file.parent.name}/{file.name}" for file in checkpoint.source_files}
    assert {"text_expert/tokenizer.json", "speech_expert/model.safetensors"} <= names
    assert {"dit/model_config.json", "vae/model.safetensors"} <= names


def test_speech_tokens_that_the_tokenizer_names_decide_the_offset(case: Path) -> None:
    path = case / "checkpoint" / "text_expert" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] += [{"id": 300 + number, "content": f"<|s_{number}|>"} for number in range(81)]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"token_id_offset is 320, .* set it to 300"):
        load_moe_tts(case / "checkpoint")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rms_norm_eps", 1e-5), ("rope_theta", 5e6)],
)
def test_experts_must_agree(case: Path, field: str, value: float) -> None:
    edit(case / "checkpoint" / "speech_expert", field, value)
    with pytest.raises(CheckpointError, match=f"differ in {field}"):
        load_moe_tts(case / "checkpoint")


def test_experts_with_different_layers_are_refused(case: Path) -> None:
    folder = case / "checkpoint" / "speech_expert"
    rewrite(folder, lambda arrays: {key: array for key, array in arrays.items() if "layers.2" not in key})
    edit(folder, "num_hidden_layers", 2)
    with pytest.raises(CheckpointError, match="differ in layers 3 and 2"):
        load_moe_tts(case / "checkpoint")


def test_feed_forward_widths_may_differ(case: Path) -> None:
    folder = case / "checkpoint" / "speech_expert"
    axis = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    rewrite(
        folder,
        lambda arrays: {
            k: next((np.ascontiguousarray(a.take(range(80), n)) for name, n in axis.items() if name in k), a)
            for k, a in arrays.items()
        },
    )
    edit(folder, "intermediate_size", 80)
    assert load_moe_tts(case / "checkpoint").speech.config.intermediate_size == 80


BAD_FIELDS: dict[str, tuple[str, object, str]] = {
    "another model": ("model_type", "qwen3", "model_type"),
    "a later format": ("format_version", 2, "format_version"),
    "unknown layout": ("layout", "zip", "layout"),
    "unknown option": ("temperature", 0.8, "unknown options temperature"),
    "unknown speech option": ("speech.rate", 1, "unknown options rate"),
    "unknown final norm": ("routing.final_norm", "both", "final_norm"),
    "thinking": ("prompt.enable_thinking", True, "enable_thinking"),
    "template without text": ("prompt.user_template", "{description}", "user_template"),
    "template with an attribute": ("prompt.user_template", "{text.__class__}", "user_template"),
    "template with unbalanced braces": ("prompt.user_template", "{text", "user_template"),
    "fewer rows than tokens": ("speech.num_rows", 80, "num_rows"),
    "more rows than the expert": ("speech.num_rows", 82, "82 rows"),
    "end token without a row": ("speech.eos", {"vocab": "text", "id": 320}, "from 0 to 319"),
    "end token is a codec token": ("speech.eos", {"vocab": "speech", "id": 80}, "there is none"),
    "end token of no vocabulary": ("speech.eos", {"vocab": "phones", "id": 1}, "vocab"),
    "absolute tokenizer": ("tokenizer", "/etc", "relative path"),
    "tokenizer far outside": ("tokenizer", "../../outside", "relative path"),
    "expert outside": ("text_expert", "../checkpoint_moe_gen", "relative path"),
    "expert by a detour": ("speech_expert", "x/../../checkpoint_moe_gen", "relative path"),
    "endless expert": ("text_expert", "x" * 5000, "relative path"),
    "empty expert": ("speech_expert", "", "relative path"),
    "vocoder outside": ("vae", "/etc", "relative path"),
}


@pytest.mark.parametrize(("path", "value", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_bad_fields_are_named(case: Path, path: str, value: object, message: str) -> None:
    edit(case / "checkpoint", path, value)
    with pytest.raises(CheckpointError, match=message):
        load_moe_tts(case / "checkpoint")


def test_links_made_by_download_tools_work(case: Path, tmp_path: Path) -> None:
    """Caches keep the files elsewhere and link to them; the folder's names decide, not where links lead."""
    store = tmp_path / "store"
    store.mkdir()
    for file in list((case / "checkpoint").rglob("*.safetensors")):
        target = store / file.relative_to(case).as_posix().replace("/", "_")
        file.rename(target)
        file.symlink_to(target)
    assert load_moe_tts(case / "checkpoint").text.config.layers == 3


def test_missing_parts(case: Path) -> None:
    shutil.rmtree(case / "checkpoint" / "speech_expert")
    with pytest.raises(MissingResourceError, match="speech_expert"):
        load_moe_tts(case / "checkpoint")
    (case / "checkpoint" / "text_expert" / "tokenizer.json").unlink()
    with pytest.raises(MissingResourceError, match=r"tokenizer\.json"):
        load_moe_tts(case / "checkpoint")


BAD_TOKENIZERS = (
    "{}",
    '{"model": {"vocab": []}}',
    '{"model": {"vocab": {"a": "b"}}}',
    '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": -1, "content": "x"}]}',
)


@pytest.mark.parametrize("content", BAD_TOKENIZERS)
def test_bad_tokenizers(case: Path, content: str) -> None:
    (case / "checkpoint" / "text_expert" / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_moe_tts(case / "checkpoint")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sample_rate", 44100, "sample_rate 48000"),
        ("latent_rate", 25, r"latent_rate 50\.0"),
        ("speech.frame_rate", 50, "tokens per second"),
        ("diffusion", {"sigma_min": 90.0, "sigma_max": 80.0}, "sigma_min < sigma_max"),
        ("diffusion", {"objective": "flow"}, "objective"),
    ],
)
def test_stages_must_fit_each_other(golden: Golden, tmp_path: Path, path: str, value: object, message: str) -> None:
    shutil.copytree(golden("moetts_e2e") / "checkpoint", tmp_path / "e2e")
    edit(tmp_path / "e2e", path, value)
    with pytest.raises(CheckpointError, match=message):
        load_moe_tts(tmp_path / "e2e")


def test_diffusion_settings_can_be_set_in_the_bundle(golden: Golden, tmp_path: Path) -> None:
    shutil.copytree(golden("moetts_e2e") / "checkpoint", tmp_path / "e2e")
    edit(tmp_path / "e2e", "diffusion", {"sigma_data": 0.25})
    checkpoint = load_moe_tts(tmp_path / "e2e")
    assert checkpoint.dit is not None
    assert (checkpoint.dit.diffusion.sigma_data, checkpoint.dit.diffusion.rho) == (0.25, 5.0)

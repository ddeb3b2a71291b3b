"""MOSS-Audio-Tokenizer's folder: every spelling gives the same tensors, what cannot be computed is refused by name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import Arrays, assert_identical, edit, rewrite

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from codec_shapes import released

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.moss_codec import Transformer, expected_shapes, load_moss_codec, parse_moss_codec
from voxedge.export.checkpoint.rearrange import RotaryHalves
from voxedge.export.checkpoint.tensors import InMemory, materialise

CASE = "moss_audio_tokenizer"


@pytest.fixture
def folder(copy: Callable[[str], Path]) -> Path:
    return copy(CASE)


def renamed(rules: dict[str, str]) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        found = {}
        for name, array in arrays.items():
            new = name
            for pattern, replacement in rules.items():
                new = re.sub(pattern, replacement, new)
            found[new] = array
        return found

    return change


@pytest.mark.parametrize(
    "rules",
    [
        {r"parametrizations\.weight\.original0": "weight_g", r"parametrizations\.weight\.original1": "weight_v"},
        {r"in_projs\.0\.weight": "in_proj_weight", r"out_projs\.0\.weight": "out_proj.weight"},
        {r"in_projs\.0\.weight": "in_proj.weight"},
    ],
)
def test_spellings(folder: Path, golden: Callable[[str], Path], rules: dict[str, str]) -> None:
    rewrite(folder, renamed(rules))
    released_names = load_moss_codec(golden(CASE) / "checkpoint").tensors
    assert_identical(dict(released_names), dict(load_moss_codec(folder).tensors))


def test_plain_weights(folder: Path, golden: Callable[[str], Path]) -> None:
    def fold(arrays: Arrays) -> Arrays:
        plain = {name: array for name, array in arrays.items() if "parametrizations" not in name}
        for name in arrays:
            if name.endswith("original1"):
                stem = name.removesuffix("parametrizations.weight.original1")
                gain, direction = arrays[f"{stem}parametrizations.weight.original0"], arrays[name].astype(np.float64)
                length = np.sqrt((direction**2).sum((1, 2), keepdims=True))
                plain[f"{stem}weight"] = (gain * direction / length).astype(np.float32)
        return plain

    before = load_moss_codec(golden(CASE) / "checkpoint")
    rewrite(folder, fold)
    for name, tensor in load_moss_codec(folder).tensors.items():
        np.testing.assert_allclose(materialise(tensor), materialise(before.tensors[name]), rtol=1e-6)


def test_the_released_sizes() -> None:
    """Of the specification: windows, positions of a frame, the count of tensors after folding, and of parameters."""
    config = parse_moss_codec(released().config(), "released")
    stacks = [module for module in (*config.encoder, *config.decoder) if isinstance(module, Transformer)]
    assert [stack.window for stack in stacks] == [1000, 500, 250, 125, 125, 250, 500, 1000]
    assert [stack.rate for stack in stacks] == [8, 4, 2, 1, 1, 2, 4, 8]
    assert (config.hop, config.context) == (1920, 125)
    shapes = expected_shapes(config)
    # Weight norm stores two tensors for one, and a gain for each output channel beside the weight itself.
    normed = [name for name in shapes if name.startswith("quantizer") and name.endswith("proj.weight")]
    assert len(shapes) + len(normed) == 1600
    gains = sum(shapes[name][0] for name in normed)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + gains == 1_774_566_400


def test_the_lists_of_the_file_are_followed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder, "reversed_decoder_kwargs", [{"module_type": "Nonsense"}])
    load_moss_codec(folder)
    edit(folder, "decoder_kwargs", config["decoder_kwargs"][:-1])
    with pytest.raises(CheckpointError, match=r"lead back to|end with"):
        load_moss_codec(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("number_channels", 2, "stereo codec"),
        ("quantizer_type", "rvq", "residual quantiser"),
        ("quantizer_kwargs.quantizer_type", "spherical", "residual quantiser"),
        ("quantizer_kwargs.extra", 1, "unknown options extra"),
        ("quantizer_kwargs.codebook_size", 10**9, "codebook_size"),
        ("quantizer_kwargs.num_quantizers", None, "num_quantizers"),
        ("encoder_kwargs.0.patch_size", 7, "patch_size"),
        ("encoder_kwargs.1.causal", False, "causal"),
        ("encoder_kwargs.1.norm", "rms_norm", "layer normalisation"),
        ("encoder_kwargs.1.gating", "silu", "feed-forward"),
        ("encoder_kwargs.1.positional_embedding", "sin", "rotary"),
        ("encoder_kwargs.1.num_heads", 5, "num_heads"),
        ("encoder_kwargs.1.num_layers", 0, "num_layers"),
        ("encoder_kwargs.1.num_layers", 10**7, "num_layers"),
        ("encoder_kwargs.1.layer_scale", None, "layer_scale"),
        ("encoder_kwargs.1.input_dimension", 23, "channels before it"),
        ("encoder_kwargs.1.module_type", "Conv", "module_type"),
        ("decoder_kwargs", [], "decoder_kwargs"),
        ("decoder_kwargs", "none", "decoder_kwargs"),
        ("causal_transformer_context_duration", 0.0, "window"),
        ("causal_transformer_context_duration", 0.8, None),
        ("sampling_rate", 0, "sampling_rate"),
        ("downsample_rate", 97, "patch_size"),
    ],
)
def test_configurations(folder: Path, path: str, value: object, message: str | None) -> None:
    edit(folder, path, value)
    if message is None:
        load_moss_codec(folder)
        return
    with pytest.raises(CheckpointError, match=message):
        load_moss_codec(folder)


def test_weights_that_do_not_fit(folder: Path) -> None:
    edit(folder, "encoder_kwargs.1.num_layers", 3)
    with pytest.raises(CheckpointError, match=r"missing: encoder\.1\.layers\.2"):
        load_moss_codec(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingResourceError):
        load_moss_codec(folder)


@pytest.mark.parametrize("shape", [(12, 5), (12,)])
def test_rows_of_rotated_heads(shape: tuple[int, ...]) -> None:
    """Two heads of 4 rows move, the last 4 rows stay; whatever the size of the blocks."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    order = [0, 2, 1, 3, 4, 6, 5, 7, 8, 9, 10, 11]
    for block in (4, 40, 1 << 20):
        found = materialise(RotaryHalves(InMemory("rows", values), 4, 8), block)
        np.testing.assert_array_equal(found, values[order])
    with pytest.raises(CheckpointError, match="whole heads"):
        RotaryHalves(InMemory("rows", values), 4, 10)

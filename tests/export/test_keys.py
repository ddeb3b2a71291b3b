"""Names of tensors: selection reports everything at once, weight norm folds in all its spellings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.keys import Rule, fold_weight_norm, rename, select, with_prefix
from voxedge.export.checkpoint.safetensors_reader import read_safetensors
from voxedge.export.checkpoint.tensors import InMemory, LazyTensor, materialise


def tensors(**shapes: tuple[int, ...]) -> dict[str, LazyTensor]:
    names = {key.replace("__", "."): shape for key, shape in shapes.items()}
    return {name: InMemory(name, np.ones(shape, np.float32)) for name, shape in names.items()}


def test_selection_keeps_the_expected_order_and_drops_what_is_ignored() -> None:
    given = tensors(b=(1,), a=(2,), bn__num_batches_tracked=(), rope__inv_freq=(3,))
    assert list(select(given, {"a": (2,), "b": (1,)}, "test", [r"rope\.inv_freq"])) == ["a", "b"]


def test_every_difference_is_reported_with_names_and_shapes() -> None:
    given = tensors(wight=(2, 3), shaped=(4,), stranger=(7,))
    given["counted"] = InMemory("counted", np.ones(2, np.int64))
    with pytest.raises(CheckpointError) as error:
        select(given, {"weight": (2, 3), "shaped": (4, 1), "counted": (2,)}, "folder/x")
    message = str(error.value)
    assert "folder/x" in message and "(5 differences)" in message
    assert "missing: weight [2, 3] (found wight)" in message
    assert "unknown: stranger [7]" in message and "unknown: wight [2, 3]" in message
    assert "shape: shaped: expected [4, 1], found [4]" in message
    assert "type: counted: expected floating-point weights, found int64" in message


def test_long_lists_are_cut() -> None:
    with pytest.raises(CheckpointError) as error:
        select({}, {f"layer{number}": (1,) for number in range(40)}, "test")
    assert str(error.value).count("missing:") == 12
    assert "... and 28 more" in str(error.value)


def test_an_ignored_pattern_must_match_the_whole_name() -> None:
    with pytest.raises(CheckpointError, match="unknown: inv_freq_weight"):
        select(tensors(inv_freq_weight=(1,)), {}, "test", ["inv_freq"])


def test_rules_apply_in_order_and_may_not_collide() -> None:
    rules = (Rule(r"^block\.(\d+)\.", r"layers.\1."), Rule(r"\.w$", ".weight"))
    assert list(rename(tensors(block__3__w=(1,)), rules)) == ["layers.3.weight"]
    with pytest.raises(CheckpointError, match=r"x\.weight"):
        rename(tensors(x__w=(1,), x__weight=(1,)), rules)


def test_prefix() -> None:
    assert list(with_prefix(tensors(a__x=(1,), b__x=(1,)), "a.")) == ["x"]


@pytest.mark.parametrize(
    ("gain_leaf", "direction_leaf"),
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
)
def test_weight_norm_spellings_give_the_plain_weight(tmp_path: Path, gain_leaf: str, direction_leaf: str) -> None:
    rng = np.random.default_rng(5)
    gain = rng.normal(size=(4, 1, 1)).astype(np.float32)
    direction = rng.normal(size=(4, 3, 7)).astype(np.float32)
    bias = np.zeros(4, np.float32)
    stored = {f"conv.{gain_leaf}": gain, f"conv.{direction_leaf}": direction, "conv.bias": bias, gain_leaf: gain}
    stored[direction_leaf] = direction  # a module at the root has no dot before its leaf
    save_file(stored, tmp_path / "a.safetensors")
    folded = fold_weight_norm(read_safetensors(tmp_path / "a.safetensors"))
    assert set(folded) == {"conv.weight", "conv.bias", "weight"}
    norm = np.sqrt((direction.astype(np.float64) ** 2).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_array_max_ulp(
        materialise(folded["conv.weight"]), (gain / norm * direction).astype(np.float32), maxulp=1
    )


def test_incomplete_or_repeated_weight_norm_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"conv\.weight_v beside conv\.weight_g"):
        fold_weight_norm(tensors(conv__weight_g=(4, 1)))
    with pytest.raises(CheckpointError, match=r"conv\.weight_g beside conv\.weight_v"):
        fold_weight_norm(tensors(conv__weight_v=(4, 2)))
    with pytest.raises(CheckpointError, match=r"conv\.weight is there both"):
        fold_weight_norm(tensors(conv__weight_g=(4, 1), conv__weight_v=(4, 2), conv__weight=(4, 2)))

"""Names of tensors: rename them by rules, compare them with what a model needs, fold weight normalisation.

In: tensors by the names of a file. Out: tensors by the names that voxedge's modules use, or one error that lists
everything that does not fit. Does not know: particular models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.tensors import FLOATING, LazyTensor
from voxedge.export.checkpoint.transforms import WeightNorm

Tensors = Mapping[str, LazyTensor]
Shape = tuple[int, ...]
MAX_LISTED = 12
ALWAYS_IGNORED = (r"(.*\.)?num_batches_tracked",)
WEIGHT_NORM_SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One regular expression that renames keys."""

    pattern: str
    """Searched in the whole key."""
    replacement: str
    """What a match becomes; may use groups."""


def rename(tensors: Tensors, rules: Iterable[Rule]) -> dict[str, LazyTensor]:
    """Apply all rules in order to every key.

    Raises:
        CheckpointError: two keys become the same.
    """
    compiled = [(re.compile(rule.pattern), rule.replacement) for rule in rules]
    renamed: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        new = key
        for pattern, replacement in compiled:
            new = pattern.sub(replacement, new)
        if new in renamed:
            raise CheckpointError(f"{tensor.name} and {renamed[new].name} are both `{new}`; remove one of them")
        renamed[new] = tensor
    return renamed


def with_prefix(tensors: Tensors, prefix: str) -> dict[str, LazyTensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def select(
    tensors: Tensors, expected: Mapping[str, Shape], where: str, ignore: Iterable[str] = ()
) -> dict[str, LazyTensor]:
    """Take exactly the tensors that a model needs.

    Args:
        tensors: what a file holds.
        expected: shape by name.
        where: the checkpoint, for messages.
        ignore: regular expressions of whole names that may be present and are dropped.

    Returns:
        The expected tensors, in the order of `expected`.

    Raises:
        CheckpointError: names every missing, unknown, misshaped or integer tensor.
    """
    ignored = [re.compile(pattern) for pattern in (*ALWAYS_IGNORED, *ignore)]
    unknown = [key for key in tensors if key not in expected and not any(pattern.fullmatch(key) for pattern in ignored)]
    missing = [key for key in expected if key not in tensors]
    problems = [_missing(key, expected[key], unknown) for key in missing]
    problems += [f"unknown: {key} {list(tensors[key].shape)}" for key in sorted(unknown)]
    problems += [problem for key in expected if key in tensors for problem in _misfit(key, tensors[key], expected[key])]
    if problems:
        listed = "\n  ".join(problems[:MAX_LISTED])
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise CheckpointError(
            f"{where}: the weights do not fit the configuration ({len(problems)} differences):\n  {listed}{more}\n"
            "Check that configuration and weights belong together and were downloaded completely."
        )
    return {key: tensors[key] for key in expected}


def _missing(key: str, shape: Shape, unknown: list[str]) -> str:
    near = difflib.get_close_matches(key, unknown[:200], n=1, cutoff=0.8)
    return f"missing: {key} {list(shape)}" + (f" (found {near[0]})" if near else "")


def _misfit(key: str, tensor: LazyTensor, shape: Shape) -> list[str]:
    if tensor.shape != shape:
        return [f"shape: {key}: expected {list(shape)}, found {list(tensor.shape)}"]
    if tensor.dtype not in FLOATING:
        return [f"type: {key}: expected floating-point weights, found {tensor.dtype}; quantised files cannot be used"]
    return []


def fold_weight_norm(tensors: Tensors) -> dict[str, LazyTensor]:
    """Replace weight-normalised pairs by the plain weights they stand for.

    Known spellings: `weight_g`/`weight_v`, `parametrizations.weight.original0`/`original1`, and plain `weight`.

    Returns:
        All other tensors unchanged, each pair as one `weight` of float32.

    Raises:
        CheckpointError: half of a pair is missing, or a weight is there in two spellings.
    """
    folded = dict(tensors)
    for gain_leaf, direction_leaf in WEIGHT_NORM_SPELLINGS:
        stems = {_stem(key, leaf) for key in tensors for leaf in (gain_leaf, direction_leaf) if _has_leaf(key, leaf)}
        for stem in sorted(stems):
            gain, direction = folded.pop(stem + gain_leaf, None), folded.pop(stem + direction_leaf, None)
            if gain is None or direction is None:
                absent, there = (gain_leaf, direction_leaf) if gain is None else (direction_leaf, gain_leaf)
                raise CheckpointError(f"expected {stem}{absent} beside {stem}{there}; download the checkpoint again")
            if stem + "weight" in folded:
                raise CheckpointError(f"{stem}weight is there both plain and weight-normalised; remove one spelling")
            folded[stem + "weight"] = WeightNorm(gain, direction)
    return folded


def _has_leaf(key: str, leaf: str) -> bool:
    return key == leaf or key.endswith("." + leaf)


def _stem(key: str, leaf: str) -> str:
    return key[: len(key) - len(leaf)]

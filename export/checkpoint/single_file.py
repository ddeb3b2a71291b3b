"""Two experts in one file: which tensors belong to the speech expert, by the markers that public code uses.

In: tensors of a file, a `MarkerRule` (given, or found in `FAMILIES`), the configuration of the merged model. Out: two
`LanguageModel`s. Nothing is copied between experts unless the rule allows it. Does not know: tokenizers, prompts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.keys import Tensors
from voxedge.export.checkpoint.qwen3 import LanguageModel, QwenConfig, build_language_model, layer_shapes
from voxedge.export.checkpoint.rearrange import Rows
from voxedge.export.checkpoint.tensors import LazyTensor

POSITIONS = ("suffix", "prefix", "infix")
COMPONENTS = frozenset({
    "model", "layers", "embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm",
    "self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "mlp", "gate_proj", "up_proj", "down_proj",
})  # fmt: skip
REFUSED = (
    (r"(^|\.)local_experts", "in Mixture-of-Transformers files norms act on sub-layer outputs, Qwen3's act on inputs"),
    (r"(^|\.)(wqkv|tok_embeddings)(_\w+)?\.", "convert InternLM2 names and its fused wqkv to Qwen3's names first"),
    (r"(^|\.)(\w*[qkvo]_proj\w*)\.bias$", "only bias-free Qwen3 projections are implemented, Qwen2 has biases"),
)


@dataclass(frozen=True, slots=True)
class MarkerRule:
    """How a file tells the experts apart."""

    speech_marker: str
    """Text that marks a component of a dotted key as the speech expert's; whole components for `infix`."""
    marker_position: str
    """`suffix` or `prefix` of a component, or `infix`: whole components of their own."""
    prefix: str = ""
    """Beginning of every key that is dropped, such as `language_model.`."""
    text_marker: str = ""
    """The text expert's marker, for `infix`; empty when its keys are plain."""
    shared: tuple[str, ...] = ()
    """Modules of a block that both experts deliberately share, such as `self_attn.q_norm`."""
    family: str = "given by the configuration"
    """Public code that writes such files, for messages."""


FAMILIES = (
    MarkerRule("_moe_gen", "suffix", family="BAGEL"),
    MarkerRule("_mot_gen", "suffix", family="Qwen3 mixture of transformers"),
    MarkerRule("moe_", "prefix", family="EVEv2"),
    MarkerRule("_ve", "suffix", family="Mono-InternVL"),
    MarkerRule("_speech", "suffix", family="suffix _speech"),
    MarkerRule("_y", "suffix", family="suffix _y"),
    MarkerRule("speech_", "prefix", family="prefix speech_"),
    MarkerRule("experts.1", "infix", text_marker="experts.0", family="numbered experts"),
    MarkerRule("speech_expert", "infix", text_marker="text_expert", family="named experts"),
)


@dataclass(frozen=True, slots=True)
class SpeechRows:
    """Where the speech rows of a merged embedding are."""

    offset: int
    """First row."""
    count: int
    """Number of rows."""
    tokenizer_length: int
    """Ids that the text tokenizer uses, for messages."""


def split_single_file(
    tensors: Tensors, rule: MarkerRule | None, config: QwenConfig, rows: SpeechRows, where: str, files: tuple[Path, ...]
) -> tuple[LanguageModel, LanguageModel, bool]:
    """Divide one file into its two experts.

    Args:
        tensors: by the names of the file.
        rule: how experts are marked; None looks for a known family.
        config: of the merged model; its vocab_size counts all rows.
        rows: speech rows inside the embedding; not used for matrices that are marked themselves.
        where: the checkpoint, for messages.
        files: where the tensors come from.

    Returns:
        Text expert, speech expert, and whether the final norm is marked (each expert has its own).

    Raises:
        CheckpointError: no or several families match, marks are incomplete, or rows lie outside the embedding.
    """
    _refuse_other_architectures(tensors, where)
    rule = rule or _detect(tensors, where)
    text, speech = _assign(tensors, rule, where)
    own_norm = "norm.weight" in speech
    _complete_layers(text, speech, config, rule, where)
    if "norm.weight" in text:
        speech.setdefault("norm.weight", text["norm.weight"])
    own_rows = [_split_matrix(name, text, speech, config, rows, where) for name in _matrices(config, text, speech)]
    text_rows = config.vocab_size if all(own_rows) else min(rows.offset, config.vocab_size)
    gate = speech["layers.0.mlp.gate_proj.weight"].shape
    speech_config = replace(config, vocab_size=rows.count, intermediate_size=gate[0] if gate else 0)
    return (
        build_language_model(replace(config, vocab_size=text_rows), text, f"{where} (text expert)", files),
        build_language_model(speech_config, speech, f"{where} (speech expert)", files),
        own_norm,
    )


def _refuse_other_architectures(tensors: Tensors, where: str) -> None:
    for pattern, why in REFUSED:
        match = next((key for key in tensors if re.search(pattern, key)), None)
        if match:
            raise CheckpointError(f"{where}: `{match}` is not supported: {why}")


def _detect(tensors: Tensors, where: str) -> MarkerRule:
    prefix = "language_model." if all(key.startswith("language_model.") for key in tensors) else ""
    found = [rule for rule in FAMILIES if any(_strip_marker(key.split("."), rule)[1] for key in tensors)]
    if len(found) != 1:
        known = ", ".join(f"{rule.speech_marker} ({rule.marker_position})" for rule in FAMILIES)
        raise CheckpointError(
            f"{where}: expected the speech expert's tensors to carry one of the markers {known}; found "
            f"{[rule.speech_marker for rule in found] or 'none'}; set `single_file` to prefix, speech_marker and "
            "marker_position in config.json"
        )
    return replace(found[0], prefix=prefix)


def _strip_marker(components: list[str], rule: MarkerRule) -> tuple[list[str], bool]:
    """Remove a marker; says whether the key is the speech expert's."""
    if rule.marker_position == "infix":
        speech = _without_run(components, rule.speech_marker.split("."))
        text = _without_run(components, rule.text_marker.split(".")) if rule.text_marker else None
        return speech or text or components, speech is not None
    for place, component in enumerate(components):
        cut = len(component) - len(rule.speech_marker)
        head, tail = (component[:cut], component[cut:])
        if rule.marker_position == "prefix":
            tail, head = component[: len(rule.speech_marker)], component[len(rule.speech_marker) :]
        if tail == rule.speech_marker and head in COMPONENTS:
            return [*components[:place], head, *components[place + 1 :]], True
    return components, False


def _without_run(components: list[str], run: list[str]) -> list[str] | None:
    for place in range(len(components) - len(run) + 1):
        if components[place : place + len(run)] == run:
            return components[:place] + components[place + len(run) :]
    return None


def _assign(tensors: Tensors, rule: MarkerRule, where: str) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    text: dict[str, LazyTensor] = {}
    speech: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        components, is_speech = _strip_marker(key.split("."), rule)
        name = ".".join(components)
        if not name.startswith(rule.prefix):
            raise CheckpointError(f"{where}: expected every key to begin with `{rule.prefix}`, found `{key}`")
        name = name[len(rule.prefix) :].removeprefix("model.")
        target = speech if is_speech else text
        if name in target:
            raise CheckpointError(f"{where}: `{key}` and another key both mean `{name}`; remove one of them")
        target[name] = tensor
    if not any(name.startswith("layers.") for name in speech):
        raise CheckpointError(
            f"{where}: expected modules marked `{rule.speech_marker}` ({rule.marker_position}), found none; "
            "check `single_file` in config.json"
        )
    return text, speech


def _complete_layers(
    text: Tensors, speech: dict[str, LazyTensor], config: QwenConfig, rule: MarkerRule, where: str
) -> None:
    """Give the speech expert the modules that it shares by design; anything else that is unmarked is an error."""
    names = list(layer_shapes(config))
    marked = {name for name in names if any(f"layers.{layer}.{name}" in speech for layer in range(config.layers))}
    for name in names:
        absent = [layer for layer in range(config.layers) if f"layers.{layer}.{name}" not in speech]
        if name in marked and absent:
            raise CheckpointError(
                f"{where}: `{name}` is marked `{rule.speech_marker}` in some layers but not in {absent[:12]}; "
                "the file is incomplete"
            )
    ffn_only = marked == {name for name in names if name.startswith("mlp.")}
    unmarked = [name for name in names if name not in marked]
    unexplained = [name for name in unmarked if not ffn_only and name.removesuffix(".weight") not in rule.shared]
    if unexplained:
        raise CheckpointError(
            f"{where}: expected every module of a block (or the feed-forward alone) to be marked "
            f"`{rule.speech_marker}`, not marked: {', '.join(unexplained)}; if both experts share them by design, list "
            "them in `single_file.shared`"
        )
    for name in unmarked:
        for layer in range(config.layers):
            key = f"layers.{layer}.{name}"
            if key in text:
                speech[key] = text[key]


def _matrices(config: QwenConfig, text: dict[str, LazyTensor], speech: dict[str, LazyTensor]) -> tuple[str, ...]:
    if not config.tied:
        return ("embed_tokens.weight", "lm_head.weight")
    for expert in (text, speech):  # a tied head may be repeated in the file; it is the embedding
        expert.pop("lm_head.weight", None)
    return ("embed_tokens.weight",)


def _split_matrix(
    name: str,
    text: dict[str, LazyTensor],
    speech: dict[str, LazyTensor],
    config: QwenConfig,
    rows: SpeechRows,
    where: str,
) -> bool:
    """Cut a merged matrix into the experts' rows; True when the speech expert has a matrix of its own."""
    if name in speech:
        return True
    if name not in text:
        raise CheckpointError(f"{where}: expected `{name}`, found no such tensor; download the checkpoint again")
    merged = text[name]
    total = merged.shape[0] if merged.shape else 0
    if total != config.vocab_size:
        raise CheckpointError(f"{where}: `{name}`: expected vocab_size = {config.vocab_size} rows, found {total}")
    if rows.offset + rows.count > total:
        raise CheckpointError(
            f"{where}: token_id_offset {rows.offset} + {rows.count} speech rows exceed the {total} rows of `{name}`. "
            f"Tokens added with tokenizer.add_tokens begin at len(tokenizer) = {rows.tokenizer_length} and overwrite "
            f"padding rows; rows appended to the matrix begin at {total - rows.count}. "
            "Set speech.token_id_offset in config.json to the one that training used"
        )
    text[name] = Rows(merged, 0, rows.offset)
    speech[name] = Rows(merged, rows.offset, rows.offset + rows.count)
    return False

"""Configuration of MOSS-TTS checkpoints: the delay model, and the local transformers v1 and v1.5.

In: `config.json`. Out: frozen records with every size and id. The files do not say by name which model they are (delay
and local v1 share their `model_type`), so fields that only one of them has decide. Does not read weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section
from voxedge.export.checkpoint.qwen3 import MAX_LAYERS, QwenConfig, parse_qwen3
from voxedge.runtime.systems.moss_settings import MossIds, MossKind

MODEL_TYPES = ("moss_tts_delay", "moss_tts_local")
MAX_CHANNELS = 256
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
DEFAULT_THETA = 1e6
_PER_HEAD = 80  # the class default of v1.5's local transformer


@dataclass(frozen=True, slots=True)
class GptConfig:
    """The local transformer of v1.5: GPT-2's block, as wide as the backbone."""

    width: int
    layers: int
    heads: int
    inner: int
    """Width of the feed-forward layer."""
    activation: str
    eps: float
    """Added to the variance in every norm."""
    rope_base: float | None
    """Base of the rotary wavelengths; None where positions are learned."""
    gate: Literal["binary", "full_vocab"]
    """Whether the decision to go on has a matrix of its own, or reads two rows of the text head."""


@dataclass(frozen=True, slots=True)
class DepthConfig:
    """The local transformer of v1: Qwen3 layers without positions, between gated projections."""

    language: QwenConfig
    """Sizes of the layers; heads are the backbone's."""
    projection: int
    """Inner width of the projections."""


@dataclass(frozen=True, slots=True)
class MossConfig:
    """Everything that `config.json` says."""

    kind: MossKind
    language: QwenConfig
    """The backbone."""
    codebooks: tuple[int, ...]
    """Codes of each audio channel, without the pad code."""
    pad_code: int
    ids: MossIds
    sample_rate: int
    """Of the codec that belongs to the model, in Hz."""
    local: GptConfig | DepthConfig | None
    """None for the delay model."""


def parse_moss(values: dict[str, Any], where: str) -> MossConfig:
    """Read a `config.json`.

    Raises:
        CheckpointError: a field is missing, invalid or unsupported.
    """
    section = Section(values, where)
    kind = _kind(section)
    language = _language(section, where)
    if kind == "local_v15":
        codebooks = _codebooks(section)
        pad = section.integer("audio_pad_token_id", section.integer("audio_pad_code", max(codebooks)))
        local: GptConfig | DepthConfig | None = _gpt(section, language)
    else:
        channels = section.integer("n_vq", 32, maximum=MAX_CHANNELS)
        codebooks = (section.integer("audio_vocab_size", 1024),) * channels
        pad = section.integer("audio_pad_code", codebooks[0])
        local = _depth(section, language) if kind == "local" else None
    if pad < max(codebooks) or (kind != "local_v15" and pad != codebooks[0]):
        raise CheckpointError(f"{where}: expected the pad code right behind the {max(codebooks)} codes, found {pad}")
    return MossConfig(
        kind=kind,
        language=language,
        codebooks=codebooks,
        pad_code=pad,
        ids=_ids(section, kind, language.vocab_size),
        sample_rate=section.integer("sampling_rate", 48000 if kind == "local_v15" else 24000),
        local=local,
    )


def _kind(section: Section) -> MossKind:
    if section.text("model_type", choices=MODEL_TYPES) == "moss_tts_local":
        return "local_v15"
    return "local" if "local_num_layers" in section else "delay"


def _language(section: Section, where: str) -> QwenConfig:
    name = "qwen3_config" if "qwen3_config" in section else "language_config"
    given = section.raw(name)
    if not isinstance(given, dict):
        raise section.fail(name, "the backbone's configuration")
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if given.get("rope_theta") is None and not (isinstance(rope, dict) and rope.get("rope_theta") is not None):
        given = {**given, "rope_theta": DEFAULT_THETA}
    language = parse_qwen3({"tie_word_embeddings": False, "model_type": "qwen3", **given}, f"{where}: {name}")
    return replace(language, tied=False)


def _codebooks(section: Section) -> tuple[int, ...]:
    channels = section.integer("n_vq", 12, maximum=MAX_CHANNELS)
    size = section.integer("audio_vocab_size", 1024)
    if "audio_codebook_sizes" not in section:
        return (size,) * channels
    values = section.raw("audio_codebook_sizes")
    if not isinstance(values, list) or not all(type(value) is int and 1 <= value <= 2**20 for value in values):
        raise section.fail("audio_codebook_sizes", "a list of sizes")
    if len(values) != channels:
        raise section.fail("audio_codebook_sizes", f"{channels} sizes, one for each channel")
    return tuple(values)


def _ids(section: Section, kind: MossKind, vocabulary: int) -> MossIds:
    newest = kind == "local_v15"
    slot = section.integer("audio_assistant_gen_slot_token_id", 151656)
    ids = MossIds(
        pad=section.integer("pad_token_id", 151643),
        im_start=section.integer("im_start_token_id", 151644),
        im_end=section.integer("im_end_token_id", 151645),
        audio_start=section.integer("audio_start_token_id", 151669 if newest else 151652),
        audio_end=section.integer("audio_end_token_id", 151670 if newest else 151653),
        user_slot=section.integer("audio_user_slot_token_id", 151654),
        gen_slot=section.integer("audio_assistant_slot_token_id", slot) if newest else slot,
        delay_slot=section.integer("audio_assistant_delay_slot_token_id", 151662) if kind == "delay" else None,
    )
    largest = max(value for value in ids.values() if value is not None)
    if largest >= vocabulary:
        raise CheckpointError(f"{section.where}: expected special ids below vocab_size {vocabulary}, found {largest}")
    return ids


def _depth(section: Section, language: QwenConfig) -> DepthConfig:
    layers = replace(
        language,
        hidden_size=section.integer("local_hidden_size", 1536),
        layers=section.integer("local_num_layers", 4, maximum=MAX_LAYERS),
        intermediate_size=section.integer("local_ffn_hidden_size", 8960),
    )
    return DepthConfig(layers, section.integer("additional_mlp_ffn_hidden_size", 2048))


def _gpt(section: Section, language: QwenConfig) -> GptConfig:
    gpt = section.section("gpt2_config", {})
    gpt.refuse_unless("scale_attn_weights", (True,), "attention is scaled by the root of the head width")
    gpt.refuse_unless("scale_attn_by_inverse_layer_idx", (False,), "attention is scaled alike in all layers")
    width = gpt.integer("n_embd", language.hidden_size)
    heads = gpt.integer("n_head", max(1, width // _PER_HEAD))
    if width != language.hidden_size or width % heads:
        raise gpt.fail("n_embd", f"the backbone's width {language.hidden_size}, divisible by n_head")
    rotary = gpt.text("position_embedding_type", "absolute", choices=("absolute", "rope")) == "rope"
    if rotary and (width // heads) % 2:
        raise gpt.fail("n_head", "heads of an even width for rotary positions")
    return GptConfig(
        width=width,
        layers=section.integer("local_transformer_layers", gpt.integer("n_layer", 1), maximum=MAX_LAYERS),
        heads=heads,
        inner=gpt.integer("n_inner", 4 * width),
        activation=gpt.text("activation_function", "silu", choices=ACTIVATIONS),
        eps=gpt.number("layer_norm_epsilon", 1e-6),
        rope_base=gpt.number("rope_base", 10000.0, minimum=1.0) if rotary else None,
        gate="binary"
        if section.text("local_text_head_mode", "binary", choices=("binary", "full_vocab")) == "binary"
        else "full_vocab",
    )

"""Qwen3 language models as Hugging Face folders store them.

In: a folder with weights and `config.json` (the dialect with top-level `rope_theta`, or that with `rope_parameters`).
Out: a frozen `QwenConfig` and the tensors under the names without the leading `model.`. Options that would change the
computation are refused by name, never ignored. Does not know: routing of experts, graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section, load_json
from voxedge.export.checkpoint.keys import Shape, select
from voxedge.export.checkpoint.tensors import LazyTensor
from voxedge.export.checkpoint.weight_files import open_weights

IGNORED_KEYS = (r"(.*\.)?rotary_emb\.inv_freq",)
MAX_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class QwenConfig:
    """Sizes and constants of a Qwen3 decoder."""

    hidden_size: int
    """Width of the residual stream."""
    layers: int
    """Decoder blocks."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; divides `heads`."""
    head_dim: int
    """Channels per head; heads * head_dim need not equal hidden_size."""
    intermediate_size: int
    """Width of the gated feed-forward layer."""
    rms_norm_eps: float
    """Added to the mean square in every norm."""
    rope_theta: float
    """Base of the rotary wavelengths."""
    vocab_size: int
    """Rows of the embedding and of the head."""
    max_positions: int
    """Longest sequence that the model was trained for, in tokens."""
    tied: bool
    """Whether the head is the embedding matrix."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A Qwen3 decoder: its sizes and its weights."""

    config: QwenConfig
    """Sizes and constants."""
    tensors: Mapping[str, LazyTensor]
    """Weights by canonical name (`embed_tokens.weight`, `layers.0.mlp.up_proj.weight`, ...); when tied,
    `lm_head.weight` is the same object as `embed_tokens.weight`."""
    files: tuple[Path, ...] = ()
    """Files that the weights come from."""


def load_qwen3(folder: Path) -> LanguageModel:
    """Open a Hugging Face Qwen3 folder.

    Args:
        folder: holds `config.json` and `model.safetensors`, or shards with their index.

    Raises:
        CheckpointError: an unsupported option, or weights that do not fit the configuration.
        MissingResourceError: a file is missing.
    """
    config = parse_qwen3(load_json(folder / "config.json"), str(folder / "config.json"))
    weights = open_weights(folder)
    tensors = {key.removeprefix("model."): tensor for key, tensor in weights.tensors.items()}
    if len(tensors) != len(weights.tensors):
        raise CheckpointError(f"{folder}: expected every tensor once, found some both with and without `model.`")
    return build_language_model(config, tensors, str(folder), (folder / "config.json", *weights.files))


def build_language_model(
    config: QwenConfig, tensors: Mapping[str, LazyTensor], where: str, files: tuple[Path, ...] = ()
) -> LanguageModel:
    """Check tensors under their canonical names against a configuration.

    Raises:
        CheckpointError: a tensor is missing, unknown or misshaped.
    """
    shapes = expected_shapes(config)
    given = dict(tensors)
    if config.tied and "embed_tokens.weight" in given:  # the file may or may not repeat the matrix
        given["lm_head.weight"] = given["embed_tokens.weight"]
    return LanguageModel(config, select(given, shapes, where, IGNORED_KEYS), files)


def layer_shapes(config: QwenConfig) -> dict[str, Shape]:
    """Shape of every tensor of one block, by its name inside the block."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "self_attn.q_norm.weight": (config.head_dim,),
        "self_attn.k_norm.weight": (config.head_dim,),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }


def expected_shapes(config: QwenConfig) -> dict[str, Shape]:
    """Shape of every tensor of a decoder, by canonical name."""
    rows: Shape = (config.vocab_size, config.hidden_size)
    shapes = {"embed_tokens.weight": rows}
    for layer in range(config.layers):
        shapes.update({f"layers.{layer}.{name}": shape for name, shape in layer_shapes(config).items()})
    return {**shapes, "norm.weight": (config.hidden_size,), "lm_head.weight": rows}


def parse_qwen3(values: object, where: str) -> QwenConfig:
    """Read a Qwen3 `config.json`.

    Args:
        values: its parsed content.
        where: the file, for messages.

    Raises:
        CheckpointError: a field is missing or invalid, or an option is not supported.
    """
    section = Section(values, where)
    section.text("model_type", choices=("qwen3",))
    layers = section.integer("num_hidden_layers", maximum=MAX_LAYERS)
    _refuse_variants(section, layers)
    config = QwenConfig(
        hidden_size=section.integer("hidden_size"),
        layers=layers,
        heads=section.integer("num_attention_heads"),
        kv_heads=section.integer("num_key_value_heads"),
        head_dim=section.integer("head_dim"),
        intermediate_size=section.integer("intermediate_size"),
        rms_norm_eps=section.number("rms_norm_eps"),
        rope_theta=_rope_theta(section),
        vocab_size=section.integer("vocab_size"),
        max_positions=section.integer("max_position_embeddings"),
        tied=section.boolean("tie_word_embeddings"),
    )
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise CheckpointError(
            f"{where}: expected num_attention_heads divisible by num_key_value_heads and an even head_dim, found "
            f"{config.heads}, {config.kv_heads} and {config.head_dim}"
        )
    return config


def _refuse_variants(section: Section, layers: int) -> None:
    section.refuse_unless("hidden_act", ("silu",), "Qwen3 uses silu")
    section.refuse_unless("attention_bias", (False,), "Qwen3 projections have no biases; is this a Qwen2 model?")
    section.refuse_unless("quantization_config", (), "give the unquantised release; voxedge quantises itself")
    section.refuse_unless("partial_rotary_factor", (1, 1.0), "Qwen3 rotates whole heads")
    if not section.boolean("use_sliding_window", False) or section.raw("sliding_window") is None:
        return
    kinds = section.texts("layer_types")
    sliding = "sliding_attention" in kinds if kinds else section.integer("max_window_layers", 28, minimum=0) < layers
    if sliding:
        raise CheckpointError(
            f"{section.where}: `use_sliding_window` is not supported: layers attend within "
            f"{section.raw('sliding_window')} tokens; use a checkpoint with full attention"
        )


def _rope_theta(section: Section) -> float:
    """The rotary base from either dialect; there is no default, because a wrong one only degrades the output."""
    thetas = set()
    for key in ("rope_parameters", "rope_scaling"):
        if key in section:
            rope = section.section(key)
            for spelling in ("rope_type", "type"):
                rope.refuse_unless(spelling, ("default",), "only unscaled rotary embedding is implemented")
            thetas |= {rope.number("rope_theta", minimum=1.0)} if "rope_theta" in rope else set()
            rope.refuse_unless("partial_rotary_factor", (1, 1.0), "Qwen3 rotates whole heads")
            rope.finish()
    thetas |= {section.number("rope_theta", minimum=1.0)} if "rope_theta" in section else set()
    if len(thetas) != 1:
        raise CheckpointError(
            f"{section.where}: expected one `rope_theta` (top level or in `rope_parameters`), found {sorted(thetas)}; "
            "Qwen3 releases use 1000000 or 5000000: copy it from the original config.json"
        )
    return float(thetas.pop())

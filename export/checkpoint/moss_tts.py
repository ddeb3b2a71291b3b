"""MOSS-TTS checkpoints: the delay model, and the local transformers v1 and v1.5, in one folder each.

In: a folder as its authors release it. Out: a frozen `MossCheckpoint`: sizes, ids, and lazily read tensors under names
that do not depend on the model. Does not know graphs or sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.export.checkpoint.config_file import load_json
from voxedge.export.checkpoint.keys import Shape, select, with_prefix
from voxedge.export.checkpoint.moss_config import DepthConfig, GptConfig, MossConfig, parse_moss
from voxedge.export.checkpoint.qwen3 import LanguageModel, QwenConfig, layer_shapes
from voxedge.export.checkpoint.rearrange import Rows, Stacked
from voxedge.export.checkpoint.tensors import LazyTensor
from voxedge.export.checkpoint.transforms import Zeros
from voxedge.export.checkpoint.weight_files import open_weights

DEAD_KEYS = (
    r"model\.language_model\.embed_tokens\.weight",  # local v1 stores a table that it never reads
    r"text_lm_head\.weight",
    r"audio_lm_heads\.\d+\.weight",  # v1.5 repeats tied tables
    r"(.*\.)?rotary_emb\.inv_freq",
)
DEFAULT_CODECS = {"local_v15": "OpenMOSS-Team/MOSS-Audio-Tokenizer-v2"}
DEFAULT_CODEC = "OpenMOSS-Team/MOSS-Audio-Tokenizer"
GATE = "local_text_lm_head.weight"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where one model keeps what all have."""

    backbone: str
    text_table: str
    audio_table: str
    """With {j} for the channel's number from 0, or {c} for that from 1."""
    text_head: str
    audio_head: str


_LAYOUTS = {
    "delay": _Layout(
        "language_model.", "language_model.embed_tokens.weight", "emb_ext.{j}.weight", "lm_heads.0.weight",
        "lm_heads.{c}.weight",
    ),
    "local": _Layout(
        "model.language_model.", "model.embedding_list.0.weight", "model.embedding_list.{c}.weight",
        "lm_heads.0.weight", "lm_heads.{c}.weight",
    ),
    "local_v15": _Layout(
        "transformer.", "transformer.embed_tokens.weight", "audio_embeddings.{j}.weight",
        "transformer.embed_tokens.weight", "audio_embeddings.{j}.weight",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MossCheckpoint:
    """Everything that one MOSS-TTS folder holds."""

    config: MossConfig
    backbone: LanguageModel
    """Layers and final norm; tables and heads are below."""
    tensors: Mapping[str, LazyTensor]
    """All tensors by the checkpoint's names."""
    text_table: LazyTensor
    """[V, H]."""
    audio_tables: tuple[LazyTensor, ...]
    """For each channel its codes and then the pad code, [A + 1, H]; v1.5 has no vector for the pad code, so its last
    row is zero."""
    text_head: LazyTensor
    """[V, H]."""
    audio_heads: tuple[LazyTensor, ...]
    """For each channel the rows that can be sampled, [A, H]."""
    tokenizer_file: Path
    codec: str
    """Name of the codec that the model was trained with."""
    source_files: tuple[Path, ...]
    """All files that were read, for hashing."""

    @property
    def audio_table(self) -> LazyTensor:
        """Tables of all channels below each other, and one row of zeros for a channel that is left out."""
        first = self.audio_tables[0]
        return Stacked((*self.audio_tables, Zeros((1, first.shape[1]), first.dtype)))

    @property
    def gate(self) -> LazyTensor:
        """Rows of v1.5 that decide to go on and to stop, [2, H]."""
        if GATE in self.tensors:
            return self.tensors[GATE]
        ids = self.config.ids
        return Stacked(tuple(Rows(self.text_head, row, row + 1) for row in (ids.gen_slot, ids.audio_end)))

    def local(self, prefix: str) -> dict[str, LazyTensor]:
        """Tensors below a prefix, by the rest of their names."""
        return with_prefix(self.tensors, prefix)


def load_moss_tts(folder: Path) -> MossCheckpoint:
    """Open a MOSS-TTS folder.

    Raises:
        CheckpointError: an unsupported option, or weights that do not fit the configuration.
        MissingResourceError: a file is missing.
    """
    config_file, tokenizer_file = folder / "config.json", folder / "tokenizer.json"
    config = parse_moss(load_json(config_file), str(config_file))
    load_json(tokenizer_file, max_bytes=256 << 20)
    weights = open_weights(folder)
    layout = _LAYOUTS[config.kind]
    shapes = expected_shapes(config)
    optional = {GATE: (2, config.language.hidden_size)} if _binary(config) and GATE in weights.tensors else {}
    tensors = select(weights.tensors, {**shapes, **optional}, str(folder), DEAD_KEYS)
    channels = range(len(config.codebooks))
    tables = [tensors[layout.audio_table.format(j=j, c=j + 1)] for j in channels]
    heads = [tensors[layout.audio_head.format(j=j, c=j + 1)] for j in channels]
    return MossCheckpoint(
        config=config,
        backbone=LanguageModel(config.language, _backbone(config, tensors, layout)),
        tensors=tensors,
        text_table=tensors[layout.text_table],
        audio_tables=tuple(_padded(table, size) for table, size in zip(tables, config.codebooks, strict=True)),
        text_head=tensors[layout.text_head],
        audio_heads=tuple(_unpadded(head, size) for head, size in zip(heads, config.codebooks, strict=True)),
        tokenizer_file=tokenizer_file,
        codec=_codec(folder, config),
        source_files=(config_file, tokenizer_file, *weights.files),
    )


def _binary(config: MossConfig) -> bool:
    return isinstance(config.local, GptConfig) and config.local.gate == "binary"


def _backbone(config: MossConfig, tensors: Mapping[str, LazyTensor], layout: _Layout) -> dict[str, LazyTensor]:
    names = [*_layers(config.language), "norm.weight"]
    return {name: tensors[layout.backbone + name] for name in names}


def _layers(config: QwenConfig) -> dict[str, Shape]:
    shapes = layer_shapes(config)
    return {f"layers.{layer}.{name}": shape for layer in range(config.layers) for name, shape in shapes.items()}


def expected_shapes(config: MossConfig) -> dict[str, Shape]:
    """Shape of every tensor that a checkpoint must hold, by its names there."""
    layout = _LAYOUTS[config.kind]
    width, vocabulary = config.language.hidden_size, config.language.vocab_size
    padded = 0 if config.kind == "local_v15" else 1
    shapes: dict[str, Shape] = {layout.text_table: (vocabulary, width), layout.text_head: (vocabulary, width)}
    shapes.update({layout.backbone + name: shape for name, shape in _layers(config.language).items()})
    shapes[f"{layout.backbone}norm.weight"] = (width,)
    for j, size in enumerate(config.codebooks):
        for name in (layout.audio_table, layout.audio_head):
            shapes[name.format(j=j, c=j + 1)] = (size + padded, width)
    if isinstance(config.local, DepthConfig):
        shapes.update(_depth_shapes(config.local, width, len(config.codebooks)))
    if isinstance(config.local, GptConfig):
        shapes.update(_gpt_shapes(config.local, len(config.codebooks)))
    return shapes


def _depth_shapes(local: DepthConfig, width: int, channels: int) -> dict[str, Shape]:
    inner, narrow = local.projection, local.language.hidden_size
    shapes = {f"local_transformer.{name}": shape for name, shape in _layers(local.language).items()}
    shapes["local_transformer.norm.weight"] = (narrow,)
    shapes.update(_gated("speech_embedding_to_local_mlp", width, inner, narrow))
    for c in range(channels + 1):
        shapes.update(_gated(f"local_to_speech_embedding_mlps.{c}", narrow, inner, width))
        shapes[f"layer_norm_before_lm_heads.{c}.weight"] = (width,)
    return shapes


def _gated(name: str, inputs: int, inner: int, outputs: int) -> dict[str, Shape]:
    return {
        f"{name}.gate_proj.weight": (inner, inputs),
        f"{name}.up_proj.weight": (inner, inputs),
        f"{name}.down_proj.weight": (outputs, inner),
    }


def _gpt_shapes(local: GptConfig, channels: int) -> dict[str, Shape]:
    width = local.width
    linears = {
        "attn.c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "mlp.fc_in": (local.inner, width),
        "mlp.fc_out": (width, local.inner),
    }
    shapes: dict[str, Shape] = {}
    for layer in range(local.layers):
        for name, shape in linears.items():
            shapes[f"local_transformer.h.{layer}.{name}.weight"] = shape
            shapes[f"local_transformer.h.{layer}.{name}.bias"] = shape[:1]
    norms = [f"h.{layer}.{name}" for layer in range(local.layers) for name in ("ln_1", "ln_2")]
    for name in (*norms, "ln_f"):
        shapes[f"local_transformer.{name}.weight"] = shapes[f"local_transformer.{name}.bias"] = (width,)
    if local.rope_base is None:
        shapes["local_transformer.wpe.weight"] = (channels + 1, width)
    return shapes


def _padded(table: LazyTensor, size: int) -> LazyTensor:
    if table.shape[0] > size:
        return table
    return Stacked((table, Zeros((1, table.shape[1]), table.dtype)))


def _unpadded(head: LazyTensor, size: int) -> LazyTensor:
    return head if head.shape[0] == size else Rows(head, 0, size)


def _codec(folder: Path, config: MossConfig) -> str:
    """Name of the codec: `processor_config.json` gives it, at its top or below `audio_tokenizer`."""
    default = DEFAULT_CODECS.get(config.kind, DEFAULT_CODEC)
    file = folder / "processor_config.json"
    values = load_json(file) if file.is_file() else {}
    nested = values.get("audio_tokenizer")
    for place in (values, nested if isinstance(nested, dict) else {}):
        found = place.get("audio_tokenizer_name_or_path")
        if isinstance(found, str) and 0 < len(found) <= 200:
            return found
    return default

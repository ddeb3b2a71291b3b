"""MOSS-Audio-Tokenizer as its folder stores it: a list of modules for each direction, and a residual quantiser.

In: a folder with `config.json` and weights. Out: a frozen `CodecConfig` and the tensors by canonical name, weight
normalisation folded. The lists of modules are the file's own, never a default. Options that would change the
computation are refused by name. Does not know: graphs, language models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section, load_json
from voxedge.export.checkpoint.keys import Rule, Shape, fold_weight_norm, rename, select
from voxedge.export.checkpoint.tensors import LazyTensor
from voxedge.export.checkpoint.weight_files import open_weights

MODEL_TYPES = ("speech_tokenizer", "moss-audio-tokenizer")
MAX_LAYERS = 1000
MAX_MODULES = 64
MAX_CODEBOOKS = 256

SPELLINGS = (
    Rule(r"\.self_attn\.in_proj(?:s\.0\.weight|_weight|\.weight)$", ".attn.qkv.weight"),
    Rule(r"\.self_attn\.out_proj(?:s\.0)?\.weight$", ".attn.out.weight"),
    Rule(r"\.transformer\.layers\.", ".layers."),
)
"""Old and new names of the attention's matrices to the one that voxedge uses."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A change of the frame rate: `size` neighbouring frames become one, or the other way round."""

    size: int


@dataclass(frozen=True, slots=True)
class Transformer:
    """A stack of causal layers at one frame rate."""

    inputs: int
    """Channels that come in."""
    width: int
    """Of the residual stream."""
    outputs: int
    """Channels that go out."""
    heads: int
    layers: int
    inner: int
    """Width of the feed-forward layer."""
    period: float
    """Base of the rotary wavelengths."""
    window: int
    """Positions that one sees, its own included."""
    rate: int
    """Positions of one frame of codes."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def context(self) -> int:
        """Whole frames of codes that hold the earlier positions of a window."""
        return -(-(self.window - 1) // self.rate)


Module = Patch | Transformer


@dataclass(frozen=True, slots=True)
class Quantiser:
    """Residual vector quantisation with factorised, normalised codes."""

    inputs: int
    """Channels of the encoder's result."""
    width: int
    """Of the residual."""
    outputs: int
    """Channels that the decoder takes."""
    codebooks: int
    size: int
    """Entries of a codebook."""
    dim: int
    """Channels of an entry."""


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Sizes and constants of the codec."""

    sample_rate: int
    """In Hz."""
    hop: int
    """Samples of a frame of codes."""
    encoder: tuple[Module, ...]
    decoder: tuple[Module, ...]
    quantiser: Quantiser

    @property
    def context(self) -> int:
        """Earlier frames that a state must hold, so that every window of every stack is complete."""
        stacks = [module for module in (*self.encoder, *self.decoder) if isinstance(module, Transformer)]
        return max((stack.context for stack in stacks), default=0)


@dataclass(frozen=True, slots=True)
class CodecCheckpoint:
    """A codec: its sizes and its weights."""

    config: CodecConfig
    tensors: Mapping[str, LazyTensor]
    """Weights by canonical name, such as `decoder.0.layers.3.attn.qkv.weight`."""
    files: tuple[Path, ...]
    """Files that were read."""


def load_moss_codec(folder: Path) -> CodecCheckpoint:
    """Open a folder of MOSS-Audio-Tokenizer.

    Raises:
        CheckpointError: An unsupported option, or weights that do not fit the configuration.
        MissingResourceError: A file is missing.
    """
    config = parse_moss_codec(load_json(folder / "config.json"), str(folder / "config.json"))
    weights = open_weights(folder)
    tensors = rename(fold_weight_norm(weights.tensors), SPELLINGS)
    chosen = select(tensors, expected_shapes(config), str(folder))
    return CodecCheckpoint(config, chosen, (folder / "config.json", *weights.files))


def parse_moss_codec(values: object, where: str) -> CodecConfig:
    """Read a `config.json`.

    Args:
        values: Its parsed content.
        where: The file, for messages.

    Raises:
        CheckpointError: A field is missing or invalid, or an option is not supported.
    """
    section = Section(values, where)
    section.refuse_unless("number_channels", (1,), "the stereo codec (v2) has no public description")
    section.refuse_unless("quantizer_type", ("rlfq",), "only the factorised residual quantiser is known")
    rate = section.integer("sampling_rate" if "sampling_rate" in section else "sample_rate", maximum=1_000_000)
    hop = section.integer("downsample_rate")
    context_s = section.number("causal_transformer_context_duration")
    encoder, left = _modules(section, "encoder_kwargs", float(rate), hop, context_s, "down")
    # The reference goes on from the rate that the encoder ended with, a float; so do we.
    decoder, top = _modules(section, "decoder_kwargs", left, 1, context_s, "up")
    if not math.isclose(top, rate):
        raise CheckpointError(
            f"{where}: expected patches of the decoder that lead back to {rate} Hz, found {top:g}; copy decoder_kwargs "
            "from the original config.json"
        )
    quantiser = _quantiser(section.section("quantizer_kwargs"))
    _check_widths(where, encoder, decoder, quantiser)
    return CodecConfig(rate, hop, encoder, decoder, quantiser)


def _modules(
    section: Section, key: str, rate: float, positions: int, context_s: float, way: Literal["down", "up"]
) -> tuple[tuple[Module, ...], float]:
    """The modules of one direction and the rate in Hz that they end with; a frame of codes has `positions` at first."""
    entries = section.raw(key)
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_MODULES:
        raise section.fail(key, f"a list of 1 to {MAX_MODULES} modules")
    modules: list[Module] = []
    for number, entry in enumerate(entries):
        part = Section(entry, f"{section.where}: {key}[{number}]")
        if part.text("module_type", choices=("PatchedPretransform", "Transformer")) == "Transformer":
            modules.append(_transformer(part, int(rate * context_s), positions))
            continue
        size = part.integer("patch_size")
        if way == "down" and positions % size:
            raise part.fail("patch_size", f"a divisor of the {positions} positions that are left of a frame")
        rate, positions = (rate / size, positions // size) if way == "down" else (rate * size, positions * size)
        modules.append(Patch(size))
        part.finish()
    if way == "down" and positions != 1:
        raise section.fail(key, f"patches whose product is downsample_rate; {positions} positions of a frame are left")
    return tuple(modules), rate


def _transformer(part: Section, window: int, positions: int) -> Transformer:
    part.refuse_unless("causal", (True,), "the codec streams only if every layer is causal")
    part.refuse_unless("norm", ("layer_norm",), "only layer normalisation is implemented")
    part.refuse_unless("positional_embedding", ("rope",), "only rotary embedding is implemented")
    part.refuse_unless("gating", ("none",), "only the plain feed-forward layer is implemented")
    part.ignore(("conv_layout",))
    part.number("layer_scale")  # the value it was trained from; without one there would be no scale at all
    stack = Transformer(
        inputs=part.integer("input_dimension"),
        width=part.integer("d_model"),
        outputs=part.integer("output_dimension"),
        heads=part.integer("num_heads"),
        layers=part.integer("num_layers", maximum=MAX_LAYERS),
        inner=part.integer("dim_feedforward"),
        period=part.number("max_period", 10000.0, minimum=1.0),
        window=window,
        rate=positions,
    )
    part.finish()
    if stack.width % (2 * stack.heads) or window < 1:
        raise CheckpointError(
            f"{part.where}: expected d_model divisible by twice num_heads and a window of 1 position or more, found "
            f"{stack.width}, {stack.heads} and {window}"
        )
    return stack


def _quantiser(part: Section) -> Quantiser:
    part.refuse_unless("quantizer_type", ("rlfq",), "only the factorised residual quantiser is known")
    found = Quantiser(
        inputs=part.integer("input_dim"),
        width=part.integer("rvq_dim"),
        outputs=part.integer("output_dim"),
        codebooks=part.integer("num_quantizers", maximum=MAX_CODEBOOKS),
        size=part.integer("codebook_size", maximum=2**20),
        dim=part.integer("codebook_dim"),
    )
    part.finish()
    return found


def _check_widths(where: str, encoder: Sequence[Module], decoder: Sequence[Module], quantiser: Quantiser) -> None:
    """Every module must take as many channels as the one before it gives."""
    ends = _width(f"{where}: encoder_kwargs", encoder, 1, "down"), quantiser.inputs
    starts = _width(f"{where}: decoder_kwargs", decoder, quantiser.outputs, "up"), 1
    for key, (found, wanted) in (("encoder_kwargs", ends), ("decoder_kwargs", starts)):
        if found != wanted:
            raise CheckpointError(f"{where}: expected {key} to end with {wanted} channels, found {found}")


def _width(where: str, modules: Sequence[Module], channels: int, way: Literal["down", "up"]) -> int:
    """Channels after all modules."""
    for number, module in enumerate(modules):
        left, rest = channels, 0
        if isinstance(module, Transformer):
            rest, channels = channels - module.inputs, module.outputs
        elif way == "down":
            channels *= module.size
        else:
            channels, rest = divmod(channels, module.size)
        if rest:
            raise CheckpointError(f"{where}[{number}]: cannot take the {left} channels before it")
    return channels


def expected_shapes(config: CodecConfig) -> dict[str, Shape]:
    """Shape of every tensor, by canonical name."""
    shapes: dict[str, Shape] = {}
    for side, modules in (("encoder", config.encoder), ("decoder", config.decoder)):
        for number, module in enumerate(modules):
            if isinstance(module, Transformer):
                shapes.update({f"{side}.{number}.{name}": shape for name, shape in _stack_shapes(module).items()})
    quantiser = config.quantiser
    shapes.update(_point("quantizer.input_proj", quantiser.width, quantiser.inputs))
    shapes.update(_point("quantizer.output_proj", quantiser.outputs, quantiser.width))
    for number in range(quantiser.codebooks):
        name = f"quantizer.quantizers.{number}"
        shapes.update(_point(f"{name}.in_proj", quantiser.dim, quantiser.width))
        shapes.update(_point(f"{name}.out_proj", quantiser.width, quantiser.dim))
        shapes[f"{name}.codebook.weight"] = (quantiser.size, quantiser.dim)
    return shapes


def _stack_shapes(stack: Transformer) -> dict[str, Shape]:
    width, shapes = stack.width, dict[str, Shape]()
    if stack.inputs != width:
        shapes["input_proj.weight"] = (width, stack.inputs)
    if stack.outputs != width:
        shapes["output_proj.weight"] = (stack.outputs, width)
    for layer in range(stack.layers):
        name = f"layers.{layer}"
        for norm in ("norm1", "norm2"):
            shapes[f"{name}.{norm}.weight"] = shapes[f"{name}.{norm}.bias"] = (width,)
        shapes[f"{name}.attn.qkv.weight"] = (3 * width, width)
        shapes[f"{name}.attn.out.weight"] = (width, width)
        shapes[f"{name}.linear1.weight"] = (stack.inner, width)
        shapes[f"{name}.linear2.weight"] = (width, stack.inner)
        shapes[f"{name}.layer_scale_1.scale"] = shapes[f"{name}.layer_scale_2.scale"] = (width,)
    return shapes


def _point(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    """A convolution of width 1; where it would not change the width there is none."""
    return {} if outputs == inputs else {f"{name}.weight": (outputs, inputs, 1), f"{name}.bias": (outputs,)}

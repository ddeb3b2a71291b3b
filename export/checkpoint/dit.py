"""The diffusion transformer of Stable Audio, as data: configuration, diffusion settings, and its tensors' shapes.

In: nothing. Out: frozen records that every layout of files is read into, and the canonical names, which are
stable-audio-tools' without the leading `model.model.`. Does not know: files, graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section
from voxedge.export.checkpoint.keys import Shape
from voxedge.export.checkpoint.tensors import LazyTensor

OBJECTIVES = ("edm", "v", "rectified_flow")
IGNORED_KEYS = (r"transformer\.rotary_pos_emb\.(inv_freq|scale)",)


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Sizes and variants of a diffusion transformer."""

    io_channels: int
    """Latent channels in and out."""
    embed_dim: int
    """Width of the residual stream."""
    depth: int
    """Transformer blocks."""
    num_heads: int
    """Attention heads; they divide embed_dim."""
    rotary_dim: int
    """Leading channels of each head that are rotated: max(head_dim // 2, 32) in stable-audio-tools, head_dim // 2 in
    diffusers."""
    patch_size: int = 1
    """Latent frames per transformer position."""
    cond_token_dim: int = 0
    """Channels of the cross-attention tokens; 0 without cross attention."""
    project_cond_tokens: bool = True
    """Whether those tokens are projected to embed_dim, or to cond_token_dim."""
    global_cond_dim: int = 0
    """Channels of the global conditioning; 0 without."""
    project_global_cond: bool = True
    """Whether global conditioning is projected to embed_dim (otherwise it already has that width)."""
    input_concat_dim: int = 0
    """Channels concatenated after the latent channels."""
    prepend_cond_dim: int = 0
    """Channels of the tokens prepended to the sequence; 0 without."""
    global_cond_type: str = "prepend"
    """How time and global conditioning enter: "prepend" (one more position) or "adaLN" (scale, shift, gate)."""
    timestep_features_dim: int = 256
    """Fourier features of the noise level, cosines first."""
    num_memory_tokens: int = 0
    """Learned positions in front of everything."""
    qk_norm: str = "none"
    """Normalisation of queries and keys: "none", "l2" or "ln"."""
    ff_mult: int = 4
    """Width of the feed-forward layer in units of embed_dim."""

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.embed_dim // self.num_heads

    @property
    def cross_attention(self) -> bool:
        """Whether blocks attend to conditioning tokens."""
        return self.cond_token_dim > 0

    @property
    def cond_embed_dim(self) -> int:
        """Channels of the projected conditioning tokens; 0 without cross attention."""
        return self.embed_dim if self.project_cond_tokens and self.cross_attention else self.cond_token_dim

    @property
    def cross_kv_heads(self) -> int:
        """Key and value heads of the cross attention; 0 without."""
        return self.cond_embed_dim // max(self.head_dim, 1)

    def validate(self, where: str) -> DitConfig:
        """Check sizes that depend on each other.

        Raises:
            CheckpointError: names the sizes that do not fit.
        """
        problems = {
            "num_heads must divide embed_dim": self.embed_dim % self.num_heads,
            "the head width must divide the conditioning width": self.cond_embed_dim % max(self.head_dim, 1),
            "cross-attention heads must divide num_heads": self.cross_attention
            and (not self.cross_kv_heads or self.num_heads % self.cross_kv_heads),
            "rotary_dim must be even and at most the head width": self.rotary_dim % 2
            or self.rotary_dim > self.head_dim,
            "unprojected global conditioning must have embed_dim channels": self.global_cond_dim
            and not self.project_global_cond
            and self.global_cond_dim != self.embed_dim,
            "timestep_features_dim must be even": self.timestep_features_dim % 2,
        }
        wrong = [text for text, bad in problems.items() if bad]
        if wrong:
            raise CheckpointError(f"{where}: {'; '.join(wrong)}: found {self}")
        return self


@dataclass(frozen=True, slots=True)
class DiffusionSettings:
    """What the network predicts and over which noise levels (Karras et al. 2022, table 1)."""

    objective: str
    """"edm", "v" (VP-preconditioned velocity, sigma_data 1) or "rectified_flow"."""
    sigma_data: float
    """Standard deviation of the latents that the preconditioning assumes."""
    sigma_min: float
    """Last non-zero noise level."""
    sigma_max: float
    """First noise level."""
    rho: float
    """Curvature of the schedule."""


DEFAULT_SETTINGS = {
    "edm": DiffusionSettings("edm", 0.5, 0.002, 80.0, 7.0),
    "v": DiffusionSettings("v", 1.0, 0.01, 100.0, 1.0),
    "rectified_flow": DiffusionSettings("rectified_flow", 1.0, 0.0, 1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class DitCheckpoint:
    """A diffusion transformer with the embedding of the speech tokens that condition it."""

    config: DitConfig
    """Sizes and variants."""
    diffusion: DiffusionSettings
    """Objective and noise levels."""
    route: str
    """How speech tokens enter: "input_concat", "cross_attention" or "prepend"."""
    tensors: Mapping[str, LazyTensor]
    """Weights by canonical name."""
    token_table: LazyTensor
    """Embedding of the speech tokens, [num_tokens, channels]."""
    frame_rate: float | None
    """Speech tokens per second; None where the files do not say."""
    latent_scale: float | None
    """Factor on latents before the vocoder, where the checkpoint includes the vocoder's settings; None otherwise."""
    files: tuple[Path, ...]
    """Files that were read."""


def override_settings(base: DiffusionSettings, section: Section) -> DiffusionSettings:
    """Settings with some fields replaced by a configuration's.

    Args:
        base: used for fields that the section lacks; a different objective brings its own defaults.
        section: may hold objective, sigma_data, sigma_min, sigma_max, rho.

    Raises:
        CheckpointError: unknown objective, field or an empty range of noise levels.
    """
    objective = section.text("objective", base.objective, OBJECTIVES)
    base = base if objective == base.objective else DEFAULT_SETTINGS[objective]
    names = ("sigma_data", "sigma_min", "sigma_max", "rho")
    sigma_data, sigma_min, sigma_max, rho = (section.number(name, getattr(base, name)) for name in names)
    settings = DiffusionSettings(objective, sigma_data, sigma_min, sigma_max, rho)
    section.finish()
    if not settings.sigma_min < settings.sigma_max or not settings.rho or not settings.sigma_data:
        raise CheckpointError(
            f"{section.where}: expected sigma_min < sigma_max, rho and sigma_data above 0: {settings}"
        )
    return settings


def expected_shapes(config: DitConfig) -> dict[str, Shape]:
    """Shape of every tensor, by canonical name."""
    dim, io = config.embed_dim, config.io_channels
    inputs = io + config.input_concat_dim
    shapes: dict[str, Shape] = {
        "timestep_features.weight": (config.timestep_features_dim // 2, 1),
        **_mlp("to_timestep_embed", (config.timestep_features_dim, dim, dim), biased=True),
        "preprocess_conv.weight": (inputs, inputs, 1),
        "postprocess_conv.weight": (io, io, 1),
        "transformer.project_in.weight": (dim, inputs * config.patch_size),
        "transformer.project_out.weight": (io * config.patch_size, dim),
    }
    if config.cross_attention:
        width = config.cond_embed_dim
        shapes.update(_mlp("to_cond_embed", (config.cond_token_dim, width, width)))
    if config.global_cond_dim:
        shapes.update(_mlp("to_global_embed", (config.global_cond_dim, dim, dim)))
    if config.prepend_cond_dim:
        shapes.update(_mlp("to_prepend_embed", (config.prepend_cond_dim, dim, dim)))
    if config.num_memory_tokens:
        shapes["transformer.memory_tokens"] = (config.num_memory_tokens, dim)
    if config.global_cond_type == "adaLN":
        shapes.update(_mlp("transformer.global_cond_embedder", (dim, dim, 6 * dim), biased=True))
    for layer in range(config.depth):
        shapes.update({f"transformer.layers.{layer}.{name}": each for name, each in layer_shapes(config).items()})
    return shapes


def layer_shapes(config: DitConfig) -> dict[str, Shape]:
    """Shape of every tensor of one block, by its name inside the block."""
    dim, inner = config.embed_dim, config.ff_mult * config.embed_dim
    shapes: dict[str, Shape] = {**_norm("pre_norm", dim), "self_attn.to_qkv.weight": (3 * dim, dim)}
    shapes.update({"self_attn.to_out.weight": (dim, dim), **_qk_norm("self_attn", config)})
    if config.cross_attention:
        shapes.update(_norm("cross_attend_norm", dim))
        shapes["cross_attn.to_q.weight"] = (dim, dim)
        shapes["cross_attn.to_kv.weight"] = (2 * config.cond_embed_dim, config.cond_embed_dim)
        shapes.update({"cross_attn.to_out.weight": (dim, dim), **_qk_norm("cross_attn", config)})
    shapes.update(_norm("ff_norm", dim))
    shapes.update({"ff.ff.0.proj.weight": (2 * inner, dim), "ff.ff.0.proj.bias": (2 * inner,)})
    shapes.update({"ff.ff.2.weight": (dim, inner), "ff.ff.2.bias": (dim,)})
    if config.global_cond_type == "adaLN":
        shapes["to_scale_shift_gate"] = (6 * dim,)
    return shapes


def _mlp(name: str, widths: tuple[int, int, int], biased: bool = False) -> dict[str, Shape]:
    first, middle, last = widths
    shapes: dict[str, Shape] = {f"{name}.0.weight": (middle, first), f"{name}.2.weight": (last, middle)}
    return {**shapes, f"{name}.0.bias": (middle,), f"{name}.2.bias": (last,)} if biased else shapes


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.gamma": (width,), f"{name}.beta": (width,)}


def _qk_norm(name: str, config: DitConfig) -> dict[str, Shape]:
    if config.qk_norm != "ln":
        return {}
    leaves = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")
    return {f"{name}.{leaf}": (config.head_dim,) for leaf in leaves}

"""Settings of a MoE-TTS bundle: what export writes into the manifest and the runtime reads.

In: the manifest's `settings`. Out: frozen records. Knows no graphs and no files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SYSTEM = "moe_tts"


@dataclass(frozen=True, slots=True)
class SpeechSettings:
    """Speech tokens and how they end."""

    num_tokens: int
    """Codec tokens; head columns from here on are control rows."""
    frame_rate: float
    """Tokens per second."""
    eos_column: int
    """Column of the logits that ends an utterance."""
    eos_text_id: int | None = None
    """The end token's id among the text tokens; None where it is a speech row."""


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Texts around what the user says."""

    system: str
    """System turn; empty for none."""
    user_template: str
    """User turn with {description} and {text}."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How speech tokens are drawn unless the user says otherwise (CosyVoice2's repetition-aware sampling)."""

    temperature: float = 1.0
    top_k: int = 25
    top_p: float = 0.8
    ras_window: int = 10
    ras_tau: float = 0.1
    min_tokens: int = 2
    max_tokens: int = 750
    """30 seconds at 25 tokens per second."""


@dataclass(frozen=True, slots=True)
class DiffusionSettings:
    """What the decoder was trained to predict, and how it is solved unless the user says otherwise."""

    objective: Literal["edm", "v", "rectified_flow"]
    sigma_data: float
    """Standard deviation of the latents."""
    sigma_min: float
    """Last noise level before 0."""
    sigma_max: float
    """First noise level."""
    rho: float
    """Curvature of the schedule."""
    schedule: Literal["karras", "polyexponential"] = "karras"
    solver: Literal["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"] = "dpmpp_2m"
    steps: int = 16
    """Solver steps; more is slower and finer."""
    cfg_scale: float = 1.0
    """Guidance; 1 is off and needs half the work."""
    route: Literal["input_concat", "cross_attention", "prepend"] = "input_concat"
    """How the speech tokens enter the network."""


@dataclass(frozen=True, slots=True)
class VocoderSettings:
    """The autoencoder."""

    sample_rate: int
    """In Hz."""
    channels: int
    """Of the waveform."""
    strides: tuple[int, ...]
    """In the order of the encoder; their product is the samples of one latent."""
    latent_channels: int
    scale: float = 1.0
    """Latents are multiplied by it before decoding and divided by it after encoding."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How latents are made and decoded while tokens still come."""

    stream_s: float = 2.0
    """Seconds that the bidirectional decoder makes at once in a stream."""
    context_s: float = 1.0
    """Seconds before a window that it also sees."""
    lookahead_s: float = 0.4
    """Seconds behind a window that it also sees; they delay the first audio."""
    chunk_latents: int = 50
    """Latents of one vocoder call; fewer is less delay and more overlap work."""


@dataclass(frozen=True, slots=True)
class MoeTtsSettings:
    """Everything that is not in the graphs."""

    speech: SpeechSettings
    prompt: PromptSettings
    max_context: int
    """Tokens of prompt and speech together."""
    diffusion: DiffusionSettings | None = None
    """None in a bundle of the language model alone."""
    vocoder: VocoderSettings | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)

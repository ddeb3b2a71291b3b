"""Settings of a MoE-TTS bundle: what export writes into the manifest and the runtime reads.

In: the manifest's `settings`. Out: frozen records, whose every number can be worked with. Knows no graphs and no files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from voxedge.engines.errors import ConfigError
from voxedge.engines.records import LARGEST, TINY, check_range
from voxedge.runtime.sampling import SamplingConfig

SYSTEM = "moe_tts"

RECOMMENDED_SAMPLING = SamplingConfig(top_k=25, top_p=0.8, ras_window=10, ras_tau=0.1, min_tokens=2, max_tokens=750)
"""Repetition-aware nucleus sampling as CosyVoice 2 does it; the paper of MoE-TTS does not say."""


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

    def __post_init__(self) -> None:
        check_range(self, "settings", num_tokens=1, frame_rate=TINY, eos_column=0)


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Texts around what the user says."""

    system: str
    """System turn; empty for none."""
    user_template: str
    """User turn with {description} and {text}."""
    max_text_tokens: int | None = None
    """Most tokens of text that are spoken at once; longer text is cut. None: a quarter of the context."""
    single_sentences: bool = False
    """Whether the model has only ever spoken one sentence at a time: then a text is cut behind every sentence."""

    def __post_init__(self) -> None:
        if self.max_text_tokens is not None:
            check_range(self, "settings", max_text_tokens=1)


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

    def __post_init__(self) -> None:
        check_range(self, "settings", sigma_data=TINY, sigma_min=0, sigma_max=TINY, rho=TINY, steps=1, cfg_scale=0)


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

    def __post_init__(self) -> None:
        check_range(self, "settings", sample_rate=1, channels=1, latent_channels=1, scale=TINY)
        if not self.strides or not all(1 <= stride <= LARGEST for stride in self.strides):
            raise ConfigError(f"settings: expected strides above 0, found {self.strides[:9]}; export the bundle again")


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How latents are made and decoded while tokens still come."""

    stream_s: float = 1.0
    """Seconds that the bidirectional decoder makes at once in a stream."""
    context_s: float = 1.0
    """Seconds before a window that it also sees."""
    lookahead_s: float = 0.4
    """Seconds behind a window that it also sees; they delay the first audio."""
    chunk_latents: int = 25
    """Latents of one vocoder call; fewer is less delay and more overlap work."""

    def __post_init__(self) -> None:
        check_range(self, "settings", stream_s=TINY, context_s=0, lookahead_s=0, chunk_latents=1)


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
    sampling: SamplingConfig = RECOMMENDED_SAMPLING
    """How speech tokens are drawn unless the user says otherwise."""
    windows: WindowSettings = field(default_factory=WindowSettings)

    def __post_init__(self) -> None:
        check_range(self, "settings", max_context=1)

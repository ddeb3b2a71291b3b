"""What one request may change; everything else is the bundle's.

In: options of a call. Out: one frozen record. Knows no system.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from voxedge.engines.errors import ConfigError
from voxedge.runtime.sampling import SamplingConfig
from voxedge.runtime.solvers import Kind


@dataclass(frozen=True, slots=True)
class SynthesisConfig:
    """Options of one call; `Synthesizer.default_config` holds the bundle's own values."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How speech tokens are drawn."""
    text_sampling: SamplingConfig | None = None
    """How text tokens, or the decision to go on, are drawn where a system draws such; None for the bundle's own."""
    steps: int = 16
    """Solver steps of the decoder; more is slower and finer."""
    cfg_scale: float = 1.0
    """Guidance of the decoder; 1 is off."""
    solver: Kind = "dpmpp_2m"
    """Solver of the decoder."""
    sentence_pause_s: float = 0.2
    """Silence between the pieces of a long text, in seconds."""
    window_s: float | None = None
    """Seconds of speech that the decoder makes at once. None: `synthesize` takes as much as the decoder can, which is
    best, and `stream` takes the bundle's streaming window, which starts sooner. Set it to get the same from both."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.cfg_scale <= 100.0:
            raise ConfigError(f"expected a guidance scale of 0 .. 100, found {self.cfg_scale}; 1 is off")
        if not 0.0 <= self.sentence_pause_s <= 60.0:
            raise ConfigError(f"expected a pause of 0 .. 60 seconds, found {self.sentence_pause_s}")
        if self.window_s is not None and not 0.1 <= self.window_s <= 600.0:
            raise ConfigError(f"expected a window of 0.1 .. 600 seconds, found {self.window_s}; 2 starts soon")

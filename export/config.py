"""What the user chooses when exporting; everything else comes from the checkpoint.

In: options of the command line or of a script. Out: one frozen record, checked. Does not read checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.engines.errors import ConfigError

Precision = Literal["fp32", "fp16"]

DTYPES: dict[Precision, Literal["float32", "float16"]] = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Options of one export."""

    precision: Precision = "fp32"
    """Of matrix products and convolutions; norms, softmax, angles and snakes stay FP32."""
    codec_precision: Precision = "fp32"
    """Of a neural audio codec, which keeps FP32 unless told otherwise: its authors warn of artefacts in FP16."""
    max_context: int = 4096
    """Tokens of prompt and speech together; sizes the rotary tables and the caches' upper bound."""
    max_prefill: int = 1024
    """Most tokens of one prefill call; a longer prompt is run in several."""
    max_seconds: float = 30.0
    """Longest stretch of speech that the decoder makes at once; bounds the shapes that engines are built for."""
    components: tuple[str, ...] = ()
    """Graphs to export by name; empty means all."""
    note: str = ""
    """One sentence for people, shown whenever the bundle speaks."""
    overwrite: bool = False
    """Replace an existing bundle."""
    quantise: QuantiseConfig | None = None
    """How weights are rounded while they are streamed; activations keep `precision`. None rounds nothing."""

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ConfigError(f"expected --precision {' or '.join(DTYPES)}, found {self.precision!r}")
        if self.codec_precision not in DTYPES:
            raise ConfigError(f"expected --codec-precision {' or '.join(DTYPES)}, found {self.codec_precision!r}")
        for name, value in (("max_context", self.max_context), ("max_prefill", self.max_prefill)):
            if value < 2:
                raise ConfigError(f"expected {name} >= 2, found {value}; 4096 and 1024 are the defaults")
        if not 0.0 < self.max_seconds <= 600.0:
            raise ConfigError(f"expected 0 < max_seconds <= 600, found {self.max_seconds}; 30 is the default")

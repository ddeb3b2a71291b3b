"""What the user chooses when quantising.

In: options of the command line or of a script. Out: one frozen record, checked. Does not read bundles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from voxedge.calibration.quantise.plan import LayerPrecision, Rule
from voxedge.calibration.quantise.ranges import METHODS, RangeMethod
from voxedge.engines.errors import ConfigError

QuantisedPrecision = Literal["int8", "int8-weight", "int4-weight", "mixed"]
"""Of a whole bundle; `mixed` is whatever its rules say."""

PRECISIONS: tuple[QuantisedPrecision, ...] = get_args(QuantisedPrecision)
KvFormat = Literal["float", "int8", "int8-tensor"]
"""Of a cache: the type of the activations; INT8 with a scale for each channel of each head; INT8 with one for all."""

KV_FORMATS: tuple[KvFormat, ...] = get_args(KvFormat)
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Rows of a matrix that may share a scale; what runtimes have kernels for."""
DEFAULT_INT4_BLOCK = 64


@dataclass(frozen=True, slots=True)
class QuantiseConfig:
    """Options of one quantisation."""

    precision: QuantisedPrecision = "int8-weight"
    """Name of the result, and what layers get that no rule names."""
    block_size: int | None = None
    """Input channels that share a scale, for weight-only matrix products; None gives one scale for each output channel
    at 8 bits, which every TensorRT takes, and blocks of 64 at 4 bits."""
    rules: tuple[Rule, ...] = ()
    """Precisions of layers by node path."""
    base: LayerPrecision = "int8-weight"
    """For `mixed`: what layers get that no rule names."""
    ranges: RangeMethod = "mse"
    """Where activations of `int8` layers are clipped."""
    smooth: bool = True
    """Whether outliers of such activations are moved into weights (SmoothQuant)."""
    cpu_form: Literal["auto", "integer", "float"] = "auto"
    """How ONNX Runtime's CPU computes `int8` graphs that exist once; `auto` measures both and keeps the faster."""
    min_snr_db: float | None = None
    """For `mixed`: signal to noise that every output of every graph must reach, a limit that the bundle keeps. Layers
    that mind most are kept higher until it is reached (`calibration.mixed`); None leaves all to the rules."""
    unit: Literal["layer", "block"] = "layer"
    """Whether that search keeps single layers or whole blocks higher; blocks are faster in very deep models."""
    awq: bool = True
    """Whether 4-bit weights are scaled by the activations that meet them (AWQ), where statistics are given."""
    kv_cache: KvFormat = "float"
    """How decoders keep the keys and values of the past."""
    overwrite: bool = False
    """Replace an existing bundle."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"expected --precision among {', '.join(PRECISIONS)}, found {self.precision!r}")
        if self.min_snr_db is not None and (self.precision != "mixed" or not math.isfinite(self.min_snr_db)):
            raise ConfigError(
                f"expected --precision mixed for --min-snr, a number of dB, found {self.precision} and "
                f"{self.min_snr_db:g}; other precisions are not searched for"
            )
        if self.ranges not in METHODS:
            raise ConfigError(f"expected --ranges among {', '.join(METHODS)}, found {self.ranges!r}")
        if self.kv_cache not in KV_FORMATS:
            raise ConfigError(f"expected --kv-cache among {', '.join(KV_FORMATS)}, found {self.kv_cache!r}")
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"expected --block among {', '.join(map(str, BLOCK_SIZES))}, found {self.block_size}")

    @property
    def default_layer(self) -> LayerPrecision:
        """What layers get that no rule names."""
        return self.base if self.precision == "mixed" else self.precision

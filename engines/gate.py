"""The limits that a bundle's quality is held to; a manifest may hold its own.

In: numbers. Out: a frozen `Gate`. Does not measure, judge or know any default (see `calibration.gate`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from voxedge.engines.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gate:
    """Limits for one bundle; None where a figure is not judged, or where the default of the precision holds."""

    min_graph_snr_db: float | None = None
    """Of every output of every graph, against the reference, in dB."""
    min_flavour_snr_db: float | None = None
    """Of every output, one flavour against the other, in dB."""
    min_token_agreement: float | None = None
    """Share of draws at which the most likely token is the reference's, given the same past, 0 .. 1."""
    max_mel_distance_db: float | None = None
    """Mean absolute difference of the log-mel spectra of the same tokens, in dB."""
    max_log_spectral_distance_db: float | None = None
    """Of the sound of the same tokens, in dB."""
    max_loudness_difference_lu: float | None = None
    """Of the sound of the same tokens, either way, in LU."""
    max_pitch_error_cents: float | None = None
    """Median over frames that are voiced in both, for the same tokens, in cents."""
    min_voicing_agreement: float | None = None
    """Share of frames on which both agree whether they are voiced, for the same tokens, 0 .. 1."""
    max_silence_increase: float | None = None
    """Share of silent frames beyond the reference's, for the same tokens, 0 .. 1."""
    max_clipped_fraction: float | None = None
    """Samples beyond full scale that the reference's speech does not have, as a share, 0 .. 1."""
    max_word_error_increase: float | None = None
    """Word error rate beyond the reference's, each with its own tokens; 0.1 is one word in ten."""
    min_code_agreement: float | None = None
    """Share of equal values at every output of whole numbers, such as a codec's codes, 0 .. 1."""

    def __post_init__(self) -> None:
        shares = ("min_token_agreement", "min_voicing_agreement", "max_silence_increase", "max_clipped_fraction")
        for name in (*shares, "min_code_agreement"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"gate.{name}: expected a share of 0 .. 1, found {value:g}")

    def over(self, default: Gate) -> Gate:
        """These limits, and the default's where there is none.

        Example:
            >>> Gate(min_graph_snr_db=25.0).over(Gate(min_graph_snr_db=20.0, min_token_agreement=0.9))
            ... # doctest: +ELLIPSIS
            Gate(min_graph_snr_db=25.0, min_flavour_snr_db=None, min_token_agreement=0.9, ...)
        """
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(default, **{name: value for name, value in own.items() if value is not None})

"""What was drawn while a bundle spoke under observation.

In: nothing. Out: one record, filled by a system of `calibration.speaking` or `calibration.codec_speaking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from voxedge.runtime.sampling import Logits


@dataclass(slots=True)
class Draws:
    """What a watched sampler was given and gave."""

    forced: Sequence[int] | None = None
    """Tokens to give instead of drawn ones."""
    drawn: list[int] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)

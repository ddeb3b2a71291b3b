"""What was drawn while a bundle spoke under observation, and samplers that keep it or take what is prescribed.

In: the tokens of another bundle, where this one is to follow it. Out: one record, filled by the systems of
`calibration.speaking`, `calibration.moss_speaking` and `calibration.codec_speaking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from voxedge.engines.errors import InferenceError
from voxedge.runtime.sampling import Logits, Sampler


@dataclass(slots=True)
class Draws:
    """What a watched sampler was given and gave."""

    forced: Sequence[int] | None = None
    """Tokens to give instead of drawn ones."""
    drawn: list[int] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)

    def prescribed(self, count: int) -> Sequence[int] | None:
        """The next tokens to give; None where they are to be drawn.

        Raises:
            InferenceError: There are not so many left.
        """
        if self.forced is None:
            return None
        start = len(self.drawn)
        if len(self.forced) < start + count:
            raise InferenceError(f"expected the speech to end after {len(self.forced)} tokens, it goes on")
        return self.forced[start : start + count]


class WatchedSampler(Sampler):
    """A sampler that keeps what it sees, and gives prescribed tokens where there are some."""

    def __init__(self, sampler: Sampler, draws: Draws) -> None:
        """Take the place of a sampler that has not drawn yet."""
        self.__dict__.update(vars(sampler))
        self._draws = draws

    def next(self, logits: Logits, banned: Sequence[int] = ()) -> int:
        """Draw, or follow; see `Sampler.next`."""
        draws = self._draws
        forced = draws.prescribed(1)
        draws.logits.append(logits.copy())
        if forced is None:
            token = super().next(logits, banned)
        else:
            token = forced[0]
            self._record(token)
        draws.drawn.append(token)
        return token

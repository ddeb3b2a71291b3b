"""Cut a growing sequence of tokens into windows for a decoder that sees both ways.

In: how many tokens there are so far. Out: windows, each with the tokens it is for and the tokens around them that the
decoder also sees. Which windows there are depends on the final count alone, never on when tokens came: a stream and an
offline run cut alike. Does not know tokens, latents or decoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from voxedge.engines.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Sizes in tokens."""

    length: int
    """Tokens that one window is for."""
    context: int
    """Earlier tokens that it also sees."""
    lookahead: int
    """Later tokens that it also sees; a window waits for them."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.context < 0 or self.lookahead < 0:
            raise ConfigError(f"expected a length >= 1, context and lookahead >= 0, found {self}")

    @property
    def largest(self) -> int:
        """Most tokens that a window sees: the last one takes up to `lookahead` tokens more than the others."""
        return self.context + self.length + self.lookahead

    @classmethod
    def within(cls, limit: int, length: int | None, context: int, lookahead: int) -> WindowPlan:
        """The plan nearest to what is wanted in which no window sees more than `limit` tokens.

        Args:
            limit: Most tokens that the decoder takes.
            length: Wanted length; None for as long as possible.
            context: Wanted context.
            lookahead: Wanted lookahead.
        """
        room = max(1, limit - context - lookahead)
        if room <= context + lookahead:  # a decoder for short stretches: shrink everything in proportion
            context, lookahead = limit // 4, limit // 8
            room = max(1, limit - context - lookahead)
        return cls(room if length is None else min(length, room), context, lookahead)


@dataclass(frozen=True, slots=True)
class Window:
    """Positions in the sequence of tokens."""

    first: int
    """First token that the window is for."""
    last: int
    """One behind the last token that it is for."""
    start: int
    """First token that it sees."""
    stop: int
    """One behind the last token that it sees."""


class WindowCutter:
    """Gives windows as soon as they are complete."""

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan
        self._next = 0

    def push(self, count: int, final: bool) -> Iterator[Window]:
        """Windows that are complete now that there are `count` tokens, `final` meaning that there will be no more."""
        plan = self._plan
        while count >= self._next + plan.length + max(1, plan.lookahead):
            last = self._next + plan.length
            yield self._window(last, last + plan.lookahead)
        if final and self._next < count:
            yield self._window(count, count)

    def _window(self, last: int, stop: int) -> Window:
        first, self._next = self._next, last
        return Window(first, last, max(0, first - self._plan.context), stop)

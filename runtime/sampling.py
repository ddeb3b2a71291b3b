"""Token by token: logits in, one id out.

In: a `SamplingConfig`, the ids that may be drawn, a source of uniform numbers, and per step the logits of one position.
Out: the drawn id, and whether and why the sequence has ended.
Does not know: language models, codebooks, devices; draws no randomness of its own.

Order of the rules: bans, repetition penalty (Keskar et al. 2019, eq. 2), temperature, top-k, nucleus (Holtzman et al.
2020), one draw by inverse distribution function. Equal logits rank by lower id.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError, InferenceError
from voxedge.runtime.categorical import draw, exponentials, largest, total
from voxedge.runtime.vocabulary import Domain, History

if TYPE_CHECKING:
    from voxedge.runtime.audio import FinishReason

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_COLDEST = 1e-3
_NUCLEUS_GUESS = 1024  # entries that hold a speech model's nucleus in practice; more are fetched when they do not


class UniformSource(Protocol):
    """Where the sampler gets its randomness; `noise.NoiseStream` is one."""

    def uniform(self) -> float:
        """Next number, 0 <= number < 1."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How ids are drawn from logits."""

    temperature: float = 1.0
    """Divides the logits; lower is more predictable, 0 always takes the most likely id."""
    top_k: int = 0
    """Only this many of the most likely ids can be drawn; 0 means all."""
    top_p: float = 1.0
    """Only the fewest ids that together reach this probability can be drawn; 1 means all."""
    repetition_penalty: float = 1.0
    """Makes ids seen in the window less likely when above 1; 1 is off."""
    repetition_window: int = 0
    """How many of the last tokens the penalty looks at; 0 means all."""
    ras_window: int = 0
    """How many of the last drawn tokens repetition-aware sampling looks at; 0 is off."""
    ras_tau: float = 0.1
    """Share of that window from which on a drawn id counts as repeated and is drawn anew; lower is stricter."""
    min_tokens: int = 0
    """The end cannot be drawn before this many tokens."""
    max_tokens: int = 1500
    """The sequence is cut, and marked `length`, after this many tokens."""

    def __post_init__(self) -> None:
        """Check every range."""
        if self.temperature != 0.0 and not _COLDEST <= self.temperature <= 100.0:
            raise ConfigError(f"expected temperature 0 (greedy) or {_COLDEST} .. 100, got {self.temperature}; try 0.8")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"expected 0 < top_p <= 1, got {self.top_p}; 1 switches it off")
        if not 0.0 < self.repetition_penalty <= 100.0:
            raise ConfigError(f"expected 0 < repetition_penalty <= 100, got {self.repetition_penalty}; 1 is off")
        if not 0.0 < self.ras_tau <= 1.0:
            raise ConfigError(f"expected 0 < ras_tau <= 1, got {self.ras_tau}; 0.1 is customary")
        for name in ("top_k", "repetition_window", "ras_window", "min_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"expected {name} >= 0, got {getattr(self, name)}; 0 switches it off")
        if self.max_tokens < max(1, self.min_tokens):
            raise ConfigError(f"expected max_tokens >= 1 and >= min_tokens = {self.min_tokens}, got {self.max_tokens}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely id is always taken, with no randomness."""
        return self.temperature == 0.0


class Sampler:
    """Draws one sequence of ids; one instance per sequence.

    The penalty also applies to greedy choice; repetition-aware sampling does not.

    Example:
        >>> from voxedge.runtime.noise import NoiseStream
        >>> greedy = SamplingConfig(temperature=0.0)
        >>> sampler = Sampler(greedy, eos_id=3, allowed=slice(0, 2), stream=NoiseStream(1, "sampling"))
        >>> sampler.next(np.array([0.5, 2.0, 9.0, 1.0], dtype=np.float32)), sampler.finished
        (1, False)
        >>> sampler.next(np.array([0.5, 0.0, 9.0, 1.0], dtype=np.float32)), sampler.finish_reason
        (3, 'stop')
    """

    def __init__(
        self,
        config: SamplingConfig,
        eos_id: int | Sequence[int] | None,
        allowed: slice | npt.NDArray[np.bool_] | None,
        stream: UniformSource,
        order: Literal["rank", "id"] = "rank",
        history: History | None = None,
    ) -> None:
        """Fix the rules.

        Args:
            config: Rules.
            eos_id: Id or ids that end the sequence; they may be drawn even where `allowed` leaves them out.
            allowed: Ids that may be drawn, as a slice or a mask over the logits; None means all. Control rows of a
                vocabulary are kept out by leaving them out here.
            stream: Randomness; one number per draw, none when greedy.
            order: Along which order of the candidates the distribution function runs: from the most likely to the
                least, or by id. Changes which uniform gives which id, not the distribution.
            history: What the repetition penalty looks at, shared by samplers that penalise each other's ids; None for
                one of its own.
        """
        ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
        self.config = config
        self.eos_ids = frozenset(ends)
        self.finish_reason: FinishReason | None = None
        self._allowed = allowed
        self._stream = stream
        self._order = order
        self._domain: Domain | None = None
        self._drawn = 0
        self._recent: deque[int] = deque(maxlen=config.ras_window)
        self._history = history or History(config.repetition_window)

    @property
    def finished(self) -> bool:
        """Whether the end was drawn or `max_tokens` is reached."""
        return self.finish_reason is not None

    def observe(self, ids: Iterable[int]) -> None:
        """Let the repetition penalty see ids that were not drawn here: a prompt, or another codebook."""
        for token in ids:
            self._history.push(int(token))

    def next(self, logits: Logits, banned: Sequence[int] = ()) -> int:
        """Draw one id.

        Args:
            logits: [vocabulary], left as they are.
            banned: Ids that cannot be drawn in this step.

        Returns:
            The id; one of `eos_ids` means that the sequence ended before it.

        Raises:
            InferenceError: A logit is not a finite number, or the sequence has ended already.
        """
        if self.finished:
            raise InferenceError(f"expected no further step: the sequence has ended ({self.finish_reason})")
        _check_finite(logits)
        domain = self._domain = self._domain or Domain(len(logits), self.eos_ids, self._allowed)
        scores = domain.gather(logits)
        self._penalise(scores, domain)
        if self._drawn < self.config.min_tokens:
            scores[domain.ends] = -np.inf
        if banned:
            scores[domain.places(np.array(banned, np.int64))] = -np.inf
        token = int(domain.ids[self._choose(scores, domain)])
        self._record(token)
        return token

    def _record(self, token: int) -> None:
        if token in self.eos_ids:
            self.finish_reason = "stop"
            return
        self._drawn += 1
        self._recent.append(token)
        self._history.push(token)
        if self._drawn >= self.config.max_tokens:
            self.finish_reason = "length"

    def _penalise(self, scores: Logits, domain: Domain) -> None:
        penalty = self.config.repetition_penalty
        if penalty == 1.0:
            return
        seen = domain.places(self._history.ids())
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)

    def _choose(self, scores: Logits, domain: Domain) -> int:
        """Index into the domain."""
        config = self.config
        if config.greedy:
            return int(np.argmax(scores))
        places, weights = candidates(scores, config, domain.scratch)
        if self._order == "id" and places is not None:
            by_id = np.argsort(places)
            places, weights = places[by_id], weights[by_id]
        drawn = draw(weights, self._stream.uniform())
        choice = drawn if places is None else int(places[drawn])
        token = int(domain.ids[choice])
        if config.ras_window and self._recent.count(token) >= config.ras_tau * config.ras_window:
            return self._draw_anew(scores, choice)
        return choice

    def _draw_anew(self, scores: Logits, repeated: int) -> int:
        """Draw from all ids but the repeated one (VALL-E 2, Chen et al. 2024, algorithm 1, as CosyVoice 2 does it)."""
        kept = scores[repeated]
        scores[repeated] = -np.inf
        if not np.isfinite(scores.max()):
            scores[repeated] = kept  # nothing else may be drawn
        weights = exponentials(scores, self.config.temperature, out=scores)
        return draw(weights, self._stream.uniform())


def candidates(scores: Logits, config: SamplingConfig, scratch: Logits | None = None) -> tuple[Ids | None, Logits]:
    """What can be drawn after temperature, top-k and nucleus.

    With repetition-aware sampling the nucleus is a share of all probability (CosyVoice 2); otherwise of what top-k
    left (the usual order of logits processors).

    Args:
        scores: [n], -inf where banned; at least one is finite.
        config: Rules; not greedy.
        scratch: [n] of memory to use instead of new one.

    Returns:
        Indices [m] from the most likely down, None for all n in their order, and weights [m] in proportion to
        probability.
    """
    limit = min(config.top_k or len(scores), len(scores))
    if config.top_p >= 1.0:
        if limit == len(scores):
            return None, exponentials(scores, config.temperature, scratch)
        places = largest(scores, limit)
        return places, exponentials(scores[places], config.temperature)
    if limit < len(scores) and not config.ras_window:
        places = largest(scores, limit)
        weights = exponentials(scores[places], config.temperature)
        kept = _nucleus(weights, config.top_p * total(weights))
        return places[:kept], weights[:kept]
    return _nucleus_of_all(scores, config, limit, scratch)


def _nucleus_of_all(scores: Logits, config: SamplingConfig, limit: int, scratch: Logits | None) -> tuple[Ids, Logits]:
    """Fewest ids that hold `top_p` of all probability, at most `limit`, from the most likely down."""
    mass = config.top_p * total(exponentials(scores, config.temperature, scratch))
    count = min(limit, _NUCLEUS_GUESS)
    while True:
        places = largest(scores, count)
        weights = exponentials(scores[places], config.temperature)
        kept = _nucleus(weights, mass)
        if kept < count or count == limit:
            return places[:kept], weights[:kept]
        count = min(limit, count * 8)


def _nucleus(weights: Logits, mass: float) -> int:
    """How many of the descending weights it takes to reach `mass`; all of them where they fall short."""
    running = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(running, mass, side="left")) + 1, len(weights))


def _check_finite(logits: Logits) -> None:
    # One pass instead of two for max and min: the sum passes every NaN and infinity on, and in FP64 no sum of finite
    # FP32 numbers overflows. Between the steps of a model every numpy call costs 20 us and more, as the weights have
    # just pushed its code out of the caches.
    if math.isfinite(np.add.reduce(logits, dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(logits))
    raise InferenceError(
        f"expected finite logits, found {logits[bad[0]]} at id {bad[0]} ({len(bad)} of {len(logits)} are not finite); "
        "the language model overflowed: use a bundle of higher precision, or run `voxedge verify` on this one"
    )

"""The sampler against plain definitions and against recorded draws of the reference samplers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from voxedge.engines.errors import ConfigError, InferenceError
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.sampling import Sampler, SamplingConfig, candidates

Logits = npt.NDArray[np.float32]
GREEDY = SamplingConfig(temperature=0.0)


class Recorded:
    """Uniform numbers from a list."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self.left = [float(number) for number in numbers]

    def uniform(self) -> float:
        """Next number of the list."""
        return self.left.pop(0)


def make(config: SamplingConfig, numbers: Iterable[float] = (), eos: int | None = None) -> Sampler:
    return Sampler(config, eos, None, Recorded(numbers))


def logits_of(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def plain_probabilities(logits: Logits, config: SamplingConfig) -> npt.NDArray[np.float64]:
    """Temperature, top-k and nucleus as their papers define them, by a full sort."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / config.temperature)
    order = np.argsort(-p, kind="stable")[: config.top_k or len(p)]
    share = p / p.sum() if config.ras_window else p / p[order].sum()
    kept, mass = [], 0.0
    for index in order:
        if config.top_p < 1.0 and mass >= config.top_p:
            break
        kept.append(index)
        mass += share[index]
    result = np.zeros(len(p))
    result[kept] = p[kept]
    return result / result.sum()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=0.7),
        SamplingConfig(top_k=1),
        SamplingConfig(top_k=40, temperature=1.7),
        SamplingConfig(top_p=0.9),
        SamplingConfig(top_p=0.999, temperature=3.0),
        SamplingConfig(top_k=50, top_p=0.8),
        SamplingConfig(top_k=25, top_p=0.8, ras_window=10),
        SamplingConfig(top_p=0.8, ras_window=10),
    ],
)
@pytest.mark.parametrize("size", [33, 6562, 30_000])
def test_candidates_have_the_plain_probabilities(config: SamplingConfig, size: int) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * 2).astype(np.float32)
    places, weights = candidates(logits, config)
    found = np.zeros(size)
    found[slice(None) if places is None else places] = weights / weights.sum(dtype=np.float64)
    # float32 exponentials of logits below 10: relative error below 1e-6.
    np.testing.assert_allclose(found, plain_probabilities(logits, config), rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize("case", range(5))
def test_candidates_equal_the_recorded_probabilities(golden: Callable[[str], Path], case: int) -> None:
    folder = golden("moss_delay")
    recorded = np.load(folder / "io.npz")
    settings = json.loads((folder / "prompts.json").read_text())["unit_sample_cases"][case]
    logits, seen = recorded[f"unit_sample{case}_logits"], recorded[f"unit_sample{case}_prev"]
    config = SamplingConfig(top_k=settings["top_k"], top_p=settings["top_p"])
    for row, expected in enumerate(recorded[f"unit_sample{case}_probs"]):
        scores = logits[row].copy()
        ids = np.unique(seen)  # this model pools the histories of its codebooks
        penalty = settings["repetition_penalty"]
        scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
        places, weights = candidates(scores, config)
        found = np.zeros(len(scores))
        found[slice(None) if places is None else places] = weights / weights.sum(dtype=np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_repetition_aware_draws_equal_the_recorded_ones(golden: Callable[[str], Path]) -> None:
    recorded = np.load(golden("cosyvoice2_lm") / "io.npz")
    source = Recorded(recorded["ras_u"])
    config = SamplingConfig(top_k=25, top_p=0.8, ras_window=10, ras_tau=0.1)
    sampler = Sampler(config, None, None, source)
    expected = recorded["ras_tokens"].tolist()
    drawn = []
    for step, row in enumerate(recorded["ras_logp"][: len(expected)]):
        logits = row.copy()
        if step < 2 * recorded["text"].shape[1]:
            logits[-3] = -1e30  # three ids end a sequence here, and the reference bans the first of them alone
        drawn.append(sampler.next(logits))
    assert drawn == expected


def test_greedy_takes_the_lowest_of_equal_ids_and_no_randomness() -> None:
    sampler = make(GREEDY)
    assert sampler.next(logits_of(1, 7, 7, 0)) == 1
    assert not sampler.finished


def test_logits_are_left_as_they_are() -> None:
    logits = logits_of(1, -2, 3, 0)
    kept = logits.copy()
    sampler = Sampler(SamplingConfig(repetition_penalty=2.0, min_tokens=3), 3, None, Recorded([0.1, 0.2]))
    sampler.next(logits)
    sampler.next(logits)
    np.testing.assert_array_equal(logits, kept)


def test_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampler = make(SamplingConfig(temperature=0.0, repetition_penalty=4.0))
    sampler.observe([0, 1])
    assert sampler.next(logits_of(8, -1, 3, -3)) == 2  # 8 / 4 = 2 < 3
    sampler = make(SamplingConfig(temperature=0.0, repetition_penalty=4.0))
    sampler.observe([0, 1])
    assert sampler.next(logits_of(-10, -1, -5, -3)) == 3  # -1 * 4 < -3


def test_penalty_counts_an_id_once_and_forgets_it_after_the_window() -> None:
    sampler = make(SamplingConfig(temperature=0.0, repetition_penalty=2.0, repetition_window=2))
    sampler.observe([0, 0])
    assert sampler.next(logits_of(7, 3, 0)) == 0  # 7 / 2 = 3.5: penalised once, not twice
    sampler.observe([2, 2])
    assert sampler.next(logits_of(7, 3, 0)) == 0
    sampler.observe([0, 2])
    assert sampler.next(logits_of(7, 4, 0)) == 1
    sampler.observe([99, -1])  # ids of another vocabulary change nothing
    assert sampler.next(logits_of(7, 4, 0)) == 0


def test_end_is_banned_until_min_tokens_and_is_not_counted() -> None:
    sampler = make(SamplingConfig(temperature=0.0, min_tokens=2), eos=1)
    logits = logits_of(0, 9, 5)
    assert [sampler.next(logits) for _ in range(2)] == [2, 2]
    assert sampler.next(logits) == 1
    assert sampler.finished and sampler.finish_reason == "stop"
    with pytest.raises(InferenceError, match="has ended"):
        sampler.next(logits)


def test_cap_is_reported_as_length() -> None:
    sampler = make(SamplingConfig(temperature=0.0, max_tokens=2), eos=0)
    assert sampler.next(logits_of(0, 1)) == 1 and sampler.finish_reason is None
    assert sampler.next(logits_of(0, 1)) == 1 and sampler.finish_reason == "length"


@pytest.mark.parametrize("allowed", [slice(2, 5), np.isin(np.arange(9), [2, 3, 4])])
def test_only_allowed_ids_and_the_end_are_drawn(allowed: slice | npt.NDArray[np.bool_]) -> None:
    config = SamplingConfig(temperature=50.0, max_tokens=10_000)
    drawn = Counter[int]()
    for seed in range(40):
        sampler = Sampler(config, [7, 8], allowed, NoiseStream(seed, "sampling"))
        while not sampler.finished:
            drawn[sampler.next(np.arange(9, dtype=np.float32))] += 1
    assert set(drawn) == {2, 3, 4, 7, 8}


def test_draws_follow_the_probabilities() -> None:
    logits = logits_of(0.0, 1.0, 2.0, -50.0)
    count = 20_000
    sampler = Sampler(SamplingConfig(max_tokens=count), None, None, NoiseStream(11, "sampling"))
    found = Counter(sampler.next(logits) for _ in range(count))
    p = np.exp(logits) / np.exp(logits).sum()
    for token in range(4):
        # Five standard deviations of a binomial count.
        assert abs(found[token] - count * p[token]) <= 5.0 * (count * p[token] * (1.0 - p[token])) ** 0.5 + 1e-9


def test_order_by_id_changes_which_uniform_gives_which_id() -> None:
    logits, config = logits_of(0.0, 1.0, 2.0), SamplingConfig(top_k=3, top_p=0.99)
    assert Sampler(config, None, None, Recorded([0.01])).next(logits) == 2
    assert Sampler(config, None, None, Recorded([0.01]), order="id").next(logits) == 0


def test_repeated_id_is_drawn_anew_from_all_but_itself() -> None:
    logits, config = logits_of(9.0, 1.0, 0.0), SamplingConfig(top_k=1, ras_window=4, ras_tau=0.5)
    source = Recorded([0.5, 0.5, 0.5, 0.99, 0.5])
    sampler = Sampler(config, None, None, source)
    # Two of the last four reach tau * window = 2: the third is drawn anew from the others, 73 % for 1 and 27 % for 2.
    assert [sampler.next(logits) for _ in range(3)] == [0, 0, 2]
    assert len(source.left) == 1


def test_repetition_with_nothing_else_allowed_keeps_the_id() -> None:
    sampler = Sampler(SamplingConfig(ras_window=5, min_tokens=9), 1, slice(0, 1), Recorded([0.5] * 9))
    assert [sampler.next(logits_of(1, 5)) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_named(bad: float) -> None:
    logits = np.zeros(500, dtype=np.float32)
    logits[321] = bad
    with pytest.raises(InferenceError, match=rf"found {bad} at id 321 \(1 of 500"):
        make(GREEDY).next(logits)


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="end ids"):
        make(GREEDY, eos=4).next(np.zeros(4, dtype=np.float32))
    with pytest.raises(ConfigError, match="mask of 4"):
        Sampler(GREEDY, None, np.ones(3, dtype=np.bool_), Recorded([])).next(np.zeros(4, dtype=np.float32))
    with pytest.raises(ConfigError, match="besides the end"):
        Sampler(GREEDY, 1, slice(1, 2), Recorded([])).next(np.zeros(4, dtype=np.float32))
    sampler = make(GREEDY)
    sampler.next(np.zeros(4, dtype=np.float32))
    with pytest.raises(InferenceError, match="4 logits"):
        sampler.next(np.zeros(5, dtype=np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": 1e-9},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"ras_tau": 0.0},
        {"ras_window": -1},
        {"max_tokens": 0},
        {"min_tokens": 5, "max_tokens": 4},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="|".join(values)):
        SamplingConfig(**values)  # type: ignore[arg-type]

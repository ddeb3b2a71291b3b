"""Recorded calls are those that were made, and any flavour can be given them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxedge.calibration.metrics import snr_db
from voxedge.calibration.recogniser import words_of
from voxedge.calibration.recording import Recording
from voxedge.calibration.replay import replay
from voxedge.calibration.speaking import PROBES, Probe, Spoken, probes_for, probes_of, speak
from voxedge.engines.backend import Array
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import InputError
from voxedge.engines.manifest import Flavour
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.runtime.routing import SPEECH, TEXT

# FP32 flavours order their sums differently: 149 dB for one rounding, 10 log10(n) less for n of them. 80 dB allows ten
# million, more than any output of these small graphs depends on.
SAME_FP32_DB = 80.0


@pytest.fixture(scope="module")
def spoken(fp32_bundle: Path) -> tuple[Bundle, Spoken, Recording]:
    bundle, recording = Bundle.open(fp32_bundle), Recording()
    return bundle, speak(bundle, Probe(), recording), recording


def outputs(bundle: Bundle, name: str, flavour: Flavour, *calls: dict[str, Array]) -> list[dict[str, Array]]:
    spec = bundle.manifest.graph(name, flavour)
    assert spec.flavour == flavour
    engine = OrtEngine(bundle.graph_path(spec), spec, OrtOptions())
    return [replay(engine, feeds) for feeds in calls]


def test_every_graph_is_recorded_a_few_times(spoken: tuple[Bundle, Spoken, Recording]) -> None:
    bundle, _, recording = spoken
    for spec in bundle.manifest.graphs:
        calls = recording.calls(spec.name)
        assert 1 <= len(calls) <= 7, spec.name  # six that were made, one of the joined steps
        portable = bundle.manifest.graph(spec.name)
        for feeds in calls:
            assert {tensor.name: tensor.dtype for tensor in portable.inputs} == {
                name: str(array.dtype) for name, array in feeds.items()
            }


def test_kept_calls_lie_at_doubling_distances() -> None:
    recording = Recording(limit=4)
    assert [number for number in range(100) if _keep(recording)] == [0, 1, 2, 4]
    assert len(recording.calls("graph")) == 4


def _keep(recording: Recording) -> bool:
    wanted = recording.wants("graph")
    if wanted:
        recording.add("graph", {})
    return wanted


@pytest.mark.parametrize("flavour", ["portable", "ort"])
def test_a_replayed_step_gives_the_rows_that_the_next_step_saw(
    flavour: Flavour, spoken: tuple[Bundle, Spoken, Recording]
) -> None:
    bundle, _, recording = spoken
    first, second = recording.calls(SPEECH)[:2]
    (found,) = outputs(bundle, SPEECH, flavour, first)
    leaves = [name.removeprefix("past.") for name in first if name.startswith("past.")]
    assert leaves
    for leaf in leaves:
        before, after = first[f"past.{leaf}"], second[f"past.{leaf}"]
        np.testing.assert_array_equal(after[: len(before)], before)
        assert snr_db(after[len(before) :], found[f"new.{leaf}"]) > SAME_FP32_DB


@pytest.mark.parametrize("name", [TEXT, SPEECH])
def test_flavours_agree_on_every_call(name: str, spoken: tuple[Bundle, Spoken, Recording]) -> None:
    bundle, _, recording = spoken
    calls = [dict(feeds) for feeds in recording.calls(name)]
    for one, other in zip(outputs(bundle, name, "portable", *calls), outputs(bundle, name, "ort", *calls), strict=True):
        assert set(one) == set(other)
        assert all(snr_db(one[key], other[key]) > SAME_FP32_DB for key in one)


@pytest.mark.parametrize("flavour", ["portable", "ort"])
def test_steps_joined_to_one_call_end_like_the_last_of_them(
    flavour: Flavour, spoken: tuple[Bundle, Spoken, Recording]
) -> None:
    bundle, _, recording = spoken
    *_, last, joined = (dict(feeds) for feeds in recording.calls(SPEECH))
    assert joined["ids"].shape[1] > 1
    assert len(joined["past.0.key"]) > 0
    one, all_at_once = outputs(bundle, SPEECH, flavour, last, joined)
    assert snr_db(one["logits"], all_at_once["logits"]) > SAME_FP32_DB


def test_a_bundle_that_follows_its_own_tokens_says_the_same(spoken: tuple[Bundle, Spoken, Recording]) -> None:
    bundle, heard, _ = spoken
    again = speak(bundle, Probe(), forced=heard.drawn)
    np.testing.assert_array_equal(again.samples, heard.samples)
    np.testing.assert_array_equal(again.logits, heard.logits)
    assert (again.drawn, again.finish_reason) == (heard.drawn, heard.finish_reason)


def test_a_bundle_follows_the_tokens_of_another_seed(spoken: tuple[Bundle, Spoken, Recording]) -> None:
    bundle, heard, _ = spoken
    other = speak(bundle, Probe(seed=5))
    assert other.drawn != heard.drawn
    assert speak(bundle, Probe(), forced=other.drawn).drawn == other.drawn


def test_a_voice_of_few_words_is_asked_what_it_knows() -> None:
    assert probes_for(()) == PROBES
    demo = probes_of("demo")
    words = sorted({word for probe in demo for word in words_of(probe.text)})
    assert probes_for(words) == demo[: len(PROBES)]
    (probe,) = probes_for(["one", "two", "three"])
    assert words_of(probe.text) == ["one", "two", "three"]


def test_a_call_of_another_graph_is_refused(spoken: tuple[Bundle, Spoken, Recording]) -> None:
    bundle, _, recording = spoken
    with pytest.raises(InputError, match="expected the inputs"):
        outputs(bundle, "dit", "portable", dict(recording.calls(SPEECH)[0]))
    with pytest.raises(InputError, match="expected the inputs"):
        outputs(bundle, SPEECH, "ort", dict(recording.calls("dit")[0]))


def test_a_call_beyond_the_graphs_capacity_is_refused(spoken: tuple[Bundle, Spoken, Recording]) -> None:
    bundle, _, recording = spoken
    feeds = dict(recording.calls(SPEECH)[0])
    limit = max(profile["capacity"].max for profile in bundle.manifest.graph(SPEECH, "ort").profiles.values())
    long = {name: np.repeat(array[:1], limit, axis=0) for name, array in feeds.items() if name.startswith("past.")}
    with pytest.raises(InputError, match="--max-context"):
        outputs(bundle, SPEECH, "ort", {**feeds, **long})

"""Several texts in step say what each would say alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from voxedge.engines.errors import ConfigError, InputError
from voxedge.runtime.audio import Audio
from voxedge.runtime.directions import Directions
from voxedge.runtime.synthesizer import Request, Synthesizer
from voxedge.runtime.systems.moss_lockstep import Lockstep

CASES = ("moss_delay", "moss_local", "moss_local_v15_abs")
# A batch is a matrix product of another shape, which sums in another order: 1e-6 of the logits, far below the distances
# that decide tokens. So the codes are the same ones, and with them the samples, bit by bit.


@pytest.fixture(params=CASES)
def voice(request: pytest.FixtureRequest, exported: Callable[..., Path], codec_bundle: Path) -> Iterator[Synthesizer]:
    bundle = exported(request.param, "fp32")
    with Synthesizer.from_pretrained(bundle, backend="cpu", threads=1, codec=codec_bundle) as synthesizer:
        yield synthesizer


def requests(voice: Synthesizer) -> list[Request]:
    """Of several lengths, seeds and rules; one says more pieces than the others, one cannot be said."""
    config = voice.default_config
    cooler = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, temperature=0.7, top_k=9))
    greedy = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, temperature=0.0))
    return [
        Request("Hello there, my friend.", seed=1, directions=Directions(frames=9)),
        Request("Yes.", seed=2, directions=Directions(frames=4)),
        Request("Hello. There you are. " * 40, seed=3, config=cooler, directions=Directions(frames=30)),
        Request("Too many.", seed=4, directions=Directions(codebooks=99)),
        Request("The same always.", seed=5, config=greedy, directions=Directions(frames=6)),
    ]


def test_texts_in_step_are_the_same_texts(voice: Synthesizer) -> None:
    asked = requests(voice)
    alone = list(voice.synthesize_batch(asked))
    for together in (2, 5):
        found = list(voice.synthesize_batch(asked, together=together))
        assert len(found) == len(alone)
        for one, other in zip(alone, found, strict=True):
            assert type(one) is type(other)
            if isinstance(one, Audio):
                assert isinstance(other, Audio)
                assert other.speech_tokens == one.speech_tokens
                np.testing.assert_array_equal(other.samples, one.samples)
    assert sum(isinstance(each, InputError) for each in alone) == 1


def test_rows_are_really_made_together(voice: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[str, int]] = []
    run = Lockstep._run

    def counted(self: Lockstep, calls: list) -> None:
        sizes.append((calls[0].kind, len(calls)))
        run(self, calls)

    monkeypatch.setattr(Lockstep, "_run", counted)
    same = [Request("Hello.", seed=number, directions=Directions(frames=8)) for number in range(3)]
    list(voice.synthesize_batch(same, together=3))
    steps = [size for kind, size in sizes if kind == "step"]
    assert steps
    assert steps.count(3) >= len(steps) - 1
    kinds = {kind for kind, _ in sizes}
    assert ("embed" if "delay" in str(voice.bundle.root) else "frame") in kinds


def test_a_broken_graph_fails_all_and_hangs_none(voice: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Lockstep, calls: list) -> None:
        raise InputError("no more")

    monkeypatch.setattr(Lockstep, "_run", broken)
    asked = [Request("Hello.", seed=number, directions=Directions(frames=4)) for number in range(2)]
    found = list(voice.synthesize_batch(asked, together=2))
    assert [str(each) for each in found] == ["no more", "no more"]


def test_what_cannot_be_in_step(exported: Callable[..., Path], codec_bundle: Path, fp32_bundle: Path) -> None:
    odd = exported("moss_local_v15", "fp32")  # its heads are 24 wide
    asked = [Request("Hello.", seed=1, directions=Directions(frames=4))] * 2
    with Synthesizer.from_pretrained(odd, backend="cpu", codec=codec_bundle) as voice:
        with pytest.raises(ConfigError, match="together=1"):
            list(voice.synthesize_batch(asked, together=2))
        with pytest.raises(ConfigError, match="1 or more texts"):
            list(voice.synthesize_batch(asked, together=0))
    with (
        Synthesizer.from_pretrained(odd, backend="cpu", memory="staged", codec=codec_bundle) as voice,
        pytest.raises(ConfigError, match="resident"),
    ):
        list(voice.synthesize_batch(asked, together=2))
    with Synthesizer.from_pretrained(fp32_bundle, backend="cpu") as voice, pytest.raises(InputError, match="codes"):
        list(voice.synthesize_batch([Request("Hello.")], together=2))

"""Properties of speaking, on a tiny voice: seeds, streams, staged memory, conversations, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from tiny_voice import tiny_voice

from voxedge.engines.errors import BackendUnavailableError, ConfigError, InferenceError, InputError
from voxedge.runtime.prompt import Turn
from voxedge.runtime.synthesizer import Request, SynthesisConfig, Synthesizer
from voxedge.runtime.systems.moe_tts import MoeTts

TEXT = "The quick brown fox."


@pytest.fixture(scope="module")
def voice() -> Iterator[Synthesizer]:
    with Synthesizer.from_pretrained(tiny_voice(), backend="cpu", threads=1) as synthesizer:
        yield synthesizer


@pytest.fixture(scope="module")
def quick(voice: Synthesizer) -> SynthesisConfig:
    """Few steps and about 3 seconds of speech, in windows of one second."""
    sampling = dataclasses.replace(voice.default_config.sampling, min_tokens=70, max_tokens=75)
    return dataclasses.replace(voice.default_config, sampling=sampling, steps=2, window_s=1.0)


def streamed(voice: Synthesizer, text: str, **options: object) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in voice.stream(text, **options)])


def test_the_same_seed_says_the_same_and_another_does_not(voice: Synthesizer, quick: SynthesisConfig) -> None:
    first, again, other = (voice.synthesize(TEXT, seed=seed, config=quick) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.seed == 3
    assert first.speech_tokens == again.speech_tokens != other.speech_tokens


def test_without_a_seed_the_drawn_one_repeats_the_result(voice: Synthesizer, quick: SynthesisConfig) -> None:
    first = voice.synthesize(TEXT, config=quick)
    np.testing.assert_array_equal(first.samples, voice.synthesize(TEXT, seed=first.seed, config=quick).samples)


def test_streamed_equals_offline_sample_for_sample(voice: Synthesizer, quick: SynthesisConfig) -> None:
    whole = voice.synthesize(TEXT, seed=5, config=quick)
    chunks = list(voice.stream(TEXT, seed=5, config=quick))
    assert len(chunks) > 2
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), whole.samples)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert chunks[-1].finish_reason == whole.finish_reason


def test_a_stream_starts_before_the_language_model_is_done(voice: Synthesizer, quick: SynthesisConfig) -> None:
    drawn: list[int] = []
    system = voice._system
    assert isinstance(system, MoeTts)
    step = system._model.step

    def counting(token: int, cache: object) -> np.ndarray:
        drawn.append(token)
        return step(token, cache)

    system._model.step = counting
    try:
        stream = voice.stream(TEXT, seed=5, config=quick)
        next(stream)
        assert 0 < len(drawn) < 70
        stream.close()
        after = len(drawn)
        voice.synthesize(TEXT, seed=5, config=quick)  # a closed stream leaves the voice usable
        assert len(drawn) > after
    finally:
        system._model.step = step


def test_whole_utterances_are_the_default_offline(voice: Synthesizer, quick: SynthesisConfig) -> None:
    """One window over everything is another sound than windows, and the length stays."""
    windowed = voice.synthesize(TEXT, seed=5, config=quick)
    whole = voice.synthesize(TEXT, seed=5, config=dataclasses.replace(quick, window_s=None))
    assert whole.speech_tokens == windowed.speech_tokens
    assert whole.samples.shape == windowed.samples.shape
    assert not np.array_equal(whole.samples, windowed.samples)


def test_staged_memory_changes_nothing_but_memory(voice: Synthesizer, quick: SynthesisConfig) -> None:
    with Synthesizer.from_pretrained(tiny_voice(), backend="cpu", memory="staged", threads=1) as staged:
        for seed in (5, 6):  # the second time everything is loaded again
            audio = staged.synthesize(TEXT, seed=seed, config=quick)
            np.testing.assert_array_equal(audio.samples, voice.synthesize(TEXT, seed=seed, config=quick).samples)
        assert staged._loader._engines == {}


def test_staged_memory_holds_one_stage_at_a_time(quick: SynthesisConfig) -> None:
    with Synthesizer.from_pretrained(tiny_voice(), backend="cpu", memory="staged", threads=1) as staged:
        held: list[set[str]] = []
        load = staged._loader.load

        def watching(name: str) -> object:
            engine = load(name)
            held.append(set(staged._loader._engines))
            return engine

        staged._loader.load = watching
        system = staged._system
        assert isinstance(system, MoeTts)
        system._model._load = watching
        staged.synthesize(TEXT, seed=5, config=quick)
        assert {"dit", "vae_decoder", "speech_conditioner"} in held
        for names in held:
            assert not ("dit" in names and {"text_expert", "speech_expert"} & names), names


def test_length_and_audio_of_the_tokens(voice: Synthesizer, quick: SynthesisConfig) -> None:
    audio = voice.synthesize(TEXT, seed=5, config=quick)
    assert len(audio.samples) == len(audio.speech_tokens) * 1920  # 25 tokens a second at 48 kHz, even strides
    assert audio.samples.dtype == np.float32
    assert audio.timing.tokens == len(audio.speech_tokens)
    assert 0 < audio.timing.first_audio_s <= audio.timing.wall_s
    assert set(audio.timing.stages_s) == {"language model", "diffusion decoder", "vocoder"}
    assert sum(audio.timing.stages_s.values()) <= audio.timing.wall_s


def test_the_cap_is_flagged(voice: Synthesizer, quick: SynthesisConfig) -> None:
    sampling = dataclasses.replace(quick.sampling, min_tokens=20, max_tokens=20)
    audio = voice.synthesize(TEXT, seed=5, config=dataclasses.replace(quick, sampling=sampling))
    assert audio.finish_reason == "length"
    assert len(audio.speech_tokens) == 20


def test_a_speech_prompt_is_not_heard(voice: Synthesizer, quick: SynthesisConfig) -> None:
    prompt = (1, 2, 3, 4, 5)
    audio = voice.synthesize(TEXT, seed=5, config=quick, speech_prompt=prompt)
    assert len(audio.samples) == len(audio.speech_tokens) * 1920
    assert audio.speech_tokens != voice.synthesize(TEXT, seed=5, config=quick).speech_tokens
    np.testing.assert_array_equal(streamed(voice, TEXT, seed=5, config=quick, speech_prompt=prompt), audio.samples)


def test_a_conversation_goes_on(voice: Synthesizer, quick: SynthesisConfig) -> None:
    earlier = [Turn("user", "Hello."), Turn("assistant", speech=(7, 8, 9))]
    audio = voice.synthesize(TEXT, seed=5, config=quick, earlier=earlier)
    assert audio.speech_tokens != voice.synthesize(TEXT, seed=5, config=quick).speech_tokens


def test_a_description_changes_the_speech(voice: Synthesizer, quick: SynthesisConfig) -> None:
    plain, described = (voice.synthesize(TEXT, seed=5, config=quick, description=text) for text in ("", "A low voice."))
    assert plain.speech_tokens != described.speech_tokens


def test_long_text_is_spoken_in_pieces(voice: Synthesizer, quick: SynthesisConfig) -> None:
    sampling = dataclasses.replace(quick.sampling, min_tokens=5, max_tokens=10)
    config = dataclasses.replace(quick, sampling=sampling, sentence_pause_s=0.5)
    text = " ".join(f"This is sentence number {number}." for number in range(60))
    chunks = list(voice.stream(text, seed=5, config=config))
    pauses = [chunk for chunk in chunks if not chunk.samples[-24000:].any()]
    assert len(pauses) >= 2
    whole = voice.synthesize(text, seed=5, config=config)
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), whole.samples)


def test_a_batch_goes_on_after_a_failure(voice: Synthesizer, quick: SynthesisConfig) -> None:
    requests = [Request(TEXT, seed=1, config=quick), Request("", config=quick), Request(TEXT, seed=1, config=quick)]
    first, failed, last = voice.synthesize_batch(requests)
    assert isinstance(failed, InputError)
    np.testing.assert_array_equal(first.samples, last.samples)


@pytest.mark.parametrize("prompt", [(81,), (-1,), (10**9,)])
def test_speech_tokens_outside_the_codec_are_refused(voice: Synthesizer, prompt: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected speech tokens of 0 \.\. 80"):
        voice.synthesize(TEXT, seed=1, speech_prompt=prompt)


def test_more_tokens_than_the_context_are_refused(voice: Synthesizer, quick: SynthesisConfig) -> None:
    sampling = dataclasses.replace(quick.sampling, max_tokens=5000)
    with pytest.raises(InputError, match="--max-context"):
        voice.synthesize(TEXT, seed=1, config=dataclasses.replace(quick, sampling=sampling))


def test_control_tokens_in_a_text_stay_text(voice: Synthesizer, quick: SynthesisConfig) -> None:
    """The prompt has as many live control tokens as without them."""
    system = voice._system
    assert isinstance(system, MoeTts)
    from voxedge.runtime.systems.base import Utterance

    live = {system._tokenizer.control_id(name) for name in ("<|im_start|>", "<|im_end|>", "<think>", "</think>")}

    def controls(text: str) -> int:
        runs = system.prompt(Utterance(text, quick, seed=1))
        return sum(token in live for run in runs for token in run.ids)

    assert controls("Hi <|im_end|> there <think>") == controls("Hi there")


def test_silence_is_an_error(voice: Synthesizer, quick: SynthesisConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    system = voice._system
    assert isinstance(system, MoeTts)
    decode = system.decode_latents
    monkeypatch.setattr(system, "decode_latents", lambda latents: decode(latents) * 0)
    with pytest.raises(InferenceError, match="silence"):
        voice.synthesize(TEXT, seed=1, config=quick)


def test_nan_is_an_error(voice: Synthesizer, quick: SynthesisConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    system = voice._system
    assert isinstance(system, MoeTts)
    decode = system.decode_latents
    monkeypatch.setattr(system, "decode_latents", lambda latents: decode(latents) * np.float32(np.nan))
    with pytest.raises(InferenceError, match="finite"):
        voice.synthesize(TEXT, seed=1, config=quick)


@pytest.mark.parametrize("backend", ["cuda", "tensorrt", "tensorrt_rtx"])
def test_a_backend_that_is_not_there_is_an_error(backend: str) -> None:
    if backend == "cuda":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this machine has the CUDA provider")
    with pytest.raises(BackendUnavailableError, match=backend if backend != "cuda" else "CUDAExecutionProvider"):
        Synthesizer.from_pretrained(tiny_voice(), backend=backend)


@pytest.mark.parametrize("changes", [{"cfg_scale": -1.0}, {"window_s": 0.0}, {"sentence_pause_s": -1.0}])
def test_options_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SynthesisConfig(**changes)


def test_long_text_fits_the_context_with_the_default_options(voice: Synthesizer) -> None:
    """Pieces leave room for the longest speech that may follow them."""
    system = voice._system
    assert isinstance(system, MoeTts)
    from voxedge.runtime.systems.base import Utterance

    request = Utterance("x", voice.default_config, seed=1, description="A voice. " * 20)
    limit, count = system.budget(request)
    text = "word " * limit
    while count(text) > limit:
        text = text[: len(text) * 9 // 10]
    runs = system.prompt(dataclasses.replace(request, text=text))
    assert sum(len(run.ids) for run in runs) + request.config.sampling.max_tokens <= system.settings.max_context


def test_options_that_leave_no_room_for_text_are_refused(voice: Synthesizer, quick: SynthesisConfig) -> None:
    with pytest.raises(InputError, match="shorten the description"):
        voice.synthesize(TEXT, seed=1, config=quick, description="A very long description. " * 60)

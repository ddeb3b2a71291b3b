"""The stages of the recipe, each from the files of those before it to its own file.

In: a folder and sizes. Out: files in the folder; what is there and finished is left alone. Does not know: the command
line, the layout of released checkpoints.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from examples.demo_voice import acoustic, batches, checkpoint, corpus, sentences, speech_tokenizer, vocoder
from examples.demo_voice.descriptions import style_and_description
from examples.demo_voice.language_model import Batch, SpeechExpert, TextExpert
from examples.demo_voice.prompts import prompt_ids, user_text, write_tokenizer
from examples.demo_voice.speech_tokenizer import SpeechTokenizer
from examples.demo_voice.training import Schedule, StepLoss, load_average, load_weights, train
from examples.demo_voice.vocoder import Vocoder
from voxedge.runtime.tokenizer import ChatTokenizer

_Model = TypeVar("_Model", bound=nn.Module)

HELD_OUT = 128
"""Utterances at the corpus's end that nothing learns from."""
_TEXT_BATCH, _SPEECH_BATCH = 48, 16
_DAMPING = 0.3  # of what a text expert's layers add, so that words of one kind differ in every layer


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    shards: int
    """Files of the corpus."""
    per_shard: int
    """Utterances of each."""
    workers: int
    """Processes that speak."""
    tokenizer_steps: int
    vocoder_steps: int
    text_steps: int
    speech_steps: int
    both_steps: int
    acoustic_steps: int
    prompts: int = 20_000
    """Prompts without speech, for the text expert and the tokenizer's merges."""
    seed: int = 4
    """Of everything."""


@dataclass(frozen=True, slots=True)
class Work:
    """A folder and the files in it."""

    folder: Path
    """Where everything is."""
    sizes: Sizes
    """How much of it."""

    def file(self, name: str) -> Path:
        """A file of the folder."""
        return self.folder / name

    def spoken(self) -> corpus.Corpus:
        """All utterances that were spoken."""
        return corpus.read(self.file("corpus"), self.sizes.shards)

    def chat_tokenizer(self) -> ChatTokenizer:
        """Of prompts."""
        return ChatTokenizer.from_file(self.file("tokenizer.json"))

    def prompts(self, entries: list[corpus.Entry]) -> list[list[int]]:
        """Ids of the corpus's prompts."""
        tokenizer = self.chat_tokenizer()
        return [prompt_ids(tokenizer, entry.description, entry.text) for entry in entries]


def speak(work: Work) -> None:
    """The corpus, and the tokenizer of prompts."""
    sizes = work.sizes
    corpus.write(work.file("corpus"), sizes.shards, sizes.per_shard, sizes.seed, sizes.workers)
    if not work.file("tokenizer.json").exists():
        written = [user_text(entry.description, entry.text) for entry in _extra(sizes)]
        rows = write_tokenizer(written, work.file("tokenizer.json"))
        print(f"prompts: {rows} ids")


def train_speech_tokenizer(work: Work) -> None:
    """Log-mel to codes."""
    torch.manual_seed(work.sizes.seed + 1)
    model, data = SpeechTokenizer(), work.spoken()
    usable = len(data.entries) - HELD_OUT

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.losses(*speech_tokenizer.batch(data, usable, rng))

    train(model, loss, Schedule(work.sizes.tokenizer_steps, 1.5e-3), work.sizes.seed, work.file("speech_tokenizer.pt"))


def train_vocoder(work: Work) -> None:
    """Log-mel to latents and back to sound."""
    torch.manual_seed(work.sizes.seed + 2)
    model, data = Vocoder(), work.spoken()
    usable = len(data.entries) - HELD_OUT

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.losses(*vocoder.batch(data, usable, rng))

    train(model, loss, Schedule(work.sizes.vocoder_steps, 1e-3), work.sizes.seed, work.file("vocoder.pt"))


def encode_tokens(work: Work) -> npt.NDArray[np.int16]:
    """Codes of the corpus, [tokens]."""
    path = work.file("tokens.npy")
    if not path.exists():
        model = _trained(SpeechTokenizer(), work.file("speech_tokenizer.pt"))
        np.save(path, speech_tokenizer.encode(model, work.spoken()))
    return np.load(path)  # type: ignore[no-any-return]


def encode_latents(work: Work) -> npt.NDArray[np.float16]:
    """Latents of the corpus, [tokens * 2, 32]."""
    path = work.file("latents.npy")
    if not path.exists():
        np.save(path, vocoder.encode(_trained(Vocoder(), work.file("vocoder.pt")), work.spoken()))
    return np.load(path)  # type: ignore[no-any-return]


def train_text_expert(work: Work) -> None:
    """A language model of prompts."""
    torch.manual_seed(work.sizes.seed + 3)
    model, seed = text_expert(work), work.sizes.seed
    prompts = work.prompts(_extra(work.sizes))

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.losses(batches.text_batch(prompts, _TEXT_BATCH, rng))

    train(model, loss, Schedule(work.sizes.text_steps, 2e-3), seed, work.file("text_expert.pt"))


def train_speech_expert(work: Work) -> None:
    """The speech expert alone, on top of the frozen text expert."""
    torch.manual_seed(work.sizes.seed + 4)
    model = SpeechExpert(_trained(text_expert(work), work.file("text_expert.pt")))
    schedule = Schedule(work.sizes.speech_steps, 1.5e-3, warmup=200, decay=0.05, average=0.998)
    train(model, _speech_loss(work, model), schedule, work.sizes.seed, work.file("speech_expert.pt"))


def train_both_experts(work: Work) -> None:
    """Both experts, from the speech expert's last weights and a text expert whose layers add less."""
    model = SpeechExpert(text_expert(work), frozen=False)
    load_weights(work.file("speech_expert.pt"), model)
    model.text.expert.damp(_DAMPING)
    schedule = Schedule(work.sizes.both_steps, 1.5e-3, warmup=40, decay=0.05, falls_from=0.0)
    train(model, _speech_loss(work, model), schedule, work.sizes.seed + 1, work.file("both_experts.pt"))


def _speech_loss(work: Work, model: SpeechExpert) -> StepLoss:
    """The loss of one step over the corpus; every 500 steps also that of utterances held out."""
    data, codes, seed = work.spoken(), encode_tokens(work), work.sizes.seed
    prompts = work.prompts(data.entries)
    speech = [codes[data.tokens(index)] for index in range(len(prompts))]
    usable = len(prompts) - HELD_OUT
    lengths = np.asarray([len(tokens) for tokens in speech[:usable]])

    def pick(indices: npt.NDArray[np.int64], rng: np.random.Generator | None = None) -> Batch:
        return batches.speech_batch([prompts[index] for index in indices], [speech[index] for index in indices], rng)

    held_out = pick(np.arange(usable, len(prompts)))

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, figures = model.losses(pick(batches.order(lengths, _SPEECH_BATCH, seed, step), rng))
            if (step + 1) % 500 == 0:
                with torch.no_grad():
                    figures["held_out"] = model.losses(held_out)[0].item()
        return value, figures

    return loss


def train_acoustic(work: Work) -> None:
    """Speech tokens to latents."""
    torch.manual_seed(work.sizes.seed + 5)
    model, data, codes, latents = acoustic.Acoustic(), work.spoken(), encode_tokens(work), encode_latents(work)
    usable, scale = len(data.entries) - HELD_OUT, acoustic.scale_of(latents)

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.losses(*acoustic.batch(data, usable, codes, latents, scale, rng))

    train(
        model, loss, Schedule(work.sizes.acoustic_steps, 1.5e-3, warmup=100), work.sizes.seed, work.file("acoustic.pt")
    )


def write_checkpoint(work: Work) -> None:
    """The trained parts in the released layout."""
    checkpoint.write(
        work.file("checkpoint"),
        _trained(SpeechExpert(text_expert(work), frozen=False), work.file("both_experts.pt")),
        _trained(acoustic.Acoustic(), work.file("acoustic.pt")),
        _trained(Vocoder(), work.file("vocoder.pt")),
        acoustic.scale_of(encode_latents(work)),
        work.file("tokenizer.json"),
    )


def text_expert(work: Work) -> TextExpert:
    """Untrained, of the right size."""
    return TextExpert(int(work.chat_tokenizer().control_id("</think>")) + 1)


def _trained(model: _Model, path: Path) -> _Model:
    load_average(path, model)
    return model.eval()


def _extra(sizes: Sizes) -> list[corpus.Entry]:
    """Prompts without speech."""
    held_out = {sentences.key(text) for text in corpus.test_sentences()}
    rng = random.Random(f"{sizes.seed}:prompts")  # noqa: S311 - not for secrets
    entries: list[corpus.Entry] = []
    while len(entries) < sizes.prompts:
        text, (style, description) = sentences.training_sentence(rng), style_and_description(rng)
        if sentences.key(text) not in held_out:
            entries.append(corpus.Entry(text, description, style.speaker, style.speed, style.pitch))
    return entries

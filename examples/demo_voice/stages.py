"""The stages of the recipe, each from the files of those before it to its own file.

In: a folder, sizes and a device. Out: files in the folder; what is there and finished is left alone. Stages that hear
the corpus may run while it is still being spoken: they begin with its first shards and take in the others as they
come. Does not know: the command line, the layout of released checkpoints.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from examples.demo_voice import acoustic, checkpoint, corpus, speech_tokenizer, vocoder
from examples.demo_voice.descriptions import style_and_description
from examples.demo_voice.dialogues import Dialogues, held_out
from examples.demo_voice.features import LogMel
from examples.demo_voice.language_model import Batch, SpeechExpert, TextExpert
from examples.demo_voice.pool import HELD_OUT, Pool, arriving, encode, log_mel
from examples.demo_voice.prompts import prompt_ids, write_tokenizer
from examples.demo_voice.speech_tokenizer import SpeechTokenizer
from examples.demo_voice.training import Loss, Schedule, load_average, train
from examples.demo_voice.vocoder import LATENTS_PER_TOKEN, Vocoder
from voxedge.runtime.tokenizer import ChatTokenizer

_Model = TypeVar("_Model", bound=nn.Module)

_LONGEST_PROMPT = 192
_JUDGE_EVERY = 500
_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    shards: int
    """Files of the corpus."""
    per_shard: int
    """Utterances of each."""
    workers: int
    """Processes that speak."""
    heard: int
    """Shards that the speech tokenizer and the vocoder learn from."""
    first: int
    """Shards that must be there before anything is learned from them."""
    tokenizer_steps: int
    tokenizer_batch: int
    vocoder_steps: int
    vocoder_batch: int
    text_steps: int
    text_batch: int
    speech_steps: int
    speech_batch: int
    """Utterances of a batch of the smallest shape, see `dialogues`."""
    acoustic_steps: int
    acoustic_batch: int
    prompts: int = 20_000
    """Prompts without speech, for the text expert."""
    seed: int = 4
    """Of everything."""


@dataclass(frozen=True, slots=True)
class Work:
    """A folder, the files in it, and what works on them."""

    folder: Path
    """Where everything is."""
    sizes: Sizes
    """How much of it."""
    device: torch.device
    """That learns."""
    compiled: bool = False
    """Compile the experts' layers."""
    seconds: float = math.inf
    """A stage stops learning after so long."""

    def file(self, name: str) -> Path:
        """A file of the folder."""
        return self.folder / name

    def pool(self) -> Pool:
        """What the encoders learn from, as far as it has been spoken."""
        pool = Pool(self.file("corpus"), self.sizes.heard, self.sizes.per_shard, self.device)
        pool.wait(self.sizes.first)
        return pool

    def loss(self, made: Callable[[], tuple[Tensor, dict[str, Tensor]]]) -> Loss:
        """A loss in mixed precision."""

        def mixed() -> tuple[Tensor, dict[str, Tensor]]:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
                return made()

        return mixed


def speak(work: Work) -> None:
    """The tokenizer of prompts, and the corpus."""
    sizes = work.sizes
    if not work.file("tokenizer.json").exists():
        print(f"prompts: {write_tokenizer(work.file('tokenizer.json'))} ids")
    corpus.write(
        work.file("corpus"), work.file("tokenizer.json"), sizes.shards, sizes.per_shard, sizes.seed, sizes.workers
    )


def train_speech_tokenizer(work: Work) -> None:
    """Log-mel to codes."""
    torch.manual_seed(work.sizes.seed + 1)
    model, pool = SpeechTokenizer().to(work.device), work.pool()
    crops = (work.sizes.tokenizer_batch, speech_tokenizer.CROP_TOKENS)
    schedule = Schedule(work.sizes.tokenizer_steps, 1.5e-3, seconds=work.seconds)
    loss = work.loss(lambda: model.losses(*pool.crops(*crops)))
    _train_encoder(work, model, loss, schedule, pool, "speech_tokenizer.pt")


def train_vocoder(work: Work) -> None:
    """Log-mel to latents and back to sound."""
    torch.manual_seed(work.sizes.seed + 2)
    model, pool = Vocoder().to(work.device), work.pool()
    schedule = Schedule(work.sizes.vocoder_steps, 1e-3, seconds=work.seconds)
    loss = work.loss(lambda: model.losses(*vocoder.batch(pool, work.sizes.vocoder_batch)))
    _train_encoder(work, model, loss, schedule, pool, "vocoder.pt")


def _train_encoder(work: Work, model: nn.Module, loss: Loss, schedule: Schedule, pool: Pool, name: str) -> None:
    def grown(step: int) -> str:
        pool.grow()
        return f" shards {pool.read}"

    train(model, [loss], schedule, work.sizes.seed, work.file(name), between=grown)


def train_text_expert(work: Work) -> None:
    """A language model of prompts."""
    torch.manual_seed(work.sizes.seed + 3)
    model, size = text_expert(work).to(work.device), work.sizes.text_batch
    prompts = _prompts(work).to(work.device)
    schedule = Schedule(work.sizes.text_steps, 2e-3, seconds=work.seconds)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        return model.losses(prompts[torch.randint(len(prompts), (size,), device=work.device)].long())

    train(model, [work.loss(loss)], schedule, work.sizes.seed, work.file("text_expert.pt"))


def train_experts(work: Work) -> None:
    """Both experts, the speech expert from the text expert's weights."""
    torch.manual_seed(work.sizes.seed + 4)
    model = SpeechExpert(_trained(text_expert(work), work.file("text_expert.pt"))).to(work.device).train()
    if work.compiled:
        model.compile_layers()
    told = _Told(work)
    schedule = Schedule(work.sizes.speech_steps, 1.5e-3, warmup=300, decay=0.05, average=0.999, seconds=work.seconds)
    losses = [
        work.loss(lambda shape=shape: model.losses(told.dialogues.batch(shape)))  # type: ignore[misc]
        for shape in range(told.dialogues.shapes)
    ]

    def between(step: int) -> str:
        told.grow()
        if step % _JUDGE_EVERY:
            return f" shards {told.read}"
        model.eval()
        with torch.no_grad():
            judged = work.loss(lambda: model.losses(told.held_out))()[0].item()
        model.train()
        return f" shards {told.read} held_out {judged:.4f}"

    seed = work.sizes.seed
    choose = told.dialogues.choose
    train(model, losses, schedule, seed, work.file("experts.pt"), lambda step: choose(seed, step), between)


class _Told:
    """Prompts and speech tokens of the corpus, growing with it."""

    held_out: Batch
    """Utterances to judge by, from the first shard, that nothing learns from."""

    def __init__(self, work: Work) -> None:
        sizes = work.sizes
        self._work = work
        self.dialogues = Dialogues(
            sizes.shards * sizes.per_shard * corpus.DESCRIPTIONS, sizes.speech_batch, work.device
        )
        self.read = 0
        while self.read < min(sizes.first, sizes.shards):
            self.grow()
            time.sleep(0.0 if self.read else _WAIT_S)

    def grow(self) -> None:
        """Take in what has been encoded since."""
        sizes = self._work.sizes
        while self.read < sizes.shards and _tokens_path(self._work, self.read).exists():
            codes, prompts = _read_tokens(_tokens_path(self._work, self.read))
            repeated = [tokens for tokens in codes for _ in range(corpus.DESCRIPTIONS)]
            begin = 0 if self.read else HELD_OUT * corpus.DESCRIPTIONS
            if begin:
                self.held_out = held_out(prompts[:begin], repeated[:begin], self._work.device)
            self.dialogues.add(prompts[begin:], repeated[begin:])
            self.read += 1


def encode_tokens(work: Work) -> None:
    """Codes of the whole corpus, shard by shard, each with its prompts."""
    model = _trained(SpeechTokenizer(), work.file("speech_tokenizer.pt")).to(work.device)
    transform, sizes = LogMel().to(work.device), work.sizes
    for index in range(sizes.shards):
        path = _tokens_path(work, index)
        while not corpus.shard_path(work.file("corpus"), index).exists():
            time.sleep(_WAIT_S)
        if path.exists():
            continue
        shard = corpus.read(work.file("corpus"), index)
        mel = log_mel(shard, transform)
        codes = encode(shard, mel, lambda mel: speech_tokenizer.ids_of(model.digits(mel)), per_token=1)
        prompt_lengths = np.asarray([len(prompt) for prompt in shard.prompts])
        unfinished = path.with_suffix(".partial.npz")
        np.savez(
            unfinished,
            codes=codes.cpu().numpy().astype(np.int16),
            lengths=shard.tokens,
            prompts=np.concatenate(shard.prompts),
            prompt_lengths=prompt_lengths,
        )
        unfinished.rename(path)


def _tokens_path(work: Work, index: int) -> Path:
    return work.file("corpus") / f"tokens_{index:03d}.npz"


def _read_tokens(path: Path) -> tuple[list[npt.NDArray[np.int16]], list[npt.NDArray[np.uint16]]]:
    """Codes of every utterance, and ids of every prompt."""
    with np.load(path) as data:
        codes = np.split(data["codes"], np.cumsum(data["lengths"])[:-1])
        return codes, np.split(data["prompts"], np.cumsum(data["prompt_lengths"])[:-1])


def train_acoustic(work: Work) -> None:
    """Speech tokens to latents."""
    torch.manual_seed(work.sizes.seed + 5)
    model, size = acoustic.Acoustic().to(work.device), work.sizes.acoustic_batch
    crops = _crops(work)
    schedule = Schedule(work.sizes.acoustic_steps, 1.5e-3, warmup=100, average=0.999, seconds=work.seconds)
    loss = work.loss(lambda: model.losses(*crops.batch(size)))
    torch.save(crops.scale.cpu(), work.file("scale.pt"))
    train(model, [loss], schedule, work.sizes.seed, work.file("acoustic.pt"))


def _crops(work: Work) -> acoustic.Crops:
    """Tokens and latents of what has been encoded, as much of it as the encoders learned from."""
    model, transform = _trained(Vocoder(), work.file("vocoder.pt")).to(work.device), LogMel().to(work.device)
    codes, latents, first = [], [], 0
    for index, shard in enumerate(arriving(work.file("corpus"), 0, work.sizes.heard)):
        if not _tokens_path(work, index).exists():
            break
        told = _read_tokens(_tokens_path(work, index))[0]
        codes.append(torch.from_numpy(np.concatenate(told)).to(work.device))
        mel = log_mel(shard, transform)
        means = encode(shard, mel, lambda mel: model.latents(mel)[0].transpose(1, 2), LATENTS_PER_TOKEN)
        latents.append(means.half())
        first = first or int(shard.tokens[:HELD_OUT].sum())
    return acoustic.Crops(torch.cat(codes), torch.cat(latents), first)


def write_checkpoint(work: Work) -> None:
    """The trained parts in the released layout."""
    checkpoint.write(
        work.file("checkpoint"),
        _trained(SpeechExpert(text_expert(work)), work.file("experts.pt")),
        _trained(acoustic.Acoustic(), work.file("acoustic.pt")),
        _trained(Vocoder(), work.file("vocoder.pt")),
        torch.load(work.file("scale.pt"), weights_only=True),
        work.file("tokenizer.json"),
    )


def text_expert(work: Work) -> TextExpert:
    """Untrained, of the right size."""
    return TextExpert(int(_tokenizer(work).control_id("</think>")) + 1)


def _tokenizer(work: Work) -> ChatTokenizer:
    path = work.file("tokenizer.json")
    while not path.exists():  # the corpus's stage has just begun
        time.sleep(_WAIT_S)
    return ChatTokenizer.from_file(path)


def _trained(model: _Model, path: Path) -> _Model:
    load_average(path, model)
    return model.eval()


def _prompts(work: Work) -> Tensor:
    """Prompts without speech, [N, P] int16, filled up with -1."""
    rng, tokenizer = random.Random(f"{work.sizes.seed}:prompts"), _tokenizer(work)  # noqa: S311 - not for secrets
    ids = np.full((work.sizes.prompts, _LONGEST_PROMPT), -1, np.int16)
    for row in ids:
        prompt = prompt_ids(tokenizer, style_and_description(rng)[1], corpus.sentence(rng))[:_LONGEST_PROMPT]
        row[: len(prompt)] = prompt
    return torch.from_numpy(ids)

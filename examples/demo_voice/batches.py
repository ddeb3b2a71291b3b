"""Batches for the two experts, from texts, prompts and speech tokens of the corpus.

In: lists of ids. Out: padded batches of utterances of like length, drawn by a seeded generator. Does not know: models.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.demo_voice.language_model import IGNORED, Batch
from examples.demo_voice.speech_tokenizer import CODES

_WRONG = 0.1  # share of the tokens read in training that are replaced
_NEAR = 8  # batches that are drawn at once and sorted by length: less filling


def text_batch(prompts: list[list[int]], size: int, rng: np.random.Generator) -> Tensor:
    """Random prompts, [B, P], filled up with -1."""
    chosen = [prompts[index] for index in rng.integers(0, len(prompts), size)]
    ids = torch.full((size, max(map(len, chosen))), -1)
    for row, prompt in enumerate(chosen):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids


def speech_batch(
    prompts: list[list[int]], speech: list[npt.NDArray[np.int16]], rng: np.random.Generator | None = None
) -> Batch:
    """Prompts against the right edge and their speech.

    Args:
        prompts: Ids.
        speech: Tokens of each.
        rng: Replaces some of the tokens that are read, never those to predict: a model that cannot trust what it said
            looks at the text.
    """
    longest = max(map(len, prompts))
    spoken = max(map(len, speech))
    text = torch.zeros(len(prompts), longest, dtype=torch.long)
    read = torch.zeros(len(prompts), spoken, dtype=torch.long)
    targets = torch.full((len(prompts), spoken + 1), IGNORED)
    for row, (prompt, tokens) in enumerate(zip(prompts, speech, strict=True)):
        ids = torch.from_numpy(tokens.astype(np.int64))
        text[row, longest - len(prompt) :] = torch.tensor(prompt)
        read[row, : len(ids)] = ids
        targets[row, : len(ids)] = ids
        targets[row, len(ids)] = CODES
    if rng is not None:
        wrong = torch.from_numpy(rng.random(read.shape) < _WRONG)
        read = torch.where(wrong, torch.from_numpy(rng.integers(0, CODES, read.shape)), read)
    return Batch(text, torch.tensor([len(prompt) for prompt in prompts]), read, targets)


def order(lengths: npt.NDArray[np.int64], size: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Utterances of a step: each epoch in another order, neighbours in length together.

    Args:
        lengths: [N], of the utterances.
        size: Utterances of a batch.
        seed: Of the run.
        step: From 0.
    """
    steps = max(1, len(lengths) // size)
    rng = np.random.default_rng([seed, step // steps])
    shuffled = rng.permutation(len(lengths))[: steps * size]
    groups = [shuffled[at : at + _NEAR * size] for at in range(0, len(shuffled), _NEAR * size)]
    batches = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups]).reshape(
        steps, size
    )
    chosen: npt.NDArray[np.int64] = batches[rng.permutation(steps)[step % steps]]
    return chosen

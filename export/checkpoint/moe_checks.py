"""Checks between the parts of a MoE-TTS checkpoint: parts that load alone may still not belong together.

In: loaded parts and the facts of a tokenizer file. Out: nothing, or one error that names both sides. Does not know:
layouts of weights, graphs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section, load_json
from voxedge.export.checkpoint.dit import DitCheckpoint
from voxedge.export.checkpoint.oobleck import VaeCheckpoint
from voxedge.export.checkpoint.qwen3 import LanguageModel
from voxedge.export.checkpoint.rearrange import Rows
from voxedge.export.checkpoint.tensors import materialise

MAX_TOKENIZER_BYTES = 64_000_000
SPEECH_TOKEN = re.compile(r"<\|?(?:s|speech|audio|speech_token|audio_token)_(\d+)\|?>")
AGREEING = ("layers", "heads", "kv_heads", "head_dim", "hidden_size", "rope_theta", "rms_norm_eps")


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a tokenizer file says about ids."""

    length: int
    """One past the highest text id."""
    speech_ids: Mapping[int, int] = field(default_factory=dict)
    """Id of each speech token that the tokenizer knows by name, by its number."""


def read_tokenizer_facts(path: Path) -> TokenizerFacts:
    """Read the ids of a `tokenizer.json`.

    Raises:
        CheckpointError: the file is not a tokenizer with a vocabulary.
        MissingResourceError: there is no such file.
    """
    content = Section(load_json(path, MAX_TOKENIZER_BYTES), str(path))
    vocabulary = content.section("model").raw("vocab", {})
    added = content.raw("added_tokens", [])
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise content.fail("added_tokens", "a vocabulary object and a list of added tokens")
    ids = dict(vocabulary)
    for number, token in enumerate(added):
        entry = Section(token, f"{path}: added_tokens[{number}]")
        ids[entry.text("content")] = entry.integer("id", minimum=0)
    if not ids or not all(type(each) is int and 0 <= each < 2**31 for each in ids.values()):
        raise content.fail("model", "a vocabulary of texts to ids")
    names = {name: SPEECH_TOKEN.fullmatch(name) for name in ids}
    speech = {int(match.group(1)): ids[name] for name, match in names.items() if match}
    text = [ids[name] for name, match in names.items() if not match]
    return TokenizerFacts(1 + max(text, default=-1), speech)


def check_experts_agree(text: LanguageModel, speech: LanguageModel, num_rows: int, where: str) -> None:
    """Both experts share one KV cache and one residual stream, so these sizes must be equal.

    Raises:
        CheckpointError: names every field that differs.
    """
    pairs = {name: (getattr(text.config, name), getattr(speech.config, name)) for name in AGREEING}
    different = [f"{name} {left} and {right}" for name, (left, right) in pairs.items() if left != right]
    if different:
        raise CheckpointError(
            f"{where}: expected experts that agree, the text and the speech expert differ in {', '.join(different)}; "
            "take both from the same training run"
        )
    if speech.config.vocab_size != num_rows:
        raise CheckpointError(
            f"{where}: expected speech.num_rows = {num_rows} rows in the speech expert, "
            f"found {speech.config.vocab_size}"
        )


def check_tokenizer(facts: TokenizerFacts, text: LanguageModel, offset: int, where: str) -> None:
    """Text ids must have rows, and named speech tokens must be where the offset says.

    Raises:
        CheckpointError: they are not; the message names the offset to try.
    """
    if facts.length > text.config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer uses ids up to {facts.length - 1}, but text has {text.config.vocab_size} rows "
            f"(token_id_offset is {offset}); expected at least {facts.length}, or speech rows are read as text"
        )
    wrong = [(number, each) for number, each in facts.speech_ids.items() if each != offset + number]
    if wrong:
        number, each = min(wrong)
        raise CheckpointError(
            f"{where}: speech.token_id_offset is {offset}, but the tokenizer gives speech token {number} the id "
            f"{each}; set it to {each - number}"
        )


def check_speech_rows(speech: LanguageModel, num_tokens: int, offset: int, facts: TokenizerFacts, where: str) -> None:
    """Trained rows differ from each other; padding rows of an embedding are often zero or copies.

    Raises:
        CheckpointError: the first or the last two speech rows are zero or equal.
    """
    if num_tokens < 2:
        return
    for start in (0, num_tokens - 2):
        rows = materialise(Rows(speech.tensors["embed_tokens.weight"], start, start + 2))  # [2, hidden]
        if np.array_equal(rows[0], rows[1]) or not rows.any(axis=1).all():
            raise CheckpointError(
                f"{where}: speech embedding rows {start} and {start + 1} are zero or equal, so they are not trained. "
                f"token_id_offset {offset} probably points to padding rows; the other convention begins at "
                f"len(tokenizer) = {facts.length}"
            )


def check_stages_agree(
    dit: DitCheckpoint | None, vae: VaeCheckpoint | None, num_tokens: int, frame_rate: float, where: str
) -> None:
    """The acoustic decoder must read the language model's tokens and write the vocoder's latents.

    Raises:
        CheckpointError: names both sides.
    """
    if dit is not None:
        rows = dit.token_table.shape[0]
        if rows < num_tokens or dit.frame_rate not in (None, frame_rate):
            raise CheckpointError(
                f"{where}: expected a token table of {num_tokens} rows at {frame_rate} tokens per second in the "
                f"acoustic decoder, found {rows} rows at {dit.frame_rate}"
            )
    if dit is not None and vae is not None and dit.config.io_channels != vae.latent_dim:
        raise CheckpointError(
            f"{where}: expected an acoustic decoder with the vocoder's {vae.latent_dim} latent channels, found "
            f"{dit.config.io_channels}; take both from the same release"
        )


def check_eos(vocabulary: str, eos_id: int, text: LanguageModel, speech_rows: tuple[int, int], where: str) -> None:
    """The end token must have a row, and must not be a codec token.

    Args:
        vocabulary: "text" or "speech".
        eos_id: id inside that vocabulary.
        text: the text expert.
        speech_rows: codec tokens and rows of the speech vocabulary.
        where: the configuration, for messages.

    Raises:
        CheckpointError: names the allowed range.
    """
    low, high = (0, text.config.vocab_size) if vocabulary == "text" else speech_rows
    if not low <= eos_id < high:
        allowed = f"an id from {low} to {high - 1}" if low < high else "a control row, of which there is none"
        raise CheckpointError(
            f"{where}: speech.eos: expected {allowed} in the {vocabulary} vocabulary (a codec token cannot end an "
            f"utterance), found {eos_id}"
        )


def check_rates(sample_rate: int | None, latent_rate: float | None, vae: VaeCheckpoint | None, where: str) -> None:
    """The configured rates must be the vocoder's.

    Raises:
        CheckpointError: names both.
    """
    if vae is not None and (sample_rate, latent_rate) != (vae.sample_rate, vae.latent_rate):
        raise CheckpointError(
            f"{where}: expected the vocoder's sample_rate {vae.sample_rate} and latent_rate {vae.latent_rate}, "
            f"found {sample_rate} and {latent_rate}"
        )

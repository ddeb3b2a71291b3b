"""Prompts as the runtime renders them, and the tokenizer that reads them.

In: texts and descriptions. Out: a byte-level BPE `tokenizer.json` with ChatML's control tokens, and ids of prompts. The
merges come from the corpus's own words, so that each of them is one token, as common words are in Qwen's tokenizer;
case is folded. Rendering and encoding are the runtime's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from voxedge.runtime.prompt import CONTROL_TOKENS, Turn, fill_template, render_prompt
from voxedge.runtime.tokenizer import ChatTokenizer

USER_TEMPLATE = "{description}\n {text}"
"""A blank before the text: a word is the same token at the beginning and within."""
# Qwen's.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_VOCABULARY = 2048  # more than the corpus's words need; merges end when every word is one token


def write_tokenizer(texts: Iterable[str], path: Path) -> int:
    """Learn the merges and write the file.

    Returns:
        One past the highest id.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    roles = ["user\n", "assistant\n"] * 2  # a pair of letters must occur twice to be merged
    tokenizer.train_from_iterator([*texts, *roles], trainer)
    tokenizer.add_tokens(
        [AddedToken(token, special=token.startswith("<|"), normalized=False) for token in CONTROL_TOKENS]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size(with_added_tokens=True))


def user_text(description: str, text: str) -> str:
    """What stands in the user's turn."""
    filled = fill_template(USER_TEMPLATE, description=description, text=text)
    return filled if description else filled.strip("\n")  # as the runtime does


def prompt_ids(tokenizer: ChatTokenizer, description: str, text: str) -> list[int]:
    """Ids up to where speech begins."""
    return tokenizer.encode(render_prompt(None, [Turn("user", user_text(description, text))]))

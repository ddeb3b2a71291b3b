"""Prompts as the runtime renders them, and the tokenizer that reads them.

In: texts and descriptions. Out: a byte-level `tokenizer.json` with ChatML's control tokens, and ids of prompts. It has
no merges, every letter is a token: a voice of open text has to spell, and a small corpus shows few words often enough
to learn them whole. Case is folded. Rendering and encoding are the runtime's own.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from voxedge.runtime.prompt import CONTROL_TOKENS, Turn, fill_template, render_prompt
from voxedge.runtime.tokenizer import ChatTokenizer

USER_TEMPLATE = "{description}\n {text}"
"""A blank before the text: a word is spelled alike at the beginning and within."""
# Qwen's.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(path: Path) -> int:
    """Write the file.

    Returns:
        One past the highest id.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: row for row, letter in enumerate(alphabet)}, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
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

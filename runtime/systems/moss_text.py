"""The text normaliser that the delay model was trained behind: markup, spaces, structure and repeated marks.

In: text as users write it. Out: the text that the model reads. The rules and their order are those of the reference
(specification 4.6), whatever one may think of them: other text is other tokens. What looks like an address, a file name
or a version is taken out first and put back at the end. Knows no tokenizer.
"""

from __future__ import annotations

import re
import unicodedata

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Around the number of what was taken out; private-use characters, which no text keeps (category Co)."""
_KEPT = f"{_OPEN}\\d+{_CLOSE}"

_INVISIBLE = re.compile("[\u200b-\u200d\ufeff]")
_LINK = re.compile(r"\[([^\[\]]*)\]\((https?://[^\s()]+)\)")
_LINE_START = re.compile(r"^(?:#{1,6}\s+|>\s+|[-*+]\s+|\d+[.)]\s+)")
_PROTECTED = re.compile(
    "|".join(
        [
            r"https?://[^\s\u3000-\u303f\uff00-\uffef]+",
            r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}",
            r"(?<![A-Za-z0-9_])@\w{1,32}",
            r"(?<![A-Za-z0-9_/])[ur]/[A-Za-z0-9_]+",
            r"(?<![A-Za-z0-9_])#\w+",
            r"(?<![A-Za-z0-9_.])\.[A-Za-z][A-Za-z0-9_.-]*",
            r"(?<![A-Za-z0-9_])(?=[A-Za-z0-9._/+:-]*[A-Za-z])[A-Za-z0-9]+(?:[._/+:-]+[A-Za-z0-9]+)+",
        ]
    )
)
_WORD = rf"(?:[A-Za-z0-9_]*[A-Za-z][A-Za-z0-9_]*|{_KEPT})"
_SPACES = tuple(
    (re.compile(pattern), becomes)
    for pattern, becomes in (
        (r"[ \t\u00a0\u3000]+", " "),
        (rf"(?<=[{_HAN}]) (?=[{_HAN}])", ""),
        (rf"(?<=[{_HAN}]) (?=\d+(?![A-Za-z0-9_]))", ""),
        (rf"(?<![A-Za-z0-9_])(\d+) (?=[{_HAN}])", r"\1"),
        (rf"(?<=[{_HAN}]) ?(?={_WORD})", " "),
        (rf"({_WORD}) ?(?=[{_HAN}])", r"\1 "),
        (r" +(?=[，。！？；：、”’」』】）》])", ""),
        (r"(?<=[（【「『《“‘]) +", ""),
        (r"(?<=[，。！？；：、]) +", ""),
        (r" +(?=[,.;!?])", ""),
    )
)
_INITIAL = r"(^|[。！？!?；;])\s*"
_BRACKETS = re.compile(_INITIAL + r"(?:【([^】]*)】|〖([^〗]*)〗|『([^』]*)』|「([^」]*)」)", re.MULTILINE)
_TITLE = re.compile(_INITIAL + rf"《([^》]*)》(?=\s*(?:{_KEPT}|[—–―-]{{2,}}|$|[。！？!?；;，,]))", re.MULTILINE)
_ARROW = re.compile(r"\s*(?:<[-=]+>|[-=]+>|<[-=]+|[→←↔⇒⇐⇔]+)\s*")
_DASHES = re.compile(r"\s*[—–―-]{2,}\s*")
_REPEATS = tuple(
    (re.compile(pattern), becomes)
    for pattern, becomes in (
        (r"\.{3,}|…{2,}", "。"),
        (r"[。．]{2,}", "。"),
        (r"[，,]{2,}", "，"),
        (r"[!！]{2,}", "！"),
        (r"[?？]{2,}", "？"),
        (r"(?=[!！?？]*[!！])(?=[!！?？]*[?？])[!！?？]{2,}", "？！"),
    )
)


def normalise_text(text: str) -> str:
    r"""Normalise.

    Example:
        >>> normalise_text("Hello,   world!!!")
        'Hello, world！'
        >>> normalise_text("- item one\n- item two")
        'item one。item two'
    """
    kept: list[str] = []

    def take(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"{_OPEN}{len(kept) - 1}{_CLOSE}"

    text = _PROTECTED.sub(take, _without_markup(_visible(text)))
    text = _repeats(_structure(_spaces(text)))
    text = _spaces(text)
    return re.sub(f"{_OPEN}(\\d+){_CLOSE}", lambda match: kept[int(match[1])], text).strip()


def _visible(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u3000", " ")
    text = _INVISIBLE.sub("", text)
    return "".join(sign for sign in text if sign in "\n\t" or not unicodedata.category(sign).startswith("C"))


def _without_markup(text: str) -> str:
    lines = (_LINE_START.sub("", line.strip()) for line in _LINK.sub(r"\1 \2", text).split("\n"))
    return "。".join(line.strip() for line in lines if line.strip())


def _spaces(text: str) -> str:
    for pattern, becomes in _SPACES:
        text = pattern.sub(becomes, text)
    return text


def _structure(text: str) -> str:
    for _ in range(2):
        text = _BRACKETS.sub(lambda match: match[1] + "".join(part for part in match.groups()[1:] if part) + "。", text)
    text = _TITLE.sub(r"\1\2", text)
    return _DASHES.sub("。", _ARROW.sub("，", text))


def _repeats(text: str) -> str:
    for pattern, becomes in _REPEATS:
        text = pattern.sub(becomes, text)
    return text

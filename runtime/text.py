"""Long text to pieces a model can speak at once.

In: text, a token budget, a function that counts tokens. Out: pieces within the budget, cut where a reader would pause.
Does not know: tokenizers, languages beyond their punctuation, how pieces are spoken. Never changes a character; only
white space at the seams is dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from voxedge.engines.errors import ConfigError, InputError

CountTokens = Callable[[str], int]

_CLOSERS = "\"'\u2019\u201d\u00bb)\\]}\u300d\u300f\u3011\uff09\u3009\u300b\uff63"
_LOW_CLOSERS = "\u2018\u201c"  # open in English, close in German: the end of a word tells which
_WIDE_STOPS = "\u3002\uff01\uff1f\uff1b\uff0e\uff61\u0964\u0965"  # end a sentence whatever follows
_NARROW_STOPS = ".!?;\u2026\u061f\u06d4\u061b"  # end one only before white space
_STOP = re.compile(
    rf"(?P<stop>[{_NARROW_STOPS}{_WIDE_STOPS}]+)[{_CLOSERS}]*(?:[{_LOW_CLOSERS}](?!\S))?(?P<space>\s*)|\n\s*"
)
_CLAUSE = re.compile(rf"(?:[,;:\u2014\u2013]+[{_CLOSERS}]*(?=\s)|[\uff0c\u3001\uff1b\uff1a\u060c\u2014]+)\s*")
_WORD = re.compile(r"\S+\s*|\s+")
_LAST_WORD = re.compile(rf"[^\s{_CLOSERS}(\[{{\u201e\u00ab]+$")
_LOOK_BACK = 32  # longer than any abbreviation

# Something always follows these, so their full stop ends no sentence.
_OPEN_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "mx", "dr", "prof", "st", "sr", "sra", "rev", "hon", "gen", "col", "capt", "lt",
     "sgt", "maj", "adm", "gov", "sen", "rep", "pres", "fr", "msgr", "mt", "ft", "mme", "mlle", "m", "vs",
     "cf", "e.g", "i.e", "viz", "ca", "fig", "figs", "eq", "eqs", "sec", "ch", "vol", "nos", "pp", "p",
     "ed", "eds", "tel", "ext", "bzw", "z.b", "d.h", "u.a"]
)  # fmt: skip
_NUMBER_ABBREVIATIONS = frozenset(["no", "nr", "art", "op"])  # words of their own unless a number follows
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J, U.S, a.m
_JOINERS = ("\u200d", "\ufe0e", "\ufe0f")  # bind what stands before or after them into one sign


def split_sentences(text: str) -> list[str]:
    """Cut text behind every sentence and line; the parts join to the text again, character by character.

    Example:
        >>> split_sentences('Mr. Lee paid 3.50. "Really?" he asked. Yes!')
        ['Mr. Lee paid 3.50. ', '"Really?" he asked. ', 'Yes!']
    """
    parts, begin = [], 0
    for match in _STOP.finditer(text):
        if match.end() > begin and (match["stop"] is None or _ends_sentence(text, match)):
            parts.append(text[begin : match.end()])
            begin = match.end()
    return [*parts, text[begin:]] if begin < len(text) else parts


def split_text(text: str, max_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Cut text into pieces within a token budget.

    Whole sentences are packed as long as they fit; a sentence that is too long by itself is cut at clause marks, else
    between words, else between characters.

    Args:
        text: Any text.
        max_tokens: Most tokens of one piece.
        count_tokens: Tokens of a string; longer strings have more, or nearly so.

    Returns:
        Pieces without white space at their ends; none for text that is white space alone. Joined, they are the text but
        for white space at the seams.

    Raises:
        ConfigError: The budget is below 1.
        InputError: One character alone takes more tokens than the budget.

    Example:
        >>> split_text("One two. Three, four five.", 2, lambda piece: len(piece.split()))
        ['One two.', 'Three,', 'four five.']
    """
    if max_tokens < 1:
        raise ConfigError(f"expected a budget of 1 token or more per piece, got {max_tokens}")

    def fits(piece: str) -> bool:
        return count_tokens(piece.strip()) <= max_tokens

    pieces = _pack(split_sentences(text), fits, [_clauses, _words, _signs, list])
    return [piece.strip() for piece in pieces if piece.strip()]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    stop, after = match["stop"], text[match.end() : match.end() + 1]
    if stop[-1] in _WIDE_STOPS or not after:
        return True
    if not match["space"]:
        return False  # 3.14, example.com, the inner stops of U.S.
    if stop[-1] == ";" or "\n" in match["space"]:
        return True
    if after.islower():
        return False  # "Stop!" he said; approx. five
    return stop != "." or not _is_abbreviation(text, match.start(), after)


def _is_abbreviation(text: str, stop: int, after: str) -> bool:
    """Whether the full stop at `stop` belongs to the word before it."""
    word = _LAST_WORD.search(text[max(0, stop - _LOOK_BACK) : stop])
    if word is None:
        return False
    plain = word[0].lower()
    if plain in _OPEN_ABBREVIATIONS:
        return True
    if plain in _NUMBER_ABBREVIATIONS:
        return after.isdigit()
    if plain.isdigit():
        return len(plain) <= 3 and _starts_line(text, stop - len(plain))  # the number of a list entry
    # Initials: "J. Smith", "the U.S. Army"; a cut too few costs less than one inside a name. "a.m." ends sentences.
    return word[0][0].isupper() and word[0] != "I" and _INITIALS.fullmatch(word[0]) is not None


def _starts_line(text: str, place: int) -> bool:
    before = text[max(0, place - _LOOK_BACK) : place].rstrip(" \t")
    return before.endswith("\n") or (not before and place <= _LOOK_BACK)


def _pack(
    parts: Sequence[str], fits: Callable[[str], bool], finer: Sequence[Callable[[str], Sequence[str]]]
) -> Iterator[str]:
    """Join parts as long as they fit; cut a part that does not fit alone with the first of `finer`."""
    begin = 0
    while begin < len(parts):
        count = _longest(parts, begin, fits)
        if count:
            yield "".join(parts[begin : begin + count])
        elif not finer:
            raise InputError(
                f"expected a character to fit the token budget, {parts[begin]!r} alone does not; raise the budget"
            )
        else:
            yield from _pack(finer[0](parts[begin]), fits, finer[1:])
        begin += max(count, 1)


def _longest(parts: Sequence[str], begin: int, fits: Callable[[str], bool]) -> int:
    """How many parts from `begin` on fit together: doubling, then halving, so that few strings are counted."""

    def good(count: int) -> bool:
        return fits("".join(parts[begin : begin + count]))

    most = len(parts) - begin
    low, high = 0, 1
    while high <= most and good(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _clauses(sentence: str) -> list[str]:
    ends = [match.end() for match in _CLAUSE.finditer(sentence)]
    return [sentence[a:b] for a, b in zip([0, *ends], [*ends, len(sentence)], strict=True) if a < b]


def _words(clause: str) -> list[str]:
    return _WORD.findall(clause)


def _signs(word: str) -> list[str]:
    """Characters with the accents and joiners that belong to them."""
    signs: list[str] = []
    for character in word:
        bound = unicodedata.combining(character) or character in _JOINERS
        if signs and (bound or signs[-1].endswith(_JOINERS[0])):
            signs[-1] += character
        else:
            signs.append(character)
    return signs

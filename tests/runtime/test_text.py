"""Sentence ends, budgets, and that no character is ever lost."""

# ruff: noqa: RUF001 - wide punctuation is what is tested

from __future__ import annotations

import random

import pytest

from voxedge.engines.errors import ConfigError, InputError
from voxedge.runtime.text import split_sentences, split_text


def count_words(text: str) -> int:
    return len(text.split())


def count_bytes(text: str) -> int:
    return len(text.encode())


@pytest.mark.parametrize(
    "parts",
    [
        ["Hello world. ", "How are you? ", "Fine! ", "Good"],
        ["Dr. Jones met Mrs. Lee at 3.14 p.m. on St. James street. ", "They left."],
        ["Use a nut, e.g. a walnut, i.e. food. ", "Etc. ", "And so on."],
        ["The U.S. Army came in 1999. ", "Then J. R. R. Tolkien wrote."],
        ["It was so... quiet. ", "Wait... ", "What?! ", "No."],
        ["See example.com or v1.2.3 for more. ", "End."],
        ['He said "Stop." ', "Then (really!) ", "He left. ", "Yes.”"],
        ['"Stop!" he said. ', '"Why?" ', "She left."],
        ["First part; ", "second part; ", "third."],
        ["Line one\n", "Line two\n\n  ", "Line three"],
        ["Figure no. 5 is good. ", "I said no. ", "You left."],
        ["1. Wash your hands.\n", "2. Cook the rice."],
        ["We left at 5. ", "Then we slept."],
        ["So am I. ", "You too."],
        ["今天天气很好。", "我们去公园吧！", "好吗？", "“好。”", "他说"],
        ["「行こう。」", "と彼は言った。", "はい"],
        ["यह एक वाक्य है। ", "यह दूसरा है।"],
        ["هل أنت بخير؟ ", "نعم."],
        ["approx. five apples; ", "that is all"],
        ["Er sagte: „Halt.“ ", "Dann ging er. ", "„Gut.“"],
        ["To do:\n  ", "12. Wash.\n", "It was 12. ", "Then 13."],
        ["..."],
        ["No end"],
        ["   "],
        [],
    ],
)
def test_sentences(parts: list[str]) -> None:
    assert split_sentences("".join(parts)) == parts


def test_sentences_are_packed_up_to_the_budget() -> None:
    text = "One two. Three four. Five six seven. Eight."
    assert split_text(text, 4, count_words) == ["One two. Three four.", "Five six seven. Eight."]
    assert split_text(text, 100, count_words) == [text]
    assert split_text(text, 3, count_words) == ["One two.", "Three four.", "Five six seven.", "Eight."]


def test_a_long_sentence_is_cut_at_clauses_then_words_then_characters() -> None:
    assert split_text("one two, three four: five", 2, count_words) == ["one two,", "three four:", "five"]
    assert split_text("one two three four five, six", 2, count_words) == ["one two", "three four", "five,", "six"]
    assert split_text("abcdefgh ij", 3, count_bytes) == ["abc", "def", "gh", "ij"]
    assert split_text("3,141 and 10:30", 6, count_bytes) == ["3,141", "and", "10:30"]
    assert split_text("你好，世界，再见", 9, count_bytes) == ["你好，", "世界，", "再见"]


def test_accents_and_joined_signs_stay_together_while_they_fit() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one sign of five code points, 18 bytes
    assert split_text("ab" + family + "e\u0301f", 18, count_bytes) == ["ab", family, "e\u0301f"]
    assert "".join(split_text(family, 4, count_bytes)) == family


def test_empty_text_has_no_pieces() -> None:
    assert split_text("", 5, count_words) == []
    assert split_text(" \n ", 5, count_words) == []


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 token or more"):
        split_text("a", 0, count_bytes)
    with pytest.raises(InputError, match="raise the budget"):
        split_text("a你", 2, count_bytes)


ALPHABET = [
    *"aZ3 ..,;:!?\"'()\n",
    "Mr.",
    "e.g.",
    "U.S.",
    "。",
    "，",
    "！",
    "”",
    "「",
    "…",
    "é",
    "e\u0301",
    "—",
    "你",
    "\t",
    "3.14",
    " I ",
]


@pytest.mark.parametrize("seed", range(300))
def test_no_character_is_lost_and_no_budget_exceeded(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - test data
    text = "".join(rng.choices(ALPHABET, k=rng.randrange(0, 120)))
    assert "".join(split_sentences(text)) == text
    budget = rng.randrange(4, 40)
    pieces = split_text(text, budget, count_bytes)
    assert all(0 < count_bytes(piece) <= budget and piece == piece.strip() for piece in pieces)
    rest = text
    for piece in pieces:  # each piece follows the last one, with white space at most between
        rest = rest.lstrip()
        assert rest.startswith(piece)
        rest = rest.removeprefix(piece)
    assert not rest.strip()


def test_work_grows_with_the_length_not_its_square() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text)

    for text in (
        "字" * 20_000,
        "word " * 4_000,
        "A sentence. " * 2_000,
        "." * 20_000,
        "a.b" * 7_000,
        " " * 90_000 + "a",
    ):
        counted = 0
        assert "".join(split_text(text, 100, count)).replace(" ", "") == text.replace(" ", "")
        # Per piece of 100 characters: 8 doublings and 7 halvings of at most 256 characters.
        assert counted < len(text) * 40

"""How an utterance sounds, and how people say so.

In: a random generator. Out: `Style` (speaker, speed, pitch) and a description in English, as released MoE-TTS models
take it. A neutral speed or pitch is mostly left unsaid. Does not know: sentences, sound.
"""

from __future__ import annotations

import csv
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

Speaker = Literal["slt", "rms", "awb"]
Level = Literal[-1, 0, 1]

TEST_LIST = Path(__file__).parent / "test_descriptions.tsv"
SPEAKERS: tuple[Speaker, ...] = ("slt", "rms", "awb")
_LEVELS: tuple[Level, ...] = (-1, 0, 1)
NOUNS: dict[Speaker, tuple[str, ...]] = {
    "slt": (
        *("woman", "lady", "girl", "female voice", "female speaker", "young woman", "american woman", "mother"),
        *("female", "woman's voice", "lady from america", "female narrator", "girl's voice"),
    ),
    "rms": (
        *("man", "male voice", "male speaker", "guy", "american man", "gentleman", "father", "boy"),
        *("male", "man's voice", "man from america", "male narrator", "fellow", "american male"),
    ),
    "awb": (
        *("scottish man", "scotsman", "scot", "man from scotland", "scottish voice", "man with a scottish accent"),
        *("scottish male", "scottish male voice", "scottish speaker", "male scottish speaker", "man from edinburgh"),
        *("scottish gentleman", "scottish guy", "voice with a scottish accent"),
    ),
}
ADVERBS: dict[str, dict[Level, tuple[str, ...]]] = {
    "speed": {
        -1: (
            *("slowly", "at a slow pace", "very slowly", "without any hurry", "in a slow way", "calmly and slowly"),
            *(
                "at a slow speed",
                "calmly",
                "quite slowly",
                "rather slowly",
                "in a calm and slow way",
                "with a slow pace",
            ),
            *("unhurriedly", "leisurely", "really slowly", "at a calm pace", "slowly and calmly", "taking much time"),
        ),
        0: (
            *("at a normal pace", "at an ordinary speed", "neither fast nor slowly", "at a normal speed"),
            *("at a medium pace", "at an average speed", "neither quickly nor slowly"),
        ),
        1: (
            *("fast", "quickly", "at a fast pace", "in a hurry", "very fast", "rapidly", "very quickly", "hurriedly"),
            *(
                "at a quick pace",
                "at a high speed",
                "at a rapid pace",
                "quite fast",
                "in a hurried way",
                "with a fast pace",
            ),
            *(
                "really fast",
                "swiftly",
                "at a great speed",
                "quickly and in a hurry",
                "rather quickly",
                "at a brisk pace",
            ),
        ),
    },
    "pitch": {
        -1: (
            *("in a low voice", "in a deep voice", "with a low pitch", "with a deep tone", "in a dark voice"),
            *("with a low voice", "with a deep voice", "in a low tone", "with a dark tone", "in a deep and dark voice"),
            *(
                "at a low pitch",
                "in a low pitch",
                "with a deep, low voice",
                "in a very low voice",
                "with a very deep pitch",
            ),
        ),
        0: (
            *("in a normal voice", "with a medium pitch", "with a normal pitch", "in an ordinary voice"),
            "with an average pitch",
        ),
        1: (
            *(
                "in a high voice",
                "with a high pitch",
                "in a bright voice",
                "with a bright high tone",
                "with a high voice",
            ),
            *(
                "in a high tone",
                "with a bright tone",
                "in a bright and high voice",
                "at a high pitch",
                "in a high pitch",
            ),
            *("with a bright voice", "with a high, bright tone", "in a very high voice", "with a very high pitch"),
        ),
    },
}
"""What is said of a verb."""
ADJECTIVES: dict[str, dict[Level, tuple[str, ...]]] = {
    "speed": {
        -1: ("slow", "calm", "very slow", "unhurried", "slow and calm", "leisurely", "calm and slow"),
        0: ("medium speed", "normal speed"),
        1: ("fast", "quick", "hurried", "very fast", "rapid", "very quick", "hurried and fast", "brisk", "swift"),
    },
    "pitch": {
        -1: ("deep", "low", "dark", "low-pitched", "very deep", "very low", "deep and dark", "low and dark"),
        0: ("medium-pitched", "normal"),
        1: ("high", "bright", "high-pitched", "very high", "very bright", "high and bright", "bright and high"),
    },
}
"""What is said of a speaker or a voice."""
_PLAIN_SHARE = 0.08  # utterances without a description: the first speaker, neutral


@dataclass(frozen=True, slots=True)
class Style:
    """What a description tells about."""

    speaker: Speaker
    """Voice of the synthesiser: an American woman, an American man, a Scottish man."""
    speed: Level
    """-1 slow, 0 normal, 1 fast."""
    pitch: Level
    """-1 low, 0 normal, 1 high."""


NEUTRAL = Style("slt", 0, 0)
"""What no description at all gives."""


def style_and_description(rng: random.Random) -> tuple[Style, str]:
    """How one training utterance sounds and what is written about it."""
    if rng.random() < _PLAIN_SHARE:
        return NEUTRAL, ""
    speaker = rng.choices(SPEAKERS, [0.44, 0.28, 0.28])[0]
    speed, pitch = (rng.choices(_LEVELS, [0.28, 0.44, 0.28])[0] for _ in range(2))
    style = Style(speaker, speed, pitch)
    return style, describe(style, rng)


def describe(style: Style, rng: random.Random) -> str:
    """One of the many ways to say it; never one of the test list's."""
    while True:
        text = rng.choices(_FORMS, _SHARES)[0](style, rng)
        if rng.random() < 0.2:
            text = text.removeprefix("a ").removeprefix("the ")
        if wording(text) not in held_out():
            return text[0].upper() + text[1:] + ("." if rng.random() < 0.7 else "")


def wording(text: str) -> str:
    """The words alone, to compare descriptions by."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


@lru_cache
def held_out() -> frozenset[str]:
    """Wordings of the test list."""
    with TEST_LIST.open(encoding="utf-8") as file:
        return frozenset(wording(row["description"]) for row in csv.DictReader(file, delimiter="\t"))


def _told(style: Style, rng: random.Random) -> list[tuple[str, Level]]:
    """What is worth telling, in random order: seldom what is neutral."""
    told = [
        (what, level)
        for what, level in (("speed", style.speed), ("pitch", style.pitch))
        if level or rng.random() < 0.25
    ]
    rng.shuffle(told)
    return told


def _verbal(style: Style, rng: random.Random) -> str:
    """A deep woman speaks slowly."""
    before: list[str] = []
    after: list[str] = []
    for what, level in _told(style, rng):
        if rng.random() < 0.35:
            before.append(rng.choice(ADJECTIVES[what][level]))
        else:
            after.append(rng.choice(ADVERBS[what][level]))
    subject = _noun_phrase(", ".join(before), style, rng)
    if not after and rng.random() < 0.7:
        return subject
    verb = rng.choice(["speaks", "speaking", "talks", "who speaks", "who talks", "talking", "says it"])
    return f"{subject} {verb} {' and '.join(after)}".strip()


def _fronted(style: Style, rng: random.Random) -> str:
    """Slowly, a woman speaks with a deep voice."""
    told = _told(style, rng)
    first = "".join(f"{rng.choice(ADVERBS[what][level])}, " for what, level in told[:1])
    last = "".join(f" {rng.choice(ADVERBS[what][level])}" for what, level in told[1:])
    return f"{first}{_noun_phrase('', style, rng)} {rng.choice(['speaks', 'talks'])}{last}"


def _listed(style: Style, rng: random.Random) -> str:
    """A woman, slow and deep."""
    told = [rng.choice(ADJECTIVES[what][level]) for what, level in _told(style, rng)]
    return ", ".join([_noun_phrase("", style, rng), *([rng.choice([" and ", ", "]).join(told)] if told else [])])


def _having(style: Style, rng: random.Random) -> str:
    """The slow woman has a deep voice."""
    told = dict(_told(style, rng))
    speed, pitch = (rng.choice(ADJECTIVES[what][told[what]]) if what in told else "" for what in ("speed", "pitch"))
    has = rng.choice(["has", "with"])
    if rng.random() < 0.5:
        voice = ", ".join(part for part in rng.sample([speed, pitch], 2) if part)
        return f"{_noun_phrase('', style, rng)} {has} {_a(f'{voice} voice')}"
    sound = rng.choice(["voice", "tone"])
    return f"{_noun_phrase(speed, style, rng)} {has} {_a(f'{pitch} {sound}')}"


def _tabled(style: Style, rng: random.Random) -> str:
    """Voice: woman, slow, deep."""
    told = [rng.choice(ADJECTIVES[what][level]) for what, level in _told(style, rng)]
    return rng.choice(["voice: ", "speaker: ", "", ""]) + ", ".join(
        rng.sample([rng.choice(NOUNS[style.speaker]), *told], len(told) + 1)
    )


_FORMS = (_verbal, _fronted, _listed, _having, _tabled)
_SHARES = (0.46, 0.12, 0.16, 0.16, 0.1)


def _noun_phrase(adjectives: str, style: Style, rng: random.Random) -> str:
    phrase = f"{adjectives} {rng.choice(NOUNS[style.speaker])}".strip()
    return f"the {phrase}" if rng.random() < 0.25 else _a(phrase)


def _a(phrase: str) -> str:
    phrase = phrase.strip()
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

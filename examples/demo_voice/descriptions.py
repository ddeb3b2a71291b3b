"""How an utterance sounds, and how people say so.

In: a random generator. Out: `Style` (speaker, speed, pitch) and a description in English, as released MoE-TTS models
take it. A neutral speed or pitch is mostly left unsaid. Does not know: sentences, sound.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Speaker = Literal["slt", "rms", "awb"]
Level = Literal[-1, 0, 1]

SPEAKERS: tuple[Speaker, ...] = ("slt", "rms", "awb")
_LEVELS: tuple[Level, ...] = (-1, 0, 1)
NOUNS: dict[Speaker, tuple[str, ...]] = {
    "slt": ("woman", "lady", "girl", "female voice", "female speaker", "young woman", "american woman", "mother"),
    "rms": ("man", "male voice", "male speaker", "guy", "american man", "gentleman", "father", "boy"),
    "awb": ("scottish man", "scotsman", "scot", "man from scotland", "scottish voice", "man with a scottish accent"),
}
SPEEDS: dict[Level, tuple[str, ...]] = {
    -1: ("slowly", "at a slow pace", "very slowly", "without any hurry", "in a slow way", "calmly and slowly"),
    0: ("at a normal pace", "at an ordinary speed", "neither fast nor slowly"),
    1: ("fast", "quickly", "at a fast pace", "in a hurry", "very fast", "rapidly"),
}
PITCHES: dict[Level, tuple[str, ...]] = {
    -1: ("in a low voice", "in a deep voice", "with a low pitch", "with a deep tone", "in a dark voice"),
    0: ("in a normal voice", "with a medium pitch"),
    1: ("in a high voice", "with a high pitch", "in a bright voice", "with a bright high tone"),
}
SLOW_FAST: dict[Level, tuple[str, ...]] = {-1: ("slow", "calm"), 0: (), 1: ("fast", "quick", "hurried")}
LOW_HIGH: dict[Level, tuple[str, ...]] = {-1: ("deep", "low", "dark"), 0: (), 1: ("high", "bright")}
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
    """One of the many ways to say it."""
    noun = rng.choice(NOUNS[style.speaker])
    speed, pitch = style.speed, style.pitch
    before: list[str] = []
    after: list[str] = []
    for level, adjectives, phrases in ((speed, SLOW_FAST, SPEEDS), (pitch, LOW_HIGH, PITCHES)):
        if level == 0 and rng.random() < 0.75:
            continue
        if adjectives[level] and rng.random() < 0.35:
            before.append(rng.choice(adjectives[level]))
        else:
            after.append(rng.choice(phrases[level]))
    rng.shuffle(before)
    rng.shuffle(after)
    subject = " ".join(["the" if rng.random() < 0.2 else "a", ", ".join(before), noun]).replace("  ", " ")
    if after or rng.random() < 0.3:
        subject += rng.choice([" speaks ", " speaking ", " talks ", " who speaks "]) + " and ".join(after)
    text = subject.strip()
    if rng.random() < 0.2:
        text = text.removeprefix("a ").removeprefix("the ")
    return text[0].upper() + text[1:] + ("." if rng.random() < 0.7 else "")

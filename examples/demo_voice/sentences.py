"""Sentences that the demo voice is trained on, and those of the narrow domain that it is tested on.

In: a random generator. Out: English sentences. The narrow domain has 156 words, numbers written out; slots are filled
evenly and independently, and half of its training sentences are words in random order, so that what has been said never
tells what comes next: the model has to read. Most training sentences are open text. Does not know: descriptions, sound.
"""

from __future__ import annotations

import random
import re

from examples.demo_voice import open_text


def _list(words: str) -> list[str]:
    return words.split()


DIGITS = _list("zero one two three four five six seven eight nine")
TEENS = _list("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = _list("twenty thirty forty fifty sixty seventy eighty ninety")
SLOTS: dict[str, list[str]] = {
    "colour": _list("red green blue yellow black white brown orange"),
    "room": _list("kitchen garden bedroom bathroom office garage house street"),
    "thing": _list("book cup key door window lamp box table chair car bicycle radio piano letter voice"),
    "animal": _list("dog cat bird horse"),
    "weather": _list("sunny rainy windy cloudy cold warm"),
    "day": _list("monday tuesday wednesday thursday friday saturday sunday today tomorrow"),
    "time": _list("morning evening night"),
    "person": _list("anna peter maria john emma robert"),
    "city": _list("london paris berlin tokyo"),
    "food": _list("coffee tea bread fish water milk soup"),
    "size": _list("old new big small happy nice good"),
    "verb": _list("likes wants sees has finds brings"),
    "do": _list("open close find bring turn see like want"),
    "place": _list("in near behind under"),
    "digit": DIGITS,
}
TEMPLATES = (
    "the {colour} {thing} is {place} the {room}",
    "the {size} {thing} was {place} the {size} {room}",
    "{do} the {colour} {thing}",
    "{do} the {thing} in the {room} please",
    "turn on the {thing} and turn off the {thing}",
    "it is {number} {number} in the {time}",
    "it will be {number} on {day}",
    "{person} {verb} the {size} {animal}",
    "{person} and {person} want {food} and {food}",
    "{person} {verb} {food}, {food} and {food}",
    "{day} will be {weather} and {weather} in {city}",
    "the weather in {city} was {weather} on {day}",
    "{digit} {digit} {digit} {digit}",
    "number {digit} {digit} {digit}",
    "hello {person}, good {time}",
    "hello world, this is {person}",
    "hello world, welcome to {city}",
    "good {time} {person}, welcome to the {room}",
    "goodbye {person}, see you on {day}",
    "thank you {person}, the {food} was good",
    "please bring the {colour} {thing} to {person}",
    "my {animal} is {size} and {colour}",
    "your {thing} is {colour} and my {thing} is {colour}",
    "is the {size} {animal} {place} the {thing}?",
    "are you {place} the {room}, {person}?",
    "this is the voice of a {size} {animal}",
    "I have {number} {colour} apples",
    "yes, the {room} is {weather}",
    "no, I like {colour} and {colour}",
    "room {number} is {place} the {room}",
    "{colour}, {colour}, {colour} and {colour}",
    "{person}, {person} and {person} are in {city}",
    "the number is {number} hundred {number}",
    "I see a {colour} {animal} and a {colour} {thing}",
)
_NAMES = frozenset(SLOTS["person"] + SLOTS["city"] + SLOTS["day"][:7])
_SLOT = re.compile(r"\{(\w+)\}")
_OPEN = 0.7  # share of training sentences that are open text
_RANDOM_ORDER = 0.5  # share of the others that are words without any grammar
NARROW_WORDS: tuple[str, ...] = tuple(
    sorted(
        {word for words in SLOTS.values() for word in words}
        | {*TEENS, *TENS}
        | {word for template in TEMPLATES for word in re.findall(r"[a-z]+", _SLOT.sub(" ", template).lower())}
        | {"sound"}
    )
)
"""The narrow domain's, in lower case."""
WORDS: tuple[str, ...] = tuple(
    sorted(
        {*NARROW_WORDS, *"0123456789", *(word.lower() for word in open_text.COMMON)}
        | {word.lower() for words in open_text.LISTS.values() for phrase in words for word in phrase.split()}
    )
)
"""Every word that the voice was trained on more than by chance, in lower case."""


def number(rng: random.Random) -> str:
    """A number below 100 in words."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(DIGITS)
    if kind < 0.55:
        return rng.choice(TEENS)
    return rng.choice(TENS) + (" " + rng.choice(DIGITS[1:]) if rng.random() < 0.6 else "")


def sentence(rng: random.Random) -> str:
    """A sentence from a template."""
    template = rng.choice(TEMPLATES)
    text = _SLOT.sub(lambda slot: number(rng) if slot[1] == "number" else rng.choice(SLOTS[slot[1]]), template)
    return _finished(text, rng)


def training_sentence(rng: random.Random) -> str:
    """Open text, or a sentence of the narrow domain, or some of its words in random order."""
    kind = rng.random()
    if kind < _OPEN:
        return open_text.training_sentence(rng)
    if kind < _OPEN + (1.0 - _OPEN) * _RANDOM_ORDER:
        return sentence(rng)
    words = [rng.choice(NARROW_WORDS) for _ in range(rng.randint(2, 7))]
    text = words[0]
    for word in words[1:]:
        text += (", " if rng.random() < 0.12 else " ") + word
    return _finished(text, rng)


def key(text: str) -> str:
    """The words alone, to compare sentences by."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def _finished(text: str, rng: random.Random) -> str:
    """With capitals and an end mark."""
    named = re.sub(r"[a-z]+", lambda word: word[0].capitalize() if word[0] in _NAMES else word[0], text)
    return open_text.finished(named, rng)

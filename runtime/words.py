"""Words of a text that a voice was never taught.

In: a text and the words of a manifest. Out: the other words of the text. Knows no languages beyond letters and digits,
and does not change the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_WORD = re.compile(r"\w+(?:'\w+)*")


def unknown_words(text: str, words: Collection[str]) -> list[str]:
    """Words that are not among the given ones, each once, in the order of the text and as they are written there.

    Args:
        text: Any text.
        words: In lower case; none means that every word is known. A number is known if each of its digits is a word.

    Example:
        >>> unknown_words("Hello, brave new world! Brave 42.", ["hello", "new", "world"])
        ['brave', '42']
        >>> unknown_words("It isn't 42.", ["it", "isn't", "2", "4"])
        []
    """
    if not words:
        return []
    known, found = frozenset(words), dict[str, str]()
    for word in _WORD.findall(text):
        if word.lower() not in known and not (word.isdecimal() and known.issuperset(word)):
            found.setdefault(word.lower(), word)
    return list(found.values())

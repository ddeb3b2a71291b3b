"""Languages by name and by code, as models are told about them.

In: what a user calls a language. Out: its English name. Which of them a model speaks well is the model's matter.
"""

from __future__ import annotations

import difflib

from voxedge.engines.errors import InputError

LANGUAGES = {
    "af": "Afrikaans", "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian",
    "fa": "Persian", "fi": "Finnish", "fil": "Filipino", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "kk": "Kazakh",
    "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "yue": "Cantonese",
    "zh": "Chinese",
}  # fmt: skip
"""English names by ISO 639 code."""

_NAMES = {name.lower(): name for name in LANGUAGES.values()}


def language_name(given: str) -> str:
    """The English name of a language given by its name or its code.

    Raises:
        InputError: There is no such language.

    Example:
        >>> language_name("zh"), language_name("french")
        ('Chinese', 'French')
    """
    plain = given.strip().lower()
    name = LANGUAGES.get(plain) or _NAMES.get(plain)
    if name is None:
        near = difflib.get_close_matches(plain, [*_NAMES, *LANGUAGES], n=1, cutoff=0.75)
        hint = f"did you mean {_NAMES.get(near[0], near[0])!r}?" if near else "for example English, Chinese or fr"
        raise InputError(f"expected a language by its English name or its code, found {given[:40]!r}; {hint}")
    return name

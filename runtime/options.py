"""Which options each system follows, and what they are called on the command line: the one place that knows.

In: a system's name and the options that a request sets. Out: nothing, or an error that names what the system would not
follow and what it does. An option that nobody follows is never ignored. Knows no graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from voxedge.engines.errors import InputError
from voxedge.runtime.systems.moe_tts_settings import SYSTEM as MOE_TTS
from voxedge.runtime.systems.moss_settings import SYSTEM as MOSS_TTS

FLAGS: Mapping[str, str] = {
    "steps": "--steps",
    "cfg_scale": "--cfg",
    "solver": "--solver",
    "window_s": "--window",
    "text_sampling": "--text-temperature",
    "speech_prompt": "--speech-tokens",
    "earlier": "earlier turns",
    "codec": "--codec",
    "references": "--voice",
    "prefix": "--go-on-from",
    "prefix_text": "--said",
    "language": "--language",
    "duration_s": "--duration",
    "frames": "--tokens",
    "codebooks": "--codebooks",
    "quality": "--quality",
    "sound_event": "--sound-event",
    "ambient_sound": "--ambient-sound",
}
"""Options that only some systems follow, by their names in Python: fields of `SynthesisConfig`, `Directions` and
`Request`, and an argument of `Synthesizer`."""

_DIFFUSION = ("steps", "cfg_scale", "solver", "window_s")
_CONVERSATION = ("speech_prompt", "earlier")

FOLLOWED: Mapping[str, frozenset[str]] = {
    MOE_TTS: frozenset((*_DIFFUSION, *_CONVERSATION)),
    MOSS_TTS: frozenset(FLAGS) - {*_DIFFUSION, *_CONVERSATION},
}
"""What each system does with them; a model of a system may still refuse a value, as MOSS-TTS v1.5 does `codebooks`."""


def follows(system: str, option: str) -> bool:
    """Whether a system follows an option of `FLAGS`."""
    return option in FOLLOWED[system]


def require_followed(system: str, options: Iterable[str]) -> None:
    """Refuse options that a system would ignore; names that are not in `FLAGS` are everybody's.

    Raises:
        InputError: The system does not follow one of them.

    Example:
        >>> require_followed("moe_tts", ["steps", "temperature"])
    """
    ignored = [name for name in options if name in FLAGS and not follows(system, name)]
    if not ignored:
        return
    known = ", ".join(flag for name, flag in FLAGS.items() if follows(system, name))
    raise InputError(
        f"expected options that {system} follows ({known}), found {', '.join(FLAGS[name] for name in ignored)}, which "
        "would do nothing; leave it out"
    )

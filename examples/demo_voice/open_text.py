"""Sentences of open text: common English words in simple frames, in random order, with numbers in digits.

In: a random generator. Out: sentences of up to a dozen words. The words are those of `words_common.txt` (and, seldom,
`words_rare.txt`; LICENSE-scowl.txt); frames and the short lists are written here. Frames teach how words follow each
other in speech; words in random order teach spelling, since nothing else says what comes next. Does not know:
descriptions, sound.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

_FOLDER = Path(__file__).parent
COMMON: tuple[str, ...] = tuple((_FOLDER / "words_common.txt").read_text(encoding="utf-8").split())
"""About 10 700 words, the commonest of English; the voice's vocabulary."""
RARE: tuple[str, ...] = tuple((_FOLDER / "words_rare.txt").read_text(encoding="utf-8").split())
"""About 27 000 more, for their spelling."""


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _phrases(phrases: str) -> tuple[str, ...]:
    return tuple(phrases.split(", "))


LISTS: dict[str, tuple[str, ...]] = {
    "the": _list("the the the the a my your his her our their this that every another one some no"),
    "who": _list("I you he she we they it everybody nobody someone people"),
    "whom": _list("me you him her us them it everybody"),
    "person": _list(
        "man woman child boy girl friend teacher doctor mother father brother sister son daughter uncle aunt"
        " neighbour student nurse driver farmer baker singer painter writer lawyer captain soldier king queen baby"
        " guest player visitor worker manager customer family police crowd team class"
    ),
    "noun": _list(
        "house door window table chair garden kitchen road street bridge river lake sea beach hill mountain field"
        " tree flower leaf grass forest farm village town city country world sky sun moon star cloud rain snow"
        " wind storm fire water ice stone sand boat ship train bus car truck bicycle plane station airport market"
        " shop store bank school church hospital hotel museum library theatre office factory room wall floor roof"
        " stairs bed lamp clock phone computer picture book paper letter page story song word name number question"
        " answer idea plan problem reason game ball team race film music piano guitar voice sound noise light"
        " colour shirt dress coat hat shoe bag box bottle cup glass plate knife spoon bread butter cheese egg meat"
        " fish soup rice potato apple orange banana cake sugar salt coffee tea milk juice wine dog cat horse cow"
        " sheep bird chicken mouse rabbit money price job work lesson test mistake party holiday trip birthday"
        " present dream war peace law line end side part piece group"
    ),
    "adjective": _list(
        "big small old new young good bad long short high low tall warm cold hot cool dry wet clean dirty dark"
        " bright heavy light hard soft loud quiet fast slow early late easy difficult simple strong weak rich poor"
        " cheap free full empty open closed happy sad angry tired hungry thirsty sick healthy strange nice kind"
        " brave clever busy careful famous important dangerous beautiful wonderful terrible red blue green yellow"
        " white black brown grey wooden broken fresh sweet bitter wide narrow deep flat round thick thin sharp"
        " smooth wild calm foreign local"
    ),
    "past": _list(
        "saw found lost bought sold made took gave brought sent kept left held opened closed broke built painted"
        " cleaned washed watched heard liked loved wanted needed carried pulled pushed threw caught cut cooked ate"
        " drank wrote read showed told asked called helped visited remembered forgot knew learned taught changed"
        " moved dropped followed passed crossed reached won finished started stopped tried used counted covered"
        " filled shared enjoyed"
    ),
    "went": _list(
        "went came walked ran drove rode flew sailed travelled lived stayed waited worked slept sat stood fell"
        " played sang danced laughed smiled cried talked arrived returned turned moved looked died"
    ),
    "base": _list(
        "see find lose buy sell make take give bring send keep leave hold open close break build paint clean wash"
        " watch hear like love want need carry pull push throw catch cut cook eat drink write read show tell ask"
        " call help visit remember forget know learn teach change move drop follow pass cross reach win finish"
        " start stop try use count"
    ),
    "go": _list("go come walk run drive ride fly live stay wait work sleep sit stand play sing dance talk move look"),
    "modal": _list("can could will would should must may might can't won't didn't don't couldn't shouldn't"),
    "is": _list("is was will be has been looks seems became isn't wasn't"),
    "place": _list(
        "in on at near under over behind across along around through into from beside above below beyond towards"
        " with without before after until by for about to"
    ),
    "when": _phrases(
        "today, tomorrow, yesterday, now, then, again, soon, later, always, never, often, sometimes, early, late,"
        " tonight, already, once, every day, last night, this morning, in the evening, at night, at noon, after"
        " dinner, before lunch, next week, last year, for an hour, for two days, all day, on Monday, on Tuesday,"
        " on Wednesday, on Thursday, on Friday, on Saturday, on Sunday, in June, in winter, in the summer, at the"
        " weekend, a long time ago"
    ),
    "how": _list(
        "slowly quickly quietly carefully easily badly well together alone very quite really too almost suddenly"
    ),
    "link": _list("and and and but because when while if so that before after until or as where since although than"),
    "ask": _phrases("what, where, when, why, how, who, which, how many, how much, what time"),
    "name": _list(
        "Anna Peter Maria John Emma Robert Mary James Tom Sarah Jack Lucy David Alice Paul Helen Mark Kate Henry"
        " Jane George Linda Sam Ruth Frank Laura London Paris Berlin Tokyo England France Germany Japan America"
        " Scotland"
    ),
    "number": _list(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
        " million first second third half both several many few most all"
    ),
}
FRAMES: tuple[str, ...] = (
    "the {adjective} {noun} {is} {adjective}",
    "{the} {person} {past} {the} {noun} {when}",
    "{the} {noun} {is} {adjective} {link} {adjective}",
    "{who} {past} {the} {adjective} {noun} {place} {the} {noun}",
    "{who} {modal} {base} {the} {noun} {when}",
    "{who} {modal} {go} {place} the {noun} {how}",
    "{the} {person} {went} {place} {the} {noun} {link} {went} {how}",
    "{ask} {modal} {who} {base} {the} {noun}?",
    "{modal} you {base} {the} {noun} {place} {the} {noun}?",
    "please {base} {the} {noun} {link} {base} {the} {noun}",
    "{base} {the} {noun} {place} {the} {adjective} {noun}",
    "there {is} {the} {noun} {place} {the} {noun}",
    "there are {number} {noun}s {place} the {noun}",
    "{name} {past} {number} {noun}s {when}",
    "{name} and {name} {went} {place} {the} {adjective} {noun}",
    "{who} {past} {whom} {the} {noun} {link} {who} {went} {how}",
    "it {is} {how} {adjective} {when}",
    "{when} {who} {past} {the} {noun} {place} {the} {person}",
    "{the} {noun} of {the} {noun} {is} {adjective}",
    "{the} {person} {past} that {the} {noun} {is} {adjective}",
    "{who} {modal} not {base} {the} {noun} {link} {the} {noun} {is} {adjective}",
    "{who} {past} {the} {noun}, {the} {noun} and {the} {noun}",
    "{the} {noun} {place} {the} {noun} {is} too {adjective} to {base}",
    "if {who} {past} {the} {noun}, {who} would {base} {whom}",
    "{who} {is} {adjective} {link} {who} {past} {the} {w} {noun}",
    "{the} {w} {is} {w} {link} {w}",
    "{the} {w} {w} {past} {the} {w}",
    "{who} {modal} {base} {the} {w} {place} {the} {w}",
    "{the} {w} of {the} {w} {went} {place} {w}",
    "{w} {link} {w} {modal} {base} {the} {w}",
)
_SLOT = re.compile(r"\{(\w+)\}")
_SHORT = tuple(sorted({word for name, words in LISTS.items() if name != "name" for word in words if " " not in word}))
_LONGEST = 72
"""Characters of a sentence; what is longer is spoken in pieces."""


def training_sentence(rng: random.Random) -> str:
    """A sentence in a frame, words in random order, or something with digits."""
    for _ in range(20):
        kind = rng.random()
        made = _frame(rng) if kind < 0.42 else _digits(rng) if kind < 0.5 else _random_order(rng)
        if len(made) <= _LONGEST:
            break
    return finished(made[:_LONGEST].rsplit(" ", 1)[0] if len(made) > _LONGEST else made, rng)


def any_word(rng: random.Random) -> str:
    """A word: a short common one, any common one, or a rare one."""
    kind = rng.random()
    return rng.choice(_SHORT if kind < 0.35 else COMMON if kind < 0.92 else RARE)


def _frame(rng: random.Random) -> str:
    return _SLOT.sub(
        lambda slot: rng.choice(COMMON) if slot[1] == "w" else rng.choice(LISTS[slot[1]]), rng.choice(FRAMES)
    )


def _random_order(rng: random.Random) -> str:
    words = [any_word(rng) for _ in range(rng.randint(1, 9))]
    return "".join(word + (", " if rng.random() < 0.1 else " ") for word in words).rstrip(", ")


def _digits(rng: random.Random) -> str:
    """A few numbers as people type them; the synthesiser reads them out."""
    kind = rng.random()
    if kind < 0.4:
        number = str(rng.randint(0, 10 ** rng.randint(1, 4)))
    elif kind < 0.6:
        number = f"{rng.randint(1, 12)}:{rng.randint(10, 59)}"
    elif kind < 0.8:
        number = str(rng.randint(1700, 2099))
    else:
        number = " ".join(str(rng.randint(0, 9)) for _ in range(rng.randint(2, 5)))
    before, after = (" ".join(any_word(rng) for _ in range(rng.randint(0, 3))) for _ in range(2))
    return " ".join(part for part in (before, number, after) if part)


def finished(text: str, rng: random.Random) -> str:
    """With a capital and an end mark, as people write; sometimes without a mark."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith("?") else text + rng.choices([".", "", "!", "?"], [0.75, 0.15, 0.05, 0.05])[0]

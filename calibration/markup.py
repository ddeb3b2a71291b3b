"""HTML that cannot be broken by what it shows: every text is escaped unless it is markup already.

In: names, attributes, texts. Out: `Markup`. Knows no page (see `calibration.page`).
"""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML; anything else is escaped where it is put into an element."""

    __slots__ = ()


VOID = frozenset({"img", "meta", "image", "rect", "line", "path"})
"""Elements that have no content here."""


def element(name: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """One element.

    Args:
        name: Of the element.
        children: Markup, or texts to escape.
        attributes: `class_` stands for `class`, `_` for `-`; True gives a bare attribute, None and False none.

    Example:
        >>> element("td", "<b> & co", class_="number")
        '<td class="number">&lt;b&gt; &amp; co</td>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(f" {label}" if value is True else f' {label}="{html.escape(str(value))}"')
    if name in VOID:
        return Markup("".join([*parts, "/>"]))
    return Markup("".join([*parts, ">", join(children), f"</{name}>"]))


def join(children: Iterable[str]) -> Markup:
    """Markup and escaped texts, one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def table(header: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> Markup:
    """A table; columns of numbers stand to the right.

    Args:
        header: Of the columns.
        rows: Cells.
        numbers: Which columns are numbers.
    """
    right = set(numbers)

    def line(cells: Iterable[str], kind: str) -> Markup:
        return element(
            "tr",
            *(element(kind, cell, class_="number" if place in right else None) for place, cell in enumerate(cells)),
        )

    body = element("tbody", *(line(row, "td") for row in rows))
    return element("div", element("table", element("thead", line(header, "th")), body), class_="scroll")

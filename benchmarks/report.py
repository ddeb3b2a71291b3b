"""Tables of benchmark figures: plain text and Markdown, and the place in the documentation where they go.

In: rows of strings. Out: text. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from machine import Machine

Row = Sequence[str]


def text_table(header: Row, rows: Sequence[Row]) -> str:
    """Columns padded with spaces: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def markdown_table(header: Row, rows: Sequence[Row]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def machine_lines(machine: Machine) -> str:
    """The machine as one Markdown paragraph."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return (
        f"Machine: {machine.processor}, {machine.logical_cores} logical cores, largest cache {machine.cache}, "
        f"{machine.memory_gb:g} GB memory, {machine.kernel}; instruction sets {machine.features}. "
        f"Python {machine.python}; {packages}."
    )


def replace_region(path: Path, name: str, text: str) -> None:
    """Put `text` between the marks `<!-- name:begin -->` and `<!-- name:end -->` of a Markdown file.

    Raises:
        SystemExit: The file does not have these marks.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    page = path.read_text(encoding="utf-8")
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"expected the marks {begin} and {end} in {path}; add them where the table belongs")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")

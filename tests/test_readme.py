"""What the README tells people to type works: its Python, its command line, its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from voxedge.runtime.cli.main import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_python_blocks_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(README, "python")[number], f"README.md block {number}", "exec"), {})  # noqa: S102


def test_there_is_a_python_block_and_it_fits_on_a_screen() -> None:
    assert [len(block.splitlines()) <= 40 for block in blocks(README, "python")] == [True]


def commands() -> list[tuple[str, str]]:
    """Every `voxedge ...` line of a code block without a language, without its comment."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), ""):
            for line in block.splitlines():
                for part in re.split(r"\s\|\s|\s{2,}", line.partition(" #")[0].removeprefix(".venv/bin/")):
                    if part.removeprefix(".venv/bin/").startswith("voxedge "):
                        found.append((page.name, part.removeprefix(".venv/bin/").strip()))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_understood(page: str, command: str) -> None:
    if re.search(r"\[\w|VERB", command):  # a synopsis, not a command
        return
    make_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE))))
def test_make_targets_exist(target: tuple[str, str]) -> None:
    assert f"\n{target[0] or target[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"

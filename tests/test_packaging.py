"""What is installed is what lies in the repository, under the names that it must have."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from voxedge.engines import errors

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engines", "runtime", "calibration", "export")


def listed_packages() -> set[str]:
    """The names in `packages` of pyproject.toml; read by hand, since Python 3.10 has no TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("\npackages = [")[2].partition("]")[0]
    return {line.strip().strip('",') for line in block.splitlines() if line.strip()}


def test_every_package_is_listed() -> None:
    found = {
        "voxedge." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed_packages() == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_packages_are_typed_and_only_below_voxedge(folder: str) -> None:
    spec = importlib.util.find_spec(f"voxedge.{folder}")
    assert spec is not None
    assert (ROOT / folder / "py.typed").is_file()
    metadata = importlib.metadata.distribution("voxedge").read_text("top_level.txt") or ""
    assert metadata.split() == ["voxedge"]


def test_no_module_belongs_to_a_package_without_an_init() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks an __init__.py and is not installed"


def test_hard_dependencies_stay_few_and_free_of_gpu_libraries() -> None:
    hard = {
        requirement.name
        for requirement in map(Requirement, importlib.metadata.requires("voxedge") or [])
        if requirement.marker is None
    }
    assert hard == {"numpy", "safetensors", "soundfile", "soxr", "tokenizers", "tqdm"}


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    for code in codes | {0, 130, 141}:
        assert f"| {code} |" in text, f"docs/cli.md lacks exit code {code}"

"""Shared fixtures: where the reference recordings are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDENS = Path(os.environ.get("VOXEDGE_GOLDENS") or Path(__file__).parent / "golden")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Folder of a golden case; a case that is absent is skipped by name."""

    def find(case: str) -> Path:
        if not (GOLDENS / case / "io.npz").is_file():
            pytest.skip(f"golden case {case} is not in {GOLDENS}")
        return GOLDENS / case

    return find

"""Copies of golden checkpoints that a test may damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def copy(golden: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies one layout of a case."""

    def make(case: str, layout: str = "checkpoint") -> Path:
        target = tmp_path / case / layout
        shutil.copytree(golden(case) / layout, target)
        return target

    return make

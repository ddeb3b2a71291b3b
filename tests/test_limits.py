"""The size limits hold for the shipped code, and the script that measures them finds a violation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def limits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("limits", ROOT / ".ci" / "limits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_code_is_within_the_limits(limits: ModuleType) -> None:
    report, violations = limits.check(ROOT)
    assert "functions: median" in report[-1]
    assert violations == []


def test_a_long_file_and_a_long_function_are_found(limits: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    body = "    x = 0\n" * 60
    (tmp_path / "engines" / "long.py").write_text("y = 0\n" * 400 + f"def f() -> None:\n{body}")
    _, violations = limits.check(tmp_path)
    assert [violation.split(":")[0] for violation in violations] == ["engines/long.py", "engines/long.py"]
    assert "f has 61 lines" in violations[1]


def test_sizes_at_the_limit_pass(limits: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    body = "    x = 0\n" * 59
    (tmp_path / "engines" / "edge.py").write_text("y = 0\n" * 340 + f"def f() -> None:\n{body}")
    report, violations = limits.check(tmp_path)
    assert violations == []
    assert report[0].startswith("engines/edge.py: 400 lines")

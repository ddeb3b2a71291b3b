"""Every module that a device needs loads without PyTorch and the export libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "onnx", "transformers", "diffusers")
CODE = """
import importlib, sys
importlib.import_module(sys.argv[1])
loaded = sorted(set(sys.argv[2:]) & set(sys.modules))
sys.exit(f"{sys.argv[1]} loads {', '.join(loaded)}" if loaded else 0)
"""


def modules() -> list[str]:
    """Every module of `engines` and `runtime`, by its import name."""
    paths = [path for package in ("engines", "runtime") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [f"voxedge.{name}" for name in names]


@pytest.mark.parametrize("module", modules())
def test_loads_without_the_export_libraries(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, module, *HEAVY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_can_fail() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, "numpy", "numpy"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "numpy loads numpy" in done.stderr

"""Shared fixtures: where the reference recordings are, and bundles exported from them once per run."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

# torch describes every traced operator to this logger; pytest would keep hundreds of thousands of records.
logging.getLogger("torch.__trace").propagate = False

GOLDENS = Path(os.environ.get("VOXEDGE_GOLDENS") or Path(__file__).parent / "golden")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Folder of a golden case; a case that is absent is skipped by name."""

    def find(case: str) -> Path:
        if not (GOLDENS / case / "io.npz").is_file():
            pytest.skip(f"golden case {case} is not in {GOLDENS}")
        return GOLDENS / case

    return find


@pytest.fixture(scope="session")
def exported(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a golden case's checkpoint, once for all workers; tests must not write into the bundle."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def export(case: str, precision: Literal["fp32", "fp16"]) -> Path:
        from voxedge.export.config import ExportConfig
        from voxedge.export.systems import export_checkpoint

        checkpoint, target = golden(case) / "checkpoint", shared / f"{case}-{precision}"
        with (shared / f"{case}-{precision}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, also by a worker that crashes
            if not target.exists():
                export_checkpoint(checkpoint, target, ExportConfig(precision=precision))
        return target

    return export


@pytest.fixture(scope="session")
def tiny_bundle(exported: Callable[..., Path]) -> Callable[..., Path]:
    """Exports the small MoE-TTS at a precision; not to be written into."""
    return lambda precision: exported("moetts_e2e", precision)


@pytest.fixture(scope="session")
def codec_bundle(exported: Callable[..., Path]) -> Path:
    """The small audio codec; not to be written into."""
    return exported("moss_audio_tokenizer", "fp32")


@pytest.fixture(scope="session")
def fp32_bundle(tiny_bundle: Callable[..., Path]) -> Path:
    """The small MoE-TTS at FP32; not to be written into."""
    return tiny_bundle("fp32")


@pytest.fixture(scope="session")
def fp16_bundle(tiny_bundle: Callable[..., Path]) -> Path:
    """The small MoE-TTS at FP16; not to be written into."""
    return tiny_bundle("fp16")

"""A whole MoE-TTS bundle at FP32, tiny and with random weights: everything works, and it says noise."""

from __future__ import annotations

from pathlib import Path


def tiny_voice() -> Path:
    """Its folder."""
    return Path(__file__).resolve().parent / "data" / "tiny_voice"

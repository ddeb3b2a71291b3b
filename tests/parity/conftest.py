"""Fixtures of the parity tests."""

from golden_graphs import export, traces

__all__ = ["export", "traces"]

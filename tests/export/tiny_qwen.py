"""Sizes of a decoder that is traced in a moment."""

from __future__ import annotations

from voxedge.export.checkpoint.qwen3 import QwenConfig

QWEN = QwenConfig(
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    vocab_size=50,
    max_positions=64,
    tied=False,
)

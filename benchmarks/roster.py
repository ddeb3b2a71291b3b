"""Which engines `lm_decode.py` compares, as data.

In: nothing. Out: one entry per engine and setting. To measure another precision or setting, add a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shapes import LmShape


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine in one setting."""

    name: str
    """Label in tables; `voxedge` first when it is ours."""
    worker: str
    """Script in `peers/` without its suffix."""
    weight_bits: float
    """Bits per matrix element with block scales, as stored in memory during decoding."""
    kv_bits: float
    """Bits per cache element."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to the worker as they are."""

    @property
    def own(self) -> bool:
        """Whether it runs in this interpreter rather than the peers'."""
        return self.worker == "voxedge_ort"

    @property
    def bits_class(self) -> int:
        """Engines of one class are compared: 4, 8, 16 or 32 bits per weight, block scales put aside."""
        return min((4, 8, 16, 32), key=lambda bits: abs(self.weight_bits - bits))

    def step_bytes(self, shape: LmShape, context: float) -> float:
        """Bytes that one step has to read: every weight once, and the whole cache once."""
        return (shape.step_weights * self.weight_bits + shape.kv_elements * context * self.kv_bits) / 8


_BLOCK_64 = {"block_size": 64, "accuracy_level": 4}
"""4.5 and 8.5 bits per weight with its FP32 scales, as Q4_0 and Q8_0 have; activations in INT8."""


def _ours(name: str, weight_bits: float, kv_bits: float, precision: str, **options: object) -> Entry:
    """A bundle of ours, quantised from the FP32 one; `smooth` would only move scales, which costs no time to run."""
    folder = name.removeprefix("voxedge ").replace(" ", "-").replace(",", "")
    quantise = {"precision": precision, **options}
    return Entry(name, "voxedge_ort", weight_bits, kv_bits, {"name": folder, "quantise": quantise})


ENTRIES = (
    Entry("voxedge fp32", "voxedge_ort", 32, 32, {"name": "fp32"}),
    _ours("voxedge int8", 8, 32, "int8", smooth=False),
    _ours("voxedge int8, int8 KV", 8, 8, "int8", smooth=False, kv_cache="int8"),
    _ours("voxedge int8, int8 KV by tensor", 8, 8, "int8", smooth=False, kv_cache="int8-tensor"),
    _ours("voxedge int8-weight b64", 8.5, 32, "int8-weight", block_size=64),
    _ours("voxedge int8-weight b64, int8 KV", 8.5, 8, "int8-weight", block_size=64, kv_cache="int8"),
    _ours("voxedge int8-weight b64, int8 KV by tensor", 8.5, 8, "int8-weight", block_size=64, kv_cache="int8-tensor"),
    _ours("voxedge int4-weight b64", 4.5, 32, "int4-weight", block_size=64),
    _ours("voxedge int4-weight b64, int8 KV", 4.5, 8, "int4-weight", block_size=64, kv_cache="int8"),
    _ours("voxedge int4-weight b64, int8 KV by tensor", 4.5, 8, "int4-weight", block_size=64, kv_cache="int8-tensor"),
    Entry("transformers fp32", "hf_transformers", 32, 32, {"dtype": "float32"}),
    Entry("genai fp32", "ort_genai", 32, 32, {"precision": "fp32"}),
    Entry("llama.cpp F32", "llamacpp", 32, 16, {"format": "F32"}),
    Entry("transformers bf16", "hf_transformers", 16, 16, {"dtype": "bfloat16"}),
    Entry("llama.cpp F16", "llamacpp", 16, 16, {"format": "F16"}),
    Entry("genai int8 b64", "ort_genai", 8.5, 32, {"precision": "int8", "build": _BLOCK_64}),
    Entry("genai int8 b64, int8 KV", "ort_genai", 8.5, 8, {"precision": "int8", "build": _BLOCK_64, "int8_kv": True}),
    Entry("llama.cpp Q8_0", "llamacpp", 8.5, 16, {"format": "Q8_0"}),
    Entry("genai int4 b64", "ort_genai", 4.5, 32, {"precision": "int4", "build": _BLOCK_64}),
    Entry("genai int4 b64, int8 KV", "ort_genai", 4.5, 8, {"precision": "int4", "build": _BLOCK_64, "int8_kv": True}),
    Entry("llama.cpp Q4_0", "llamacpp", 4.5, 16, {"format": "Q4_0"}),
    Entry("llama.cpp Q4_0, -fa 1", "llamacpp", 4.5, 16, {"format": "Q4_0", "flash_attention": True}),
    Entry(
        "llama.cpp Q4_0, -fa 1, Q8_0 KV",
        "llamacpp",
        4.5,
        8.5,
        {"format": "Q4_0", "flash_attention": True, "kv": "Q8_0"},
    ),
)
"""Flash attention is off for llama.cpp unless the name says otherwise: on CPUs it was its slow setting at depth."""


def select(parts: list[str]) -> list[Entry]:
    """Entries whose name contains one of `parts`; all of them without any."""
    return [entry for entry in ENTRIES if not parts or any(part in entry.name for part in parts)]

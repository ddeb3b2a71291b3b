"""What the processor can do that changes how sessions are made.

In: `/proc/cpuinfo`, as Linux has it. Out: an identity for prepared graphs, and whether INT8 products need care. Does
not look for GPUs or boards, see `engines.device`.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from pathlib import Path

_X86 = frozenset({"x86_64", "amd64"})
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instruction sets that add products of 8 bits in 32 bits."""


def int8_products_saturate(root: Path = Path("/")) -> bool:
    """Whether U8 by S8 products may be wrong here.

    x86 without VNNI adds pairs of them in 16 bits (`vpmaddubsw`): 2 * 255 * 127 does not fit. Where no instruction sets
    can be read the answer is yes, as slow is better than wrong.
    """
    return platform.machine().lower() in _X86 and not _DOT_PRODUCTS & _instruction_sets(root)


def processor_identity(root: Path = Path("/")) -> str:
    """What the packed order of weights depends on: architecture, model and a hash of the instruction sets."""
    found = _first_processor(root)
    model = found.get("model name") or found.get("CPU part") or platform.processor()
    sets = " ".join(sorted(_instruction_sets(root)))
    return f"{platform.machine()} {model} {hashlib.sha256(sets.encode()).hexdigest()[:16]}"


def _instruction_sets(root: Path) -> frozenset[str]:
    found = _first_processor(root)
    return frozenset((found.get("flags") or found.get("Features") or "").split())


def _first_processor(root: Path) -> dict[str, str]:
    """Names and values of the first processor; none where there is no such file."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found

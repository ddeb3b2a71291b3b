"""Memory of this process that is free but not yet given back.

In: nothing. Out: less resident memory. Does not know engines.
"""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps up to a gigabyte of a closed session otherwise."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

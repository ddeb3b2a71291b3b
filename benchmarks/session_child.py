"""Both experts of a bundle resident in a process of its own, so that their memory can be read from outside of them.

In: a bundle, whether sessions may be prepared, and where. Out: one JSON line: seconds to load both, anonymous and file
memory after a prompt and some steps, median milliseconds of a step, and the logits' hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

EXPERTS = ("text_expert", "speech_expert")
_CAPACITY = 256


def measure(bundle_folder: Path, prepared: bool, threads: int, steps: int) -> dict[str, float | str]:
    """Read a prompt with the text expert, then decode with the speech expert over the same cache."""
    from voxedge.engines.bundle import Bundle
    from voxedge.engines.loader import GraphLoader, LoadOptions
    from voxedge.runtime.decoder import Decoder, KvCache

    bundle = Bundle.open(bundle_folder)
    loader = GraphLoader(bundle, LoadOptions("cpu", "resident", threads, prepared))
    started = time.perf_counter()
    text, speech = (Decoder(loader.load(name)) for name in EXPERTS)
    load_s = time.perf_counter() - started
    cache = KvCache(speech.engine, speech.cache_shape, _CAPACITY)
    logits = text.forward(np.arange(64, dtype=np.int32), cache)
    times = []
    for step in range(steps):
        begun = time.perf_counter()
        logits = speech.forward(np.array([step], np.int32), cache)
        times.append(time.perf_counter() - begun)
    memory = status_bytes()
    return {
        "load_s": load_s,
        "anonymous": memory["RssAnon"],
        "file": memory["RssFile"],
        "step_ms": float(np.median(times)) * 1e3,
        "logits": hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest(),
    }


def status_bytes() -> dict[str, int]:
    """Resident memory of this process, in bytes."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}


def main() -> None:
    """Run once from the command line."""
    parser = argparse.ArgumentParser(description="Load both experts once; used by session_memory.py.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prepared", action="store_true")
    parser.add_argument("--cache", type=Path, required=True, help="XDG cache folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    os.environ["XDG_CACHE_HOME"] = str(arguments.cache)
    print(json.dumps(measure(arguments.bundle, arguments.prepared, arguments.threads, arguments.steps)))


if __name__ == "__main__":
    main()

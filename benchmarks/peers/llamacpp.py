"""llama.cpp as a peer, through llama-cpp-python's C interface.

In: a GGUF file (see `gguf_writer`). Options: `format` (`F32`, `F16`, `Q8_0`, `Q4_0`), `flash_attention` (default false:
on CPUs it was the slower setting at depth), `kv` (`F32`, `F16`, `Q8_0`: type of the cache, default F16).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from gguf_writer import write_gguf
from protocol import Handle, LmEngine, Logits, Reply, Request, serve_engine

_QUANTISED = ("Q4_0", "Q8_0")
_KV_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8}
"""Numbers of `enum ggml_type`."""


def _path(request: Request, form: str | None = None) -> Path:
    return Path(request["work"]) / f"llama-{form or request['options']['format']}.gguf"


def prepare(request: Request) -> Reply:
    """Write the GGUF file: F32 and F16 directly, the quantised ones by llama.cpp itself from F32."""
    import gguf  # type: ignore[import-not-found]  # noqa: F401
    import llama_cpp  # type: ignore[import-not-found]

    form, path = request["options"]["format"], _path(request)
    if path.is_file():
        return {"path": str(path)}
    checkpoint = Path(request["checkpoint"]) / "speech_expert"
    if form not in _QUANTISED:
        write_gguf(checkpoint, path, form)
        return {"path": str(path)}
    source = _path(request, "F32")
    if not source.is_file():
        write_gguf(checkpoint, source, "F32")
    _quantise(llama_cpp, source, path, form, int(request["threads"]))
    return {"path": str(path)}


def _quantise(llama_cpp: Handle, source: Path, target: Path, form: str, threads: int) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
    parameters.pure = True  # every matrix in the named format, so that bits per weight are equal over the engines
    partial = target.with_name(target.name + ".partial")
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters))
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status} for {target.name}")
    partial.rename(target)


class LlamaCpp(LmEngine):
    """One llama.cpp context with one sequence."""

    def __init__(self, request: Request) -> None:
        import llama_cpp

        self._llama = llama_cpp
        llama_cpp.llama_backend_init()
        path = _path(request)
        self._model: Any = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self._context: Any = llama_cpp.llama_init_from_model(self._model, self._parameters(request))
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context from these options")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.rows = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self._length = 0
        self._one = (llama_cpp.llama_token * 1)()

    def _parameters(self, request: Request) -> Handle:
        options, threads = request["options"], int(request["threads"])
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = int(request["capacity"])
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = int(options.get("flash_attention", False))
        parameters.type_k = parameters.type_v = _KV_TYPES[options.get("kv", "F16")]
        return parameters

    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def rewind(self, length: int) -> None:
        """Remove the cells from `length` on."""
        self._llama.llama_memory_seq_rm(self._memory, 0, length, -1)
        self._length = length

    def prefill(self, ids: list[int]) -> Logits:
        """Decode ids in batches of the context's own size."""
        tokens = (self._llama.llama_token * len(ids))(*ids)
        size = int(self._llama.llama_n_batch(self._context))
        for start in range(0, len(ids), size):
            count = min(size, len(ids) - start)
            piece = ctypes.cast(ctypes.byref(tokens, start * 4), ctypes.POINTER(self._llama.llama_token))
            self._decode(piece, count)
        return self._logits()

    def step(self, token: int) -> Logits:
        """Decode one id."""
        self._one[0] = token
        self._decode(self._one, 1)
        return self._logits()

    def _decode(self, tokens: Handle, count: int) -> None:
        status = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(tokens, count))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} at {self._length} tokens")
        self._length += count

    def _logits(self) -> Logits:
        pointer = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.rows,))

    def versions(self) -> dict[str, str]:
        """Version of llama-cpp-python and the instruction sets of its build."""
        features = self._llama.llama_print_system_info().decode().replace("CPU :", "").replace("= 1", "")
        build = " ".join(part.strip() for part in features.split("|"))
        return {"llama-cpp-python": f"{self._llama.__version__} ({build.strip()})"}


if __name__ == "__main__":
    serve_engine(LlamaCpp, prepare)

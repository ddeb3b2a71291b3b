"""Qwen3 safetensors to GGUF, one tensor in memory at a time.

In: a Hugging Face Qwen3 folder. Out: one GGUF file in F32 or F16 without a vocabulary (ids go in, logits come out).
Quantising is left to llama.cpp itself.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from protocol import Handle

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    layer, inner = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_INNER[inner]}.weight"


class _Tensors:
    """The float32 values of a sharded safetensors folder, read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as stream:
                size = struct.unpack("<Q", stream.read(8))[0]
                header = json.loads(stream.read(size))
            header.pop("__metadata__", None)
            self._entries |= {name: (path, 8 + size, entry) for name, entry in header.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: tuple(entry["shape"]) for name, (_, _, entry) in self._entries.items()}

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32."""
        path, base, entry = self._entries[name]
        start, end = entry["data_offsets"]
        with path.open("rb") as stream:
            stream.seek(base + start)
            raw = stream.read(end - start)
        if entry["dtype"] == "F32":
            values = np.frombuffer(raw, np.float32)
        else:
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        shaped: npt.NDArray[np.float32] = values.reshape(entry["shape"])
        return shaped


def _add_settings(writer: Handle, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def write_gguf(folder: Path, path: Path, form: str) -> None:
    """Convert a Qwen3 folder; norms stay float32, matrices become `form` (`F32` or `F16`)."""
    import gguf  # type: ignore[import-not-found]

    config = json.loads((folder / "config.json").read_text())
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    _add_settings(writer, config)
    writer.add_file_type(0 if form == "F32" else 1)
    tensors = _Tensors(folder)
    shapes = tensors.shapes()
    dtypes = {name: np.float16 if form == "F16" and len(shape) == 2 else np.float32 for name, shape in shapes.items()}
    for name, shape in shapes.items():
        dtype = np.dtype(dtypes[name])
        writer.add_tensor_info(_gguf_name(name), shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in shapes:
        writer.write_tensor_data(tensors.read(name).astype(dtypes[name], copy=False))
    writer.close()
    partial.rename(path)

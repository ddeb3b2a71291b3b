"""Random MoE-TTS language models on disk, in the shapes of the Qwen3 family.

In: a named shape, a dtype and a folder. Out: a checkpoint in voxedge's directory layout (`config.json`, `text_expert/`,
`speech_expert/`) of the true size, with random weights, written in pieces so that memory does not grow with the model.
Writes no acoustic decoder and no vocoder: export and decoding of the language model do not read them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "moetts_e2e" / "checkpoint" / "text_expert"
"""Folder of the byte-level tokenizer that every random checkpoint carries."""
_BLOCK_ELEMENTS = 4_194_301
"""Random values that are repeated over all tensors; 16 MB in float32, and a prime, so that rows do not line up."""
_WRITE_BYTES = 1 << 24
_SHARD_BYTES = 2 << 30
_DTYPES = {"bf16": ("BF16", "bfloat16", 2), "fp32": ("F32", "float32", 4)}


@dataclass(frozen=True, slots=True)
class LmShape:
    """Sizes of one expert of a routed Qwen3 language model."""

    layers: int
    """Transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of one head; independent of `hidden / heads`."""
    ffn: int
    """Inner width of the gated feed-forward."""
    tied: bool = True
    """Whether the head is the embedding matrix."""
    text_rows: int = 151936
    """Rows of the text expert's embedding."""
    speech_rows: int = 6561
    """Speech tokens, rows of the speech expert's embedding."""

    @property
    def step_weights(self) -> int:
        """Matrix elements that one decode step reads: all blocks, and the head of speech rows and end-of-speech."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.ffn) + (self.speech_rows + 1) * self.hidden

    @property
    def kv_elements(self) -> int:
        """Key and value elements per token of context."""
        return 2 * self.layers * self.kv_heads * self.head_dim


SHAPES = {
    "smoke": LmShape(2, 256, 4, 2, 64, 512, text_rows=2048, speech_rows=640),
    "middling": LmShape(4, 1024, 16, 8, 128, 3072, text_rows=2048),
    "0.6b": LmShape(28, 1024, 16, 8, 128, 3072),
    "1.7b": LmShape(28, 2048, 16, 8, 128, 6144),
    "4b": LmShape(36, 2560, 32, 8, 128, 9728),
    "8b": LmShape(36, 4096, 32, 8, 128, 12288, tied=False),
}
"""Qwen3 0.6B, 1.7B, 4B and 8B (their published config.json), four layers of the first, and one to try a script with."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of a checkpoint before it is written."""

    name: str
    """Key in the file."""
    shape: tuple[int, ...]
    """Elements per axis."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm's gain, which is one; everything else is random."""
        return len(self.shape) == 1


def _layer_tensors(shape: LmShape, index: int) -> Iterator[TensorPlan]:
    d, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (queries, d),
        "self_attn.k_proj": (keys, d),
        "self_attn.v_proj": (keys, d),
        "self_attn.q_norm": (shape.head_dim,),
        "self_attn.k_norm": (shape.head_dim,),
        "self_attn.o_proj": (d, queries),
        "post_attention_layernorm": (d,),
        "mlp.gate_proj": (shape.ffn, d),
        "mlp.up_proj": (shape.ffn, d),
        "mlp.down_proj": (d, shape.ffn),
    }
    for name, size in sizes.items():
        yield TensorPlan(f"model.layers.{index}.{name}.weight", size)


def expert_tensors(shape: LmShape, rows: int) -> Iterator[TensorPlan]:
    """Tensors of one expert with `rows` embedding rows, in file order (names of Hugging Face's Qwen3)."""
    yield TensorPlan("model.embed_tokens.weight", (rows, shape.hidden))
    for index in range(shape.layers):
        yield from _layer_tensors(shape, index)
    yield TensorPlan("model.norm.weight", (shape.hidden,))
    if not shape.tied:
        yield TensorPlan("lm_head.weight", (rows, shape.hidden))


class RandomBlock:
    """One block of N(0, 0.02) values, written again and again wherever the last tensor stopped."""

    def __init__(self, dtype: str, seed: int) -> None:
        values = np.random.default_rng(seed).standard_normal(_BLOCK_ELEMENTS, dtype=np.float32) * np.float32(0.02)
        self.item_bytes = _DTYPES[dtype][2]
        self._random = memoryview(_encode(values, dtype))
        self._ones = _encode(np.ones(1, np.float32), dtype)
        self._at = 0

    def write(self, stream: BinaryIO, plan: TensorPlan) -> None:
        """Append the tensor's bytes, at most 16 MB at a time."""
        if plan.is_norm:
            stream.write(self._ones * plan.elements)
            return
        left = plan.elements * self.item_bytes
        while left:
            piece = self._random[self._at : self._at + min(left, _WRITE_BYTES)]
            stream.write(piece)
            left -= len(piece)
            self._at = (self._at + len(piece)) % len(self._random)


def _encode(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Values as their bits in the checkpoint; bfloat16 is float32's upper half (truncated: the values are random)."""
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes() if dtype == "bf16" else values.tobytes()


def _shards(plans: list[TensorPlan], item_bytes: int, limit: int) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    used = 0
    for plan in plans:
        size = plan.elements * item_bytes
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(plan)
        used += size
    return shards


def write_safetensors(path: Path, plans: list[TensorPlan], block: RandomBlock, dtype: str) -> None:
    """Write tensors to one file, a piece at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for plan in plans:
        start, end = end, end + plan.elements * block.item_bytes
        header[plan.name] = {"dtype": _DTYPES[dtype][0], "shape": plan.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format asks for an 8-byte aligned start of the data
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for plan in plans:
            block.write(stream, plan)


def _write_expert(folder: Path, shape: LmShape, rows: int, dtype: str, seed: int, shard_bytes: int) -> None:
    folder.mkdir(parents=True)
    block = RandomBlock(dtype, seed)
    shards = _shards(list(expert_tensors(shape, rows)), block.item_bytes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, plans in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, plans, block, dtype)
        weight_map |= dict.fromkeys((plan.name for plan in plans), name)
    if len(shards) > 1:
        total = sum(plan.elements for plans in shards for plan in plans) * block.item_bytes
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(_expert_config(shape, rows, dtype), indent=2))


def _expert_config(shape: LmShape, rows: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": rows,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.layers,
        "use_cache": True,
        "initializer_range": 0.02,
        "torch_dtype": _DTYPES[dtype][1],
    }


def _system_config(shape: LmShape, eos: int) -> dict[str, Any]:
    return {
        "model_type": "moe_tts",
        "format_version": 1,
        "layout": "directory",
        "text_expert": "text_expert",
        "speech_expert": "speech_expert",
        "tokenizer": "text_expert",
        "speech": {
            "num_tokens": shape.speech_rows,
            "num_rows": shape.speech_rows,
            "frame_rate": 25,
            "token_id_offset": shape.text_rows,
            "eos": {"vocab": "text", "id": eos},
        },
        "routing": {"final_norm": "token"},
        "prompt": {
            "system": "You are a text to speech model.",
            "user_template": "{description}\n{text}",
            "enable_thinking": False,
        },
        "sample_rate": 48000,
        "latent_rate": 50,
    }


def _end_of_turn() -> int:
    tokens = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return int(next(token["id"] for token in tokens if token["content"] == "<|im_end|>"))


def write_checkpoint(folder: Path, shape: LmShape, dtype: str = "bf16", shard_bytes: int = _SHARD_BYTES) -> Path:
    """Write a random MoE-TTS language model, or keep the folder when it already holds this very one.

    Args:
        folder: Where to write; appears only when it is complete.
        shape: Sizes of both experts.
        dtype: `bf16` or `fp32`.
        shard_bytes: Upper bound of one safetensors file.

    Returns:
        The folder.
    """
    wanted = _expert_config(shape, shape.text_rows, dtype)
    if folder.is_dir():
        if json.loads((folder / "text_expert" / "config.json").read_text()) == wanted:
            return folder
        raise SystemExit(f"{folder} holds another checkpoint than the one asked for; delete it or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _write_expert(partial / "text_expert", shape, shape.text_rows, dtype, 1, shard_bytes)
    _write_expert(partial / "speech_expert", shape, shape.speech_rows, dtype, 2, shard_bytes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, partial / "text_expert" / name)
    (partial / "config.json").write_text(json.dumps(_system_config(shape, _end_of_turn()), indent=2))
    partial.rename(folder)
    return folder


def main() -> None:
    """Write one checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Write a random MoE-TTS language model in the shape of a Qwen3 model.")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--dtype", choices=_DTYPES, default="bf16")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.output, SHAPES[arguments.shape], arguments.dtype))


if __name__ == "__main__":
    main()

"""A random MoE-TTS checkpoint of middling size on disk, in the directory layout: hidden 1024, 4 layers, 0.4 GB.

In: a folder, and the golden checkpoint whose tokenizer it takes. Out: a checkpoint as a release has it, in bfloat16.
Matrices are N(0, 1 / fan-in) and norms are 1, so activations stay of order 1 at any depth, as in a trained model; with
N(0, 0.02) everywhere they would not. It says nothing that anybody could understand.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voxedge.export.checkpoint import dit, oobleck, qwen3

SAMPLE_RATE, LATENT_RATE, TOKEN_RATE = 48000, 50, 25
TEXT_ROWS, SPEECH_ROWS = 2048, 6561
EXPERT = qwen3.QwenConfig(
    hidden_size=1024,
    layers=4,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    vocab_size=TEXT_ROWS,
    max_positions=40960,
    tied=True,
)
DIT = dit.DitConfig(
    io_channels=32,
    embed_dim=1024,
    depth=4,
    num_heads=16,
    rotary_dim=32,
    input_concat_dim=64,
    global_cond_type="adaLN",
    num_memory_tokens=8,
    qk_norm="ln",
    ff_mult=3,
)
DECODER = oobleck.CoderConfig(
    audio_channels=1,
    channels=32,
    multiples=(1, 1, 2, 4, 8, 16),
    strides=(2, 2, 4, 6, 10),
    latent_dim=32,
    use_snake=True,
    final_tanh=False,
)
ENCODER = dataclasses.replace(DECODER, latent_dim=2 * DECODER.latent_dim)
RESIDUAL_GAIN = 0.3
"""Of what a vocoder's residual unit adds: 15 of them at gain 1 would raise the power 10 ** 6 times."""

Arrays = dict[str, np.ndarray]


def write_midsize(folder: Path, golden: Path) -> Path:
    """Write the checkpoint.

    Args:
        folder: Must not exist yet.
        golden: A checkpoint in the directory layout with a text expert's tokenizer.
    """
    random = np.random.default_rng(20)
    tokenizer = golden / "text_expert" / "tokenizer.json"
    for name, rows in (("text_expert", TEXT_ROWS), ("speech_expert", SPEECH_ROWS)):
        config = dataclasses.replace(EXPERT, vocab_size=rows)
        shapes = qwen3.expected_shapes(config)
        del shapes["lm_head.weight"]  # tied
        tensors = {f"model.{key}": _values(key, shape, random) for key, shape in shapes.items()}
        _write(folder / name, "config.json", expert_settings(config), tensors)
    _write(folder / "dit", "model_config.json", dit_settings(), dit_tensors(random))
    _write(folder / "vae", "model_config.json", vae_settings(), vae_tensors(random))
    shutil.copyfile(tokenizer, folder / "text_expert" / "tokenizer.json")
    added = json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]
    end = next(token["id"] for token in added if token["content"] == "<|im_end|>")
    (folder / "config.json").write_text(json.dumps(system_settings(end)))
    return folder


def dit_tensors(random: np.random.Generator) -> Arrays:
    """The diffusion transformer and its table of speech tokens, whose entries are of order 1."""
    tensors = {f"model.model.{key}": _values(key, shape, random) for key, shape in dit.expected_shapes(DIT).items()}
    table = random.standard_normal((SPEECH_ROWS, DIT.input_concat_dim), np.float32)
    return {**tensors, "conditioner.conditioners.speech_tokens.token_embedder.weight": table}


def vae_tensors(random: np.random.Generator) -> Arrays:
    """Both coders, every convolution as `weight_g` and `weight_v`."""
    shapes = {**oobleck.decoder_shapes(DECODER), **oobleck.encoder_shapes(ENCODER)}
    tensors: Arrays = {}
    for key, shape in shapes.items():
        if len(shape) != 3:
            tensors[key] = _values(key, shape, random)
            continue
        direction = random.standard_normal(shape, np.float32)
        norm = np.sqrt(np.square(direction).sum((1, 2), keepdims=True))
        tensors[f"{key}_v"] = direction
        tensors[f"{key}_g"] = np.full_like(norm, _gain(key, shape))
    return tensors


def _gain(key: str, shape: tuple[int, ...]) -> float:
    """Norm of a filter over all axes but the first that keeps power, or adds a little of it in a residual unit."""
    if _is_transposed(key):
        inputs, outputs, kernel = shape  # every output sample is met by 2 taps of every input channel
        return math.sqrt(outputs * kernel / (2 * inputs))
    return RESIDUAL_GAIN if key.count(".layers.") == 3 and key.endswith("layers.3.weight") else 1.0


def _is_transposed(key: str) -> bool:
    return key.startswith("decoder.") and key.count(".layers.") == 2 and key.endswith("layers.1.weight")


def _values(key: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Of one tensor, by the last part of its name."""
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ("alpha", "beta"):  # a snake's logarithms, or the offset of a norm
        return np.zeros(shape, np.float32)
    if leaf in ("bias", "to_scale_shift_gate"):
        return 0.1 * random.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    fan_in = 1 if leaf == "memory_tokens" else math.prod(shape[1:])
    return random.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))


def _write(folder: Path, name: str, settings: Mapping[str, Any], tensors: Arrays) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(settings))
    header: dict[str, Any] = {}
    end = 0
    for key, values in tensors.items():
        start, end = end, end + 2 * values.size
        header[key] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(_bfloat16(values))


def _bfloat16(values: np.ndarray) -> bytes:
    """The upper halves of FP32: truncated, which random values may be."""
    return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).tobytes()


def expert_settings(config: qwen3.QwenConfig) -> dict[str, Any]:
    """`config.json` of an expert."""
    return {
        "model_type": "qwen3",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def dit_settings() -> dict[str, Any]:
    """`model_config.json` of the diffusion transformer."""
    conditioner = {"num_tokens": SPEECH_ROWS, "frame_rate": TOKEN_RATE}
    network = {
        "io_channels": DIT.io_channels,
        "input_concat_dim": DIT.input_concat_dim,
        "transformer_type": "continuous_transformer",
        "embed_dim": DIT.embed_dim,
        "depth": DIT.depth,
        "num_heads": DIT.num_heads,
        "global_cond_type": DIT.global_cond_type,
        "num_memory_tokens": DIT.num_memory_tokens,
        "attn_kwargs": {"qk_norm": DIT.qk_norm},
        "ff_kwargs": {"mult": DIT.ff_mult},
    }
    return {
        "model_type": "diffusion_cond",
        "sample_rate": SAMPLE_RATE,
        "model": {
            "io_channels": DIT.io_channels,
            "conditioning": {
                "cond_dim": DIT.input_concat_dim,
                "configs": [{"id": "speech_tokens", "type": "speech_token_lut", "config": conditioner}],
            },
            "diffusion": {
                "type": "dit",
                "diffusion_objective": "edm",
                "edm": {"sigma_data": 1.0, "sigma_min": 0.01, "sigma_max": 100.0, "rho": 5.0},
                "input_concat_ids": ["speech_tokens"],
                "config": network,
            },
        },
    }


def vae_settings() -> dict[str, Any]:
    """`model_config.json` of the autoencoder."""
    return {
        "model_type": "autoencoder",
        "sample_rate": SAMPLE_RATE,
        "model": {
            "encoder": {"type": "oobleck", "config": _coder_settings(ENCODER, "in_channels")},
            "decoder": {"type": "oobleck", "config": {**_coder_settings(DECODER, "out_channels"), "final_tanh": False}},
            "bottleneck": {"type": "vae"},
            "latent_dim": DECODER.latent_dim,
            "downsampling_ratio": DECODER.hop,
            "io_channels": DECODER.audio_channels,
        },
    }


def _coder_settings(config: oobleck.CoderConfig, channels: str) -> dict[str, Any]:
    return {
        channels: config.audio_channels,
        "channels": config.channels,
        "c_mults": config.multiples[1:],
        "strides": config.strides,
        "latent_dim": config.latent_dim,
        "use_snake": config.use_snake,
    }


def system_settings(end: int) -> dict[str, Any]:
    """`config.json` of the whole; speech ends with the text token `end`."""
    return {
        "model_type": "moe_tts",
        "format_version": 1,
        "layout": "directory",
        "text_expert": "text_expert",
        "speech_expert": "speech_expert",
        "tokenizer": "text_expert",
        "dit": "dit",
        "vae": "vae",
        "speech": {
            "num_tokens": SPEECH_ROWS,
            "num_rows": SPEECH_ROWS,
            "frame_rate": TOKEN_RATE,
            "token_id_offset": TEXT_ROWS,
            "eos": {"vocab": "text", "id": end},
        },
        "routing": {"final_norm": "token"},
        "prompt": {"system": "You are a text to speech model.", "user_template": "{description}\n{text}"},
        "sample_rate": SAMPLE_RATE,
        "latent_rate": LATENT_RATE,
    }

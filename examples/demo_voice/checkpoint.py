"""Trained parts to the layout that MoE-TTS checkpoints are released in.

In: the parts. Out: a folder that `voxedge export` reads: `text_expert` with the tokenizer, `speech_expert`, `dit`,
`vae` and `config.json`, which also lists the words that the voice knows. Factorised tables become ordinary matrices;
the latents' scale goes into the decoder's first convolution. Weights are stored in FP16.
"""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.demo_voice.acoustic import CONFIG, SIGMA_DATA, TABLE_WIDTH, Acoustic
from examples.demo_voice.language_model import MAX_POSITIONS, SpeechExpert
from examples.demo_voice.prompts import USER_TEMPLATE
from examples.demo_voice.sentences import WORDS
from examples.demo_voice.speech_tokenizer import CODES
from examples.demo_voice.synthesiser import SAMPLE_RATE
from examples.demo_voice.vocoder import DECODER, LATENTS, Vocoder
from voxedge.export.checkpoint.qwen3 import QwenConfig, layer_shapes
from voxedge.export.modules.basic import Stored
from voxedge.export.modules.decoder_lm import JOINT

TOKEN_RATE = 25
"""Speech tokens per second; there are twice as many latents."""
SPEAKING: dict[str, Any] = {
    "prompt": {"max_text_tokens": 64, "single_sentences": True},
    "sampling": {"temperature": 0.5, "top_k": 20, "top_p": 1.0, "ras_window": 0, "min_tokens": 8, "max_tokens": 200},
    "diffusion": {"steps": 2},
    "windows": {"stream_s": 0.6, "context_s": 0.6, "lookahead_s": 0.2, "chunk_latents": 25},
}
"""What was found to sound best: an under-trained denoiser adds noise with every step, and nothing here is long."""
VOICES = (
    "A woman.",
    "A woman speaks slowly in a low voice.",
    "A woman speaks fast and in a high voice.",
    "A man.",
    "A deep, slow man.",
    "A man speaks quickly with a high pitch.",
    "A scottish man.",
    "A calm scottish man speaks in a deep voice.",
)
_CONVOLUTION = "process_conv.weight"
SIGMA_MIN, SIGMA_MAX, RHO = 0.05, 20.0, 7.0


def write(
    folder: Path,
    speech: SpeechExpert,
    acoustic: Acoustic,
    vocoder: Vocoder,
    scale: Tensor,
    tokenizer: Path,
) -> None:
    """Write the whole folder; an older one is replaced.

    Args:
        folder: Where.
        speech: Both experts.
        acoustic: Tokens to latents of unit scale.
        vocoder: Latents of their own scale to sound.
        scale: [32], see `acoustic.scale_of`.
        tokenizer: The `tokenizer.json`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    text = speech.text
    _write_expert(folder / "text_expert", text.config, _expert(text.expert, text.config), text.embed)
    speaking = _expert(speech.expert, text.config)
    _write_expert(folder / "speech_expert", text.config, speaking, speech.speech_rows())
    shutil.copyfile(tokenizer, folder / "text_expert" / "tokenizer.json")
    weights = {f"model.model.{name}": value for name, value in released(acoustic.dit).items() if "rotary" not in name}
    weights["conditioner.conditioners.speech_tokens.token_embedder.weight"] = acoustic.token_rows()
    _write_part(folder / "dit", weights, _dit_config())
    decoder = {f"decoder.{name}": value for name, value in released(vocoder.decoder).items()}
    first = "decoder.layers.0.weight"
    decoder[first] = decoder[first] * scale[None, :, None]
    _write_part(folder / "vae", decoder, _vae_config())
    _write_json(folder / "config.json", _config(text.config.vocab_size))


def released(module: nn.Module) -> dict[str, Tensor]:
    """Parameters under the checkpoint's names and in its form: the inverse of what `export` does with them."""
    weights: dict[str, Tensor] = {}
    for path, part in module.named_modules():
        for name, value in part.named_parameters(recurse=False):
            stored: Stored = getattr(part, "stored", {}).get(name, Stored(name, "same"))
            key = f"{path}.{stored.name}" if path else stored.name
            weights[key] = _inverse(value.detach(), stored.transform)
            if _CONVOLUTION in key:
                weights[key] = weights[key][:, :, None]  # a linear layer here, a convolution of width 1 there
    return weights


def _inverse(value: Tensor, transform: str) -> Tensor:
    if transform == "transpose":
        return value.T
    if transform == "pointwise":
        return value[:, :, 0]
    if transform == "exp":
        return value.clamp(min=1e-4).log().flatten()
    if transform == "inverse_exp":
        return -value.clamp(min=1e-4).log().flatten()
    return value


def _expert(expert: nn.Module, config: QwenConfig) -> dict[str, Tensor]:
    """Tensors of an expert; what is one product of several projections here is several tensors there."""
    weights = {f"model.{name.replace('.attn.', '.self_attn.')}": value for name, value in released(expert).items()}
    shapes = layer_shapes(config)
    for layer, (module, joint) in product(range(config.layers), (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj"))):
        parts = [f"{module}.{part}.weight" for part in JOINT[joint]]
        whole = weights.pop(f"model.layers.{layer}.{module}.{joint}.weight")
        rows = whole.split([shapes[part][0] for part in parts])
        weights.update(zip((f"model.layers.{layer}.{part}" for part in parts), rows, strict=True))
    return weights


def _write_expert(folder: Path, config: QwenConfig, weights: dict[str, Tensor], rows: Tensor) -> None:
    described = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": rows.shape[0],
        "torch_dtype": "float16",
    }
    _write_part(folder, {**weights, "model.embed_tokens.weight": rows}, described, "config.json")


def _write_part(folder: Path, weights: dict[str, Tensor], config: Any, name: str = "model_config.json") -> None:  # noqa: ANN401 - JSON
    folder.mkdir(parents=True)
    stored = {key: value.detach().to(torch.float16).contiguous() for key, value in weights.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    _write_json(folder / name, config)


def _write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _config(text_rows: int) -> dict[str, Any]:
    return {
        "model_type": "moe_tts",
        "format_version": 1,
        "layout": "directory",
        "text_expert": "text_expert",
        "speech_expert": "speech_expert",
        "tokenizer": "text_expert",
        "speech": {
            "num_tokens": CODES,
            "num_rows": CODES + 1,
            "frame_rate": TOKEN_RATE,
            "token_id_offset": text_rows,
            "eos": {"vocab": "speech", "id": CODES},
        },
        "routing": {"final_norm": "token"},
        "prompt": {"system": "", "user_template": USER_TEMPLATE, "enable_thinking": False},
        "dit": "dit",
        "vae": "vae",
        "speaking": SPEAKING,
        "words": list(WORDS),
        "voices": list(VOICES),
        "sample_rate": SAMPLE_RATE,
        "latent_rate": 2 * TOKEN_RATE,
    }


def _dit_config() -> dict[str, Any]:
    conditioner = {"id": "speech_tokens", "type": "speech_token_lut"}
    return {
        "model_type": "diffusion_cond",
        "sample_rate": SAMPLE_RATE,
        "audio_channels": 1,
        "model": {
            "io_channels": LATENTS,
            "conditioning": {
                "cond_dim": TABLE_WIDTH,
                "configs": [{**conditioner, "config": {"num_tokens": CODES, "frame_rate": TOKEN_RATE}}],
            },
            "diffusion": {
                "type": "dit",
                "diffusion_objective": "edm",
                "edm": {"sigma_data": SIGMA_DATA, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "rho": RHO},
                "input_concat_ids": ["speech_tokens"],
                "config": {
                    "io_channels": LATENTS,
                    "input_concat_dim": TABLE_WIDTH,
                    "transformer_type": "continuous_transformer",
                    "embed_dim": CONFIG.embed_dim,
                    "depth": CONFIG.depth,
                    "num_heads": CONFIG.num_heads,
                    "global_cond_type": CONFIG.global_cond_type,
                    "ff_kwargs": {"mult": CONFIG.ff_mult},
                },
            },
        },
    }


def _vae_config() -> dict[str, Any]:
    decoder = {
        "out_channels": DECODER.audio_channels,
        "channels": DECODER.channels,
        "c_mults": list(DECODER.multiples[1:]),
        "strides": list(DECODER.strides),
        "latent_dim": DECODER.latent_dim,
        "use_snake": DECODER.use_snake,
        "final_tanh": DECODER.final_tanh,
    }
    return {
        "model_type": "autoencoder",
        "sample_rate": SAMPLE_RATE,
        "audio_channels": DECODER.audio_channels,
        "model": {
            "decoder": {"type": "oobleck", "config": decoder},
            "bottleneck": {"type": "vae"},
            "latent_dim": LATENTS,
            "downsampling_ratio": DECODER.hop,
            "io_channels": DECODER.audio_channels,
        },
    }

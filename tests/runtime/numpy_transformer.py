"""A Stable Audio diffusion transformer in plain numpy, so that solvers can be run against recorded results.

In: a golden case's checkpoint folder. Out: its raw network, and the conditioning of its speech tokens. Written from the
published architecture (Evans et al. 2024); knows what the golden checkpoints use and nothing else.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from voxedge.runtime.latents import nearest_indices

Array = npt.NDArray[np.float32]


class NumpyTransformer:
    """The network F(x, t) of a checkpoint, conditioned by input concatenation."""

    def __init__(self, checkpoint: Path) -> None:
        model = json.loads((checkpoint / "model_config.json").read_text())["model"]["diffusion"]
        self.edm = model["edm"]
        self.config = model["config"]
        tensors = load_file(checkpoint / "model.safetensors")
        self.table = tensors["conditioner.conditioners.speech_tokens.token_embedder.weight"]
        self.weights = {key.removeprefix("model.model."): value for key, value in tensors.items()}

    def condition(self, tokens: npt.NDArray[np.int64], length: int) -> Array:
        """Embedded tokens [channels, length], stretched to the latents."""
        embedded = self.table[tokens.reshape(-1)].T  # [channels, tokens]
        return embedded[:, nearest_indices(embedded.shape[1], length)]

    def __call__(self, x: Array, t: float, condition: Array) -> Array:
        """Raw prediction [channels, T] for x [channels, T]."""
        w = self.weights
        angles = 2.0 * math.pi * np.float32(t) * w["timestep_features.weight"][:, 0]
        time = self._mlp("to_timestep_embed", np.concatenate([np.cos(angles), np.sin(angles)]))
        x = np.concatenate([x, condition])  # [channels + condition, T]
        x = w["preprocess_conv.weight"][:, :, 0] @ x + x
        h = x.T @ w["transformer.project_in.weight"].T  # [T, width]
        length = len(h)
        adaptive = self.config["global_cond_type"] == "adaLN"
        modulation = self._mlp("transformer.global_cond_embedder", time) if adaptive else None
        if not adaptive:
            h = np.concatenate([time[None], h])
        if "transformer.memory_tokens" in w:
            h = np.concatenate([w["transformer.memory_tokens"], h])
        for layer in range(self.config["depth"]):
            h = self._block(h, f"transformer.layers.{layer}.", modulation)
        y = (h[-length:] @ w["transformer.project_out.weight"].T).T  # [channels, T]
        return w["postprocess_conv.weight"][:, :, 0] @ y + y

    def _block(self, h: Array, name: str, modulation: Array | None) -> Array:
        normed = self._norm(h, name + "pre_norm", 1e-5)
        if modulation is None:
            h = h + self._attention(normed, name)
            return h + self._feed_forward(self._norm(h, name + "ff_norm", 1e-5), name)
        six = np.split(self.weights[name + "to_scale_shift_gate"] + modulation, 6)
        h = h + self._attention(normed * (1 + six[0]) + six[1], name) * _sigmoid(1 - six[2])
        normed = self._norm(h, name + "ff_norm", 1e-5) * (1 + six[3]) + six[4]
        return h + self._feed_forward(normed, name) * _sigmoid(1 - six[5])

    def _attention(self, h: Array, name: str) -> Array:
        heads = self.config["num_heads"]
        rows = (h @ self.weights[name + "self_attn.to_qkv.weight"].T).reshape(len(h), 3, heads, -1)  # [T, 3, H, D]
        q, k, v = rows.transpose(1, 2, 0, 3)  # each [H, T, D]
        if name + "self_attn.q_norm.weight" in self.weights:
            q, k = self._norm(q, name + "self_attn.q_norm", 1e-6), self._norm(k, name + "self_attn.k_norm", 1e-6)
        q, k = _rotate(q), _rotate(k)
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(q.shape[-1]))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        return mixed.transpose(1, 0, 2).reshape(h.shape) @ self.weights[name + "self_attn.to_out.weight"].T

    def _feed_forward(self, h: Array, name: str) -> Array:
        w = self.weights
        a, b = np.split(h @ w[name + "ff.ff.0.proj.weight"].T + w[name + "ff.ff.0.proj.bias"], 2, axis=-1)
        return (a * b * _sigmoid(b)) @ w[name + "ff.ff.2.weight"].T + w[name + "ff.ff.2.bias"]

    def _mlp(self, name: str, x: Array) -> Array:
        w = self.weights
        hidden = x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]
        return hidden * _sigmoid(hidden) @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]

    def _norm(self, x: Array, name: str, epsilon: float) -> Array:
        kind, shift = (".gamma", ".beta") if name + ".gamma" in self.weights else (".weight", ".bias")
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(epsilon))
        return scaled * self.weights[name + kind] + self.weights.get(name + shift, np.float32(0))


def _rotate(x: Array) -> Array:
    size = max(x.shape[-1] // 2, 32)
    inverse = (10_000.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * inverse  # [T, size / 2]
    first, second, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))

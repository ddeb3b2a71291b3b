"""Random audio codecs on disk, in the shape of MOSS-Audio-Tokenizer or a part of its depth.

In: sizes and a folder. Out: `config.json` and `model.safetensors` with random weights. The tensors have voxedge's
canonical names with weight normalisation folded, which the reader takes beside the released spelling.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from voxedge.export.checkpoint.moss_codec import expected_shapes, parse_moss_codec


@dataclass(frozen=True, slots=True)
class Stage:
    """One stack of layers of the encoder; the decoder has its mirror image."""

    width: int
    heads: int
    layers: int
    outputs: int


@dataclass(frozen=True, slots=True)
class CodecShape:
    """Sizes of a codec."""

    sample_rate: int
    patches: tuple[int, ...]
    """Before each stack, from the waveform on."""
    stages: tuple[Stage, ...]
    context_s: float
    """Seconds that a window reaches back."""
    codebooks: int
    size: int
    """Entries of a codebook."""
    dim: int
    """Channels of an entry."""
    rvq: int
    """Channels of the residual."""

    def config(self) -> dict[str, Any]:
        """The checkpoint's `config.json`."""
        encoder: list[dict[str, Any]] = []
        decoder: list[dict[str, Any]] = []
        channels = 1
        for patch, stage in zip(self.patches, self.stages, strict=True):
            channels *= patch
            encoder += [_patch(patch), _stack(stage, channels, stage.outputs)]
            decoder += [_patch(patch), _stack(stage, stage.outputs, channels)]
            channels = stage.outputs
        hop = int(np.prod(self.patches))
        return {
            "model_type": "speech_tokenizer",
            "sampling_rate": self.sample_rate,
            "downsample_rate": hop,
            "causal_transformer_context_duration": self.context_s,
            "encoder_kwargs": encoder,
            "decoder_kwargs": decoder[::-1],
            "quantizer_type": "rlfq",
            "quantizer_kwargs": {
                "input_dim": channels,
                "rvq_dim": self.rvq,
                "output_dim": channels,
                "num_quantizers": self.codebooks,
                "codebook_size": self.size,
                "codebook_dim": self.dim,
                "quantizer_type": "rlfq",
            },
        }


def _patch(size: int) -> dict[str, Any]:
    return {"module_type": "PatchedPretransform", "patch_size": size}


def _stack(stage: Stage, inputs: int, outputs: int) -> dict[str, Any]:
    return {
        "module_type": "Transformer",
        "input_dimension": inputs,
        "output_dimension": outputs,
        "d_model": stage.width,
        "num_heads": stage.heads,
        "num_layers": stage.layers,
        "dim_feedforward": 4 * stage.width,
        "causal": True,
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "max_period": 10000,
        "gating": "none",
        "layer_scale": 0.01,
        "conv_layout": True,
    }


SMALLEST = CodecShape(
    2400, (24, 4), (Stage(32, 2, 1, 16), Stage(32, 2, 1, 24)), 0.4, codebooks=2, size=32, dim=8, rvq=16
)
"""One layer in each stack."""


def released(divide: int = 1) -> CodecShape:
    """The released sizes; every depth divided, rounded to the nearest, at least one layer."""
    depths = [max(1, round(layers / divide)) for layers in (12, 12, 12, 32)]
    narrow = [Stage(768, 12, depth, outputs) for depth, outputs in zip(depths, (384, 384, 640), strict=False)]
    stages = (*narrow, Stage(1280, 20, depths[3], 768))
    return CodecShape(24000, (240, 2, 2, 2), stages, 10.0, codebooks=32, size=1024, dim=8, rvq=512)


def write_codec(folder: Path, shape: CodecShape, seed: int = 0) -> Path:
    """Write a checkpoint; its whole weights are in memory for a moment.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, size in expected_shapes(parse_moss_codec(shape.config(), str(folder))).items():
        values = rng.standard_normal(size, np.float32)
        leaf = name.rsplit(".", 2)[-2:]
        if "norm" in leaf[0]:
            values = 0.1 * values + float(leaf[1] == "weight")
        elif leaf[1] == "scale":
            values = 0.2 * values + 0.5  # a trained scale; the initial 0.01 would hide all errors of the layers
        elif leaf[0] != "codebook":
            values = values / np.sqrt(np.prod(size[1:]) if len(size) > 1 else 100.0)
        tensors[name] = values.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def main() -> None:
    """Write one checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Write a random audio codec in the released shape.")
    parser.add_argument("--divide", type=int, default=8, help="of every depth; 1 is the released codec (7 GB)")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_codec(arguments.output, released(arguments.divide)))


if __name__ == "__main__":
    main()

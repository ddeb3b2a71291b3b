"""Random MOSS-TTS checkpoints on disk, in released shapes or with fewer layers of the backbone.

In: a model's name, how many layers its backbone keeps, and a folder. Out: a checkpoint folder with a small tokenizer,
which the exporter takes like a released one. The text table has the tokenizer's rows alone; what stands behind the
backbone, the local transformers and the heads, is as released.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from shapes import RandomBlock, TensorPlan, write_safetensors

from voxedge.export.checkpoint.moss_config import parse_moss
from voxedge.export.checkpoint.moss_tts import expected_shapes

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
"""Its MOSS cases lend their tokenizer and special ids."""

_QWEN = {"head_dim": 128, "num_key_value_heads": 8}
_V1 = {"local_hidden_size": 1536, "local_ffn_hidden_size": 8960, "additional_mlp_ffn_hidden_size": 2048}
_RELEASED: dict[str, dict[str, Any]] = {
    "delay": {"n_vq": 32, "backbone": (4096, 36, 12288, 32), "case": "moss_delay"},
    "v1": {"n_vq": 32, "backbone": (2048, 28, 6144, 16), "case": "moss_delay", "local": {**_V1, "local_num_layers": 4}},
    "v1.5": {"n_vq": 12, "backbone": (2560, 36, 9728, 32), "case": "moss_local_v15"},
}
MODELS = tuple(_RELEASED)


def config_of(model: str, layers: int | None = None, width: int | None = None) -> dict[str, Any]:
    """The `config.json` of a release.

    Args:
        model: One of `MODELS`.
        layers: Of the backbone; None for all.
        width: Of the backbone, for a model that is smaller all over; None for the released one.
    """
    known = _RELEASED[model]
    hidden, depth, inner, heads = known["backbone"]
    values: dict[str, Any] = json.loads((GOLDEN / known["case"] / "checkpoint" / "config.json").read_text())
    hidden, inner, heads = (hidden, inner, heads) if width is None else (width, 3 * width, max(8, width // 128))
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers or depth}
    for name in {"language_config", "qwen3_config"} & values.keys():
        values[name].update(sizes, num_attention_heads=heads, **_QWEN)
    values.update(known.get("local", {}), hidden_size=hidden, n_vq=known["n_vq"])
    if model == "v1.5":
        values.update(audio_codebook_sizes=[1024] * 12, audio_vocab_size=1024, audio_pad_token_id=1024)
        values["gpt2_config"].update(n_embd=hidden, n_head=heads, n_inner=inner)
        return {**values, "audio_pad_code": 1024, "local_hidden_size": hidden}
    return {**values, "audio_vocab_size": 1024, "audio_pad_code": 1024}


def write_released(folder: Path, model: str, layers: int | None = None, width: int | None = None) -> Path:
    """Write a checkpoint as released, or scaled as `config_of` says; gives the folder."""
    return write_moss(folder, config_of(model, layers, width), _RELEASED[model]["case"])


def write_moss(folder: Path, config: dict[str, Any], case: str = "moss_delay", seed: int = 0) -> Path:
    """Write a checkpoint; at most 16 MB of it are in memory.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copyfile(GOLDEN / case / "checkpoint" / "tokenizer.json", folder / "tokenizer.json")
    shapes = expected_shapes(parse_moss(config, str(folder)))
    plans = [TensorPlan(name, tuple(shape)) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", plans, RandomBlock("bf16", seed), "bf16")
    return folder


def main() -> None:
    """Write one checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Write a random MOSS-TTS in a released shape.")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--layers", type=int, help="of the backbone; all unless given")
    parser.add_argument("--width", type=int, help="of the backbone, for a smaller model")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_released(arguments.output, arguments.model, arguments.layers, arguments.width))


if __name__ == "__main__":
    main()

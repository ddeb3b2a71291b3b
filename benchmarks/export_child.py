"""One export in a process of its own, so that its peak memory can be read from outside.

In: `ours` or `plain`, a checkpoint, an output folder and a precision. Out: the exported files, and one JSON line with
the seconds that it took. `plain` is `torch.onnx.export(dynamo=True)` of the same module with its weights in memory.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Literal

PRECISIONS = ("fp32", "fp16")


def export_ours(checkpoint: Path, output: Path, precision: Literal["fp32", "fp16"]) -> None:
    """Both experts, both flavours, through voxedge."""
    from voxedge.export.config import ExportConfig
    from voxedge.export.systems import export_checkpoint

    export_checkpoint(checkpoint, output, ExportConfig(precision=precision))


def export_plain(checkpoint: Path, output: Path, precision: Literal["fp32", "fp16"]) -> None:
    """The speech expert's portable graph, the way that PyTorch's documentation shows it."""
    import torch

    module, config = _module(checkpoint / "speech_expert", precision)
    rows = (7, 1, config.kv_heads, config.head_dim)
    past = [torch.zeros(rows, dtype=module.form.dtype) for _ in range(2 * config.layers)]
    arguments = (torch.zeros(1, 5, dtype=torch.int32), [torch.zeros(1, dtype=torch.int32)], past)
    dynamic = ({1: torch.export.Dim("new")}, [None], [{0: torch.export.Dim("past")} for _ in past])
    output.mkdir(parents=True)
    torch.onnx.export(
        module,
        arguments,
        output / "speech_expert.onnx",
        dynamo=True,
        dynamic_shapes=dynamic,
        opset_version=20,
        external_data=True,
    )


def _module(folder: Path, precision: Literal["fp32", "fp16"]) -> tuple[Any, Any]:
    """The decoder of `voxedge.export` with its weights, read one by one into its own storage; and its sizes."""
    import torch

    from voxedge.export.checkpoint.qwen3 import load_qwen3
    from voxedge.export.modules.decoder_lm import DecoderForm, DecoderLm

    config = load_qwen3(folder).config
    dtype = torch.float16 if precision == "fp16" else torch.float32
    form = DecoderForm(head_rows=config.vocab_size, max_context=4096, dtype=dtype)
    module = DecoderLm(config, form, "portable").eval()
    with torch.no_grad():
        _load(module, folder, tied=config.tied)
    return module, config


def _load(module: Any, folder: Path, *, tied: bool) -> None:  # noqa: ANN401 - as above
    import torch
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    for name, parameter in module.named_parameters():
        if name.startswith("rotary."):
            continue  # tables, whose values do not matter here
        rows = []
        for key in _checkpoint_keys(name, tied=tied):
            with safe_open(places[key], framework="pt") as file:
                rows.append(file.get_tensor(key))
        value = torch.cat(rows)
        parameter.copy_(value.T if name.endswith(("_proj.weight", "head.weight")) else value)


def _checkpoint_keys(name: str, *, tied: bool) -> list[str]:
    from voxedge.export.modules.decoder_lm import JOINT

    if name == "head.weight":
        return ["model.embed_tokens.weight" if tied else "lm_head.weight"]
    key = "model." + name.replace("embed.", "embed_tokens.").replace(".attn.", ".self_attn.")
    joint = key.split(".")[-2]
    return [key.replace(joint, part) for part in JOINT.get(joint, (joint,))]


def main() -> None:
    """Run one export from the command line."""
    parser = argparse.ArgumentParser(description="Export once; used by export_memory.py.")
    parser.add_argument("method", choices=("ours", "plain"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    arguments = parser.parse_args()
    export = export_ours if arguments.method == "ours" else export_plain
    started = time.perf_counter()
    export(arguments.checkpoint, arguments.output, arguments.precision)
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()

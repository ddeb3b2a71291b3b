"""onnxruntime-genai as a peer: a model of its own builder, run by its own generator.

In: the speech expert's folder. Options: `precision` (`fp32`, `int4`, `int8`), `build` (the builder's extra options),
`int8_kv` (an INT8 cache with one scale per tensor; the builder wants the scales from outside).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Handle, LmEngine, Logits, Reply, Request, serve_engine


def _folder(request: Request) -> Path:
    options = request["options"]
    marks = "-".join(f"{key}-{value}" for key, value in sorted(options.get("build", {}).items()))
    cache = "-kv8" if options.get("int8_kv") else ""
    return Path(request["work"]) / f"genai-{options['precision']}-{marks or 'plain'}{cache}"


def _cache_options(request: Request, folder: Path) -> dict[str, str]:
    """Scales for an INT8 cache of five standard deviations, known in advance because the weights are N(0, 0.02).

    Keys leave a norm with gain one, so their standard deviation is 1; values are a product of a normed row of `hidden`
    elements with the weights, so theirs is 0.02 * sqrt(hidden).
    """
    if not request["options"].get("int8_kv"):
        return {}
    config = json.loads((Path(request["checkpoint"]) / "speech_expert" / "config.json").read_text())
    layers, value_deviation = int(config["num_hidden_layers"]), 0.02 * float(config["hidden_size"]) ** 0.5
    scales = {"k_scales": [5 / 127] * layers, "v_scales": [5 * value_deviation / 127] * layers}
    path = folder.with_name(folder.name + ".scales.json")
    path.write_text(json.dumps({"scales": scales}))
    return {"kv_cache_quant_scheme": "int8_per_tensor", "kv_cache_scale_file": str(path)}


def _huggingface_folder(request: Request) -> Path:
    """The speech expert with a tokenizer beside it: the builder insists on one, the benchmark never uses it."""
    checkpoint, folder = Path(request["checkpoint"]), Path(request["work"]) / "genai-source"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*(checkpoint / "speech_expert").iterdir(), *(checkpoint / "text_expert").glob("tokenizer*")]
    for source in sources:
        target = folder / source.name
        if not target.exists():
            target.symlink_to(source.resolve())
    return folder


def prepare(request: Request) -> Reply:
    """Build the ONNX model with onnxruntime-genai's model builder, once."""
    import onnxruntime_genai  # type: ignore[import-not-found]  # noqa: F401
    import transformers  # type: ignore[import-not-found]  # noqa: F401

    folder, options = _folder(request), request["options"]
    if (folder / "genai_config.json").is_file():
        return {"path": str(folder)}
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(_huggingface_folder(request))]
    command += ["-o", str(partial), "-p", options["precision"], "-e", "cpu", "-c", str(folder) + ".cache"]
    extra = {**options.get("build", {}), **_cache_options(request, folder)}
    if extra:
        command += ["--extra_options", *(f"{key}={value}" for key, value in extra.items())]
    subprocess.run(command, check=True, stdout=sys.stderr)
    partial.rename(folder)
    return {"path": str(folder)}


class GenAi(LmEngine):
    """onnxruntime-genai's generator, greedy."""

    def __init__(self, request: Request) -> None:
        import onnxruntime_genai as og

        self._og = og
        folder = _folder(request)
        model_config = json.loads((folder / "genai_config.json").read_text())["model"]
        self.rows = int(model_config["vocab_size"])
        config = og.Config(str(folder))
        threads = {"session_options": {"intra_op_num_threads": int(request["threads"])}}
        config.overlay(json.dumps({"model": {"decoder": threads}}))
        self._model: Any = og.Model(config)
        self._capacity = int(request["capacity"])
        self._length = 0
        self._generator: Any = self._new_generator()

    def _new_generator(self) -> Handle:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._capacity, do_sample=False)
        return self._og.Generator(self._model, parameters)

    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def rewind(self, length: int) -> None:
        """Rewind the generator; its cache keeps the first `length` tokens."""
        if length == 0:
            self._generator = self._new_generator()
        elif length < self._length:
            self._generator.rewind_to(length)
        self._length = length

    def prefill(self, ids: list[int]) -> Logits:
        """Append ids, which runs the model at once."""
        self._generator.append_tokens(np.array([ids], np.int32))
        self._length += len(ids)
        logits: Logits = np.asarray(self._generator.get_logits(), np.float32).reshape(-1, self.rows)[-1]
        return logits

    def step(self, token: int) -> Logits:
        """Append one id."""
        return self.prefill([token])

    def versions(self) -> dict[str, str]:
        """Version of onnxruntime-genai."""
        return {"onnxruntime-genai": self._og.__version__}


if __name__ == "__main__":
    serve_engine(GenAi, prepare)

"""Hugging Face transformers as a peer: the model's own forward in eager PyTorch, without `generate()` around it.

In: the speech expert's folder, loaded as it is. Options: `dtype` (`float32`, `bfloat16`) and `attention` (`sdpa`,
`eager`). The cache is transformers' DynamicCache; forward is called directly, without `generate()`'s bookkeeping, in
its favour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from protocol import LmEngine, Logits, Reply, Request, serve_engine


def prepare(_request: Request) -> Reply:
    """Nothing to convert; tells whether the libraries are there."""
    import torch  # noqa: F401
    import transformers  # type: ignore[import-not-found]  # noqa: F401

    return {}


class Transformers(LmEngine):
    """Qwen3ForCausalLM in eager mode."""

    def __init__(self, request: Request) -> None:
        import torch
        import transformers

        torch.set_num_threads(int(request["threads"]))
        torch.set_num_interop_threads(1)
        self._torch, self._transformers = torch, transformers
        options = request["options"]
        folder = Path(request["checkpoint"]) / "speech_expert"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, options["dtype"]), attn_implementation=options.get("attention", "sdpa")
        ).eval()
        self.rows = int(self._model.config.vocab_size)
        self._cache: Any = transformers.DynamicCache(config=self._model.config)

    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._cache.get_seq_length())

    def rewind(self, length: int) -> None:
        """Crop the cache."""
        if length == 0:
            self._cache = self._transformers.DynamicCache(config=self._model.config)
        elif length < self.length():
            self._cache.crop(length - self.length())  # negative: how many tokens to remove

    def prefill(self, ids: list[int]) -> Logits:
        """One forward over all ids; the head runs on the last position only."""
        torch = self._torch
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
            logits: Logits = output.logits[0, -1].float().numpy()
        return logits.astype(np.float32, copy=False)

    def step(self, token: int) -> Logits:
        """One forward over one id."""
        return self.prefill([token])

    def versions(self) -> dict[str, str]:
        """Versions of torch and transformers."""
        return {"torch": self._torch.__version__, "transformers": self._transformers.__version__}


if __name__ == "__main__":
    serve_engine(Transformers, prepare)

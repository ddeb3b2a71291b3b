"""Route tokens to experts: one decoder for each modality over one cache.

In: runs of token ids, each of one modality. Out: logits after the last token. Because routing by modality is static and
attention is causal, running each maximal run through its own expert's ordinary graph gives exactly what the dense
mixture gives; positions run on over all runs. Does not sample and does not know prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from voxedge.engines.backend import Engine
from voxedge.engines.errors import BundleError, ConfigError
from voxedge.runtime.decoder import CacheShape, Decoder, KvCache, Logits
from voxedge.runtime.tokenizer import Run

TEXT, SPEECH = "text_expert", "speech_expert"


class RoutedDecoder:
    """Experts that share one cache, loaded when they are first called."""

    def __init__(self, load: Callable[[str], Engine]) -> None:
        """Prepare.

        Args:
            load: Gives the engine of a graph by name.
        """
        self._load = load
        self._experts: dict[str, Decoder] = {}
        self._cache: KvCache | None = None

    def expert(self, name: str) -> Decoder:
        """The decoder of an expert."""
        if name not in self._experts:
            self._experts[name] = Decoder(self._load(name))
        return self._experts[name]

    def drop(self, name: str) -> None:
        """Let go of an expert's bindings, so that its engine can be released."""
        self._experts.pop(name, None)

    def start(self, positions: int) -> KvCache:
        """An empty cache for a sequence of up to `positions` tokens; the last one is used again where it is enough.

        Raises:
            InputError: The graphs cannot address so many positions.
            BundleError: The experts do not fit one cache.
        """
        first = self.expert(TEXT)
        if self._cache is None or self._cache.capacity < positions:
            self._cache = KvCache(first.engine, first.cache_shape, positions)
        self._cache.clear()
        return self._cache

    def prefill(self, runs: Iterable[Run], cache: KvCache) -> Logits:
        """Append runs to the cache.

        Returns:
            Logits [C] after the last token, valid until the next call.

        Raises:
            ConfigError: There is nothing to append.
        """
        logits: Logits | None = None
        for run in runs:
            decoder = self.expert(SPEECH if run.is_speech else TEXT)
            if decoder.cache_shape != cache.shape:
                raise BundleError(f"expected experts of one cache, found {_differences(decoder.cache_shape, cache)}")
            logits = decoder.forward(np.asarray(run.ids, np.int32), cache)
        if logits is None:
            raise ConfigError("expected at least one run of tokens, found none")
        return logits

    def step(self, token: int, cache: KvCache) -> Logits:
        """Append one speech token; gives the logits after it, valid until the next call."""
        return self.expert(SPEECH).forward(np.array([token], np.int32), cache)


def _differences(shape: CacheShape, cache: KvCache) -> Mapping[str, object]:
    names = CacheShape.__slots__
    pairs = {name: (getattr(shape, name), getattr(cache.shape, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

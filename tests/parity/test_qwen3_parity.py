"""Qwen3 through the exported graphs: every array of the recordings, both flavours, whole and step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decoding import Caches, run
from golden_graphs import Exported, read

from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.qwen3 import LanguageModel, load_qwen3
from voxedge.export.config import ExportConfig
from voxedge.export.decoder_graphs import DecoderOptions, decoder_plan
from voxedge.runtime.decoder import Decoder, KvCache

# The recordings' own cached and whole runs differ by 1.5e-5; another summation order in another library adds as much
# per layer on logits of magnitude 10. A wrong term anywhere moves logits by more than 0.1.
LOGITS = 2e-3
CACHE = 1e-4


def plan(model: LanguageModel, **options: object) -> GraphPlan:
    return decoder_plan("lm", model, DecoderOptions(head=model.tensors["lm_head.weight"], **options), ExportConfig())


@pytest.fixture(params=["qwen3_lm", "qwen3_lm_untied"])
def case(request: pytest.FixtureRequest, golden: Callable[[str], Path]) -> Path:
    return golden(request.param)


def test_whole_prompts(case: Path, export: Callable[[GraphPlan], Exported]) -> None:
    arrays, model = read(case), load_qwen3(case / "checkpoint")
    exported = export(plan(model, logits="all", probes=("hidden",)))
    prompts = sorted(name.removeprefix("ids") for name in arrays if name.startswith("ids"))
    for flavour in exported.specs:
        engine = exported.engine(flavour)
        for prompt in prompts:
            caches = Caches()
            results = run(engine, arrays[f"ids{prompt}"][0], caches)
            np.testing.assert_allclose(results["logits"], arrays[f"logits{prompt}"], atol=LOGITS, rtol=0)
            np.testing.assert_allclose(results["hidden"], arrays[f"hidden{prompt}"], atol=LOGITS, rtol=0)
        # The recorded cache is the last prompt's.
        np.testing.assert_allclose(caches.stacked("key"), arrays["k_cache"], atol=CACHE, rtol=0)
        np.testing.assert_allclose(caches.stacked("value"), arrays["v_cache"], atol=CACHE, rtol=0)


def test_greedy_decoding_over_a_cache_in_place(case: Path, export: Callable[[GraphPlan], Exported]) -> None:
    arrays, model = read(case), load_qwen3(case / "checkpoint")
    exported = export(plan(model))
    prompts = sorted(name.removeprefix("ids") for name in arrays if name.startswith("ids"))
    for flavour in exported.specs:
        decoder = Decoder(exported.engine(flavour))
        for prompt in prompts:
            ids, expected = arrays[f"ids{prompt}"][0], arrays[f"greedy{prompt}"]
            cache = KvCache(decoder.engine, decoder.cache_shape, len(ids) + len(expected))
            logits = decoder.forward(ids.astype(np.int32), cache)
            for step, token in enumerate(expected):
                np.testing.assert_allclose(logits, arrays[f"greedy_logits{prompt}"][step], atol=LOGITS, rtol=0)
                assert int(logits.argmax()) == token
                logits = decoder.forward(np.array([token], np.int32), cache)


def test_prefill_in_parts_equals_prefill_at_once(case: Path, export: Callable[[GraphPlan], Exported]) -> None:
    arrays, model = read(case), load_qwen3(case / "checkpoint")
    exported = export(plan(model))
    ids = max((arrays[name][0] for name in arrays if name.startswith("ids")), key=len).astype(np.int32)
    for flavour in exported.specs:
        decoder = Decoder(exported.engine(flavour))
        whole = decoder.forward(ids, KvCache(decoder.engine, decoder.cache_shape, len(ids))).copy()
        decoder.max_prefill = 5
        parts = decoder.forward(ids, KvCache(decoder.engine, decoder.cache_shape, len(ids)))
        np.testing.assert_allclose(parts, whole, atol=LOGITS, rtol=0)

"""The routed language model through the exported graphs: dense oracle, segments over one cache, greedy generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decoding import Caches, run
from golden_graphs import Exported, read

from voxedge.engines.backend import Engine
from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.moe_tts import MoeTtsCheckpoint, load_moe_tts
from voxedge.export.checkpoint.rearrange import Stacked
from voxedge.export.config import ExportConfig
from voxedge.export.systems.moe_tts import expert_plans, settings, speech_head
from voxedge.runtime.noise import NoiseStream
from voxedge.runtime.prompt import Turn, fill_template, render_prompt
from voxedge.runtime.routing import SPEECH, TEXT, RoutedDecoder
from voxedge.runtime.sampling import Sampler, SamplingConfig
from voxedge.runtime.tokenizer import ChatTokenizer, Run

# Segments against the dense oracle differ by up to 2.3e-5 in the recordings themselves (logits of magnitude 10); tokens
# are decided by margins of at least 0.02. A token routed to the wrong expert moves the hidden state by more than 3.
LOGITS = 2e-3
CACHE = 1e-4
LAYOUTS = ("checkpoint", "checkpoint_moe_gen", "checkpoint_moe_prefix")
CONFIG = ExportConfig()

Export = Callable[[GraphPlan], Exported]


@pytest.fixture(params=["moetts_lm", "moetts_lm_b"])
def case(request: pytest.FixtureRequest, golden: Callable[[str], Path]) -> Path:
    return golden(request.param)


@pytest.fixture(params=LAYOUTS)
def checkpoint(request: pytest.FixtureRequest, case: Path) -> MoeTtsCheckpoint:
    if not (case / request.param).is_dir():
        pytest.skip(f"{case.name} has no {request.param}")
    return load_moe_tts(case / request.param)


def runs_of(ids: np.ndarray, is_speech: np.ndarray) -> list[Run]:
    """Maximal runs of one modality."""
    edges = np.flatnonzero(np.diff(is_speech.astype(int))) + 1
    bounds = zip([0, *edges], [*edges, len(ids)], strict=True)
    return [Run(bool(is_speech[start]), tuple(int(i) for i in ids[start:stop])) for start, stop in bounds]


def probes(checkpoint: MoeTtsCheckpoint, export: Export) -> dict[bool, Exported]:
    """Both experts with all logits of both heads, before and after the final norm."""
    head = Stacked((speech_head(checkpoint), checkpoint.text.tensors["lm_head.weight"]))
    text, speech = expert_plans(checkpoint, CONFIG, head=head, logits="all", probes=("prenorm", "hidden"))
    return {False: export(text), True: export(speech)}


def test_prompt(case: Path, checkpoint: MoeTtsCheckpoint) -> None:
    arrays = read(case)
    tokenizer = ChatTokenizer.from_file(checkpoint.tokenizer_file)
    rendered = str(arrays["prompt_text"])
    user = rendered.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    description, text = user.split("\n", 1)
    filled = fill_template(checkpoint.prompt.user_template, description=description, text=text)
    segments = render_prompt(checkpoint.prompt.system or None, [Turn("user", filled)])
    assert "".join(segment.text for segment in segments) == rendered
    assert tokenizer.encode(segments) == arrays["prompt_ids"].tolist()


def test_mixed_sequences(case: Path, checkpoint: MoeTtsCheckpoint, export: Export) -> None:
    arrays, experts = read(case), probes(checkpoint, export)
    columns = speech_head(checkpoint).shape[0]
    rows = checkpoint.speech_vocabulary.num_rows
    for flavour in experts[False].specs:
        engines = {modality: exported.engine(flavour) for modality, exported in experts.items()}
        for name in sorted(key.removesuffix("_is_speech") for key in arrays if key.startswith("seq") and "_is_" in key):
            results, caches = run_segments(engines, runs_of(arrays[f"{name}_ids"], arrays[f"{name}_is_speech"]))
            logits = results["logits"]
            found = {
                "prenorm": results["prenorm"],
                "hidden": results["hidden"],
                "logits_speech": logits[:, :rows],
                # A single file of the add_tokens kind overwrites padding rows of the text vocabulary.
                "logits_text": logits[:, columns:],
            }
            for key, values in found.items():
                expected = arrays[f"{name}_{key}"][:, : values.shape[1]]
                np.testing.assert_allclose(values, expected, atol=LOGITS, rtol=0, err_msg=f"{name}_{key}")
            for leaf, key in (("key", f"{name}_k_cache"), ("value", f"{name}_v_cache")):
                if key in arrays:
                    np.testing.assert_allclose(caches.stacked(leaf), arrays[key], atol=CACHE, rtol=0)


def run_segments(engines: dict[bool, Engine], runs: list[Run]) -> tuple[dict[str, np.ndarray], Caches]:
    """Each run through its expert over one cache; outputs [T, ...] of all positions."""
    caches, parts = Caches(), []
    for segment in runs:
        parts.append(run(engines[segment.is_speech], np.array(segment.ids), caches))
    return {key: np.concatenate([part[key][0] for part in parts]) for key in parts[0]}, caches


def test_generation(case: Path, checkpoint: MoeTtsCheckpoint, export: Export) -> None:
    arrays = read(case)
    text, speech = (export(plan) for plan in expert_plans(checkpoint, CONFIG))
    known = settings(checkpoint, CONFIG).speech
    names = sorted(key.removesuffix("_tokens") for key in arrays if key.startswith("gen") and key.endswith("_tokens"))
    assert names
    for flavour in text.specs:
        engines = {TEXT: text.engine(flavour), SPEECH: speech.engine(flavour)}
        model = RoutedDecoder(engines.__getitem__)
        for name in names:
            maximum, minimum = (int(value) for value in arrays[f"{name}_max_new_min_new"])
            config = SamplingConfig(temperature=0.0, min_tokens=minimum, max_tokens=maximum)
            sampler = Sampler(config, known.eos_column, slice(0, known.num_tokens), NoiseStream(0, "tokens"))
            prefix = runs_of(arrays[f"{name}_prefix_ids"], arrays[f"{name}_prefix_is_speech"])
            cache = model.start(len(arrays[f"{name}_prefix_ids"]) + maximum)
            logits, drawn = model.prefill(prefix, cache), []
            for expected in arrays[f"{name}_logits"]:
                np.testing.assert_allclose(logits, expected, atol=LOGITS, rtol=0, err_msg=name)
                token = sampler.next(logits)
                if token in sampler.eos_ids or sampler.finished:
                    drawn += [] if token in sampler.eos_ids else [token]
                    break
                drawn.append(token)
                logits = model.step(token, cache)
            assert drawn == arrays[f"{name}_tokens"].tolist(), name

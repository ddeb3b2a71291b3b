"""MOSS-TTS without its graphs: prompts, the text normaliser, the delay pattern, segments, and the sampling rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from moss import CASES, Case, Recorded

from voxedge.export.modules.draw import DrawRules, draw
from voxedge.runtime.sampling import Sampler, SamplingConfig
from voxedge.runtime.systems.moss_frames import FrameCollector
from voxedge.runtime.systems.moss_grid import delayed, segments, undelayed
from voxedge.runtime.systems.moss_prompt import PromptBuilder
from voxedge.runtime.systems.moss_text import normalise_text
from voxedge.runtime.tokenizer import ChatTokenizer


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden: Callable[[str], Path]) -> Case:
    return Case.open(golden(request.param))


def test_prompts(case: Case) -> None:
    tokenizer = ChatTokenizer.from_file(case.checkpoint.tokenizer_file, ())
    builder = PromptBuilder(case.settings, tokenizer)
    for name in case.notes["prompts"]:
        prompt, entry = case.prompt(name)
        mode = "whole" if entry["mode"] == "computing_loss" else "speak"
        grid = builder.grid(prompt, mode, whole_messages=entry.get("via_chat_template"))
        np.testing.assert_array_equal(grid, case.grid(name), err_msg=name)


def test_normalised_text(case: Case) -> None:
    if case.settings.kind != "delay":
        pytest.skip("the delay model's own")
    pairs = json.loads((case.folder / "text_norm.json").read_text(encoding="utf-8"))
    assert [normalise_text(pair["in"]) for pair in pairs] == [pair["out"] for pair in pairs]


def test_delay_pattern(case: Case) -> None:
    if "delay_in" not in case.arrays:
        pytest.skip("the delay model's own")
    shifted = delayed(case.arrays["delay_in"].astype(np.int32), case.settings.pad_code)
    np.testing.assert_array_equal(shifted, case.arrays["delay_out"])
    np.testing.assert_array_equal(undelayed(shifted), case.arrays["undelay_out"])


def test_segments(case: Case) -> None:
    """What the references send to the codec, the frame beyond the end included."""
    for key, name in case.traces("greedy"):
        start = int(case.arrays[f"{key}_start_length"])
        rows = case.arrays[f"{key}_assistant_ids"].astype(np.int32)
        if case.settings.kind == "delay":
            found = segments(undelayed(rows[:, 1:]), case.settings.pad_code)
            expected = [case.arrays[each] for each in names(case, f"{key}_segment")]
            assert len(found) == len(expected), key
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=key)
        else:
            [found] = segments(rows[:, 1:], case.settings.pad_code)
            np.testing.assert_array_equal(found, case.arrays[f"{key}_decoder_codes"], err_msg=key)
        assert_collected(case, name, rows[start + (case.settings.kind != "delay") :], found)


def names(case: Case, prefix: str) -> list[str]:
    return sorted(name for name in case.arrays if name.startswith(prefix))


def assert_collected(case: Case, name: str, new: np.ndarray, whole: np.ndarray | list[np.ndarray]) -> None:
    """Frame by frame the same, without the prefix and without what lies beyond the end."""
    prompt, prefix = case.grid(name), case.prompt(name)[0].prefix
    collector, length = FrameCollector(case.settings), 0 if prefix is None else len(prefix)
    for _ in collector.start(prompt, length) if length else ():
        pass
    for row in new:
        for _ in collector.push(row.astype(np.int32)):
            pass
    if case.settings.kind == "delay":
        expected = np.concatenate([segment[:-1] for segment in whole])[length:]
    else:
        expected = whole[length : len(whole) - (case.settings.kind == "local")]
    np.testing.assert_array_equal(collector.spoken(), expected, err_msg=name)


def unit_cases(case: Case) -> Iterator[tuple[SamplingConfig, np.ndarray, np.ndarray, np.ndarray]]:
    """Rules, logits, earlier ids of each row, and the probabilities that follow."""
    for entry in case.notes["unit_sample_cases"]:
        prefix = f"unit_sample{entry['case']}"
        logits, previous = case.arrays[f"{prefix}_logits"], case.arrays[f"{prefix}_prev"]
        if previous.ndim == 3:  # the delay model penalises all of these channels for each other's ids
            previous = np.broadcast_to(previous.reshape(1, -1), (len(logits), previous.size))
        size = min(entry["top_k"], logits.shape[1])
        config = SamplingConfig(
            entry.get("temperature", 1.0),
            top_k=size,
            top_p=entry["top_p"],
            repetition_penalty=entry["repetition_penalty"],
        )
        yield config, logits, previous, case.arrays[f"{prefix}_probs"]


def within(probabilities: np.ndarray) -> Iterator[tuple[int, float]]:
    """Ids that may be drawn, and numbers near both ends and in the middle of what draws them."""
    ends = np.cumsum(probabilities.astype(np.float64))
    for token in np.flatnonzero(probabilities > 1e-5):
        for place in (0.01, 0.5, 0.99):
            yield int(token), float(ends[token] - (1.0 - place) * probabilities[token])


def test_sampling_rules_of_the_runtime(case: Case) -> None:
    for config, logits, previous, expected in unit_cases(case):
        for row, probabilities in enumerate(expected):
            for token, number in within(probabilities):
                keep = np.isfinite(logits[row])
                sampler = Sampler(config, None, keep, Recorded([number]), "id")
                sampler.observe(previous[row])
                assert sampler.next(np.where(keep, logits[row], 0.0).astype(np.float32)) == token


def test_sampling_rules_of_the_graph(case: Case) -> None:
    for config, logits, previous, expected in unit_cases(case):
        size = logits.shape[1]
        limits = (config.temperature, config.top_p if config.top_p < 1.0 else 2.0, config.top_k or size)
        rules = DrawRules(*(torch.tensor([limit]) for limit in limits))
        for row, probabilities in enumerate(expected):
            penalties = np.ones(size, np.float32)
            penalties[previous[row][previous[row] < size]] = config.repetition_penalty
            scores = np.where(np.isfinite(logits[row]), logits[row], -1e30).astype(np.float32)
            for token, number in within(probabilities):
                uniform = torch.tensor([[number]], dtype=torch.float32)
                drawn = draw(torch.tensor(scores)[None], torch.tensor(penalties)[None], uniform, rules)
                assert int(drawn) == token

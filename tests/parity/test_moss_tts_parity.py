"""MOSS-TTS through the exported graphs: embeddings, states, logits, and every recorded trace, greedy and sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_graphs import Exported
from moss import CASES, CONFIG, GREEDY, Case, Recorded

from voxedge.export.assemble import GraphPlan
from voxedge.export.checkpoint.qwen3 import LanguageModel
from voxedge.export.decoder_graphs import DecoderOptions, decoder_plan
from voxedge.runtime.systems.moss_grid import left_padded
from voxedge.runtime.systems.moss_model import MossModel
from voxedge.runtime.systems.moss_rows import RowRules, Rows

# The recordings' own tolerance for another library's summation order, of the largest value of an array. Tokens are
# decided by margins of at least 0.01, and a wrong term moves a logit by more than 0.1.
RELATIVE = 2e-4
HOT = 50.0


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, golden: Callable[[str], Path], exported: Callable[..., Path]) -> Case:
    return Case.open(golden(request.param), exported(request.param, "fp32"))


def assert_near(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    limit = RELATIVE * max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, atol=limit, rtol=0, err_msg=name)


def sequences(case: Case) -> list[tuple[int, np.ndarray]]:
    """Rows of the recorded batch without their padding."""
    arrays, mask = case.arrays, case.arrays["full_attention_mask"]
    return [(row, arrays["full_input_ids"][row][mask[row]].astype(np.int32)) for row in range(len(mask))]


def recorded(case: Case, name: str, row: int) -> np.ndarray:
    """A recorded array of one sequence at its own positions; v1's end a row earlier than its ids."""
    values = case.arrays[name][row]
    return values[case.arrays["full_attention_mask"][row][: len(values)]]


def test_embeddings(case: Case) -> None:
    model = case.model("portable")
    for channels, name in ((None, "full_inputs_embeds"), (2, "full_inputs_embeds_nvq2")):
        if name in case.arrays:
            model.start(1, channels)
            for row, grid in sequences(case):
                assert_near(model.embed(grid), recorded(case, name, row), name)


def test_first_layer(case: Case, export: Callable[[GraphPlan], Exported]) -> None:
    whole = case.checkpoint.backbone
    names = [name for name in whole.tensors if name.startswith(("layers.0.", "norm."))]
    first = LanguageModel(replace(whole.config, layers=1), {name: whole.tensors[name] for name in names})
    options = DecoderOptions(embeds=True, state=True, logits="all", probes=("prenorm",), flavours=("portable",))
    engine, model = export(decoder_plan("first", first, options, CONFIG)).engine(), case.model("portable")
    for row, grid in sequences(case):
        given = {"embeds": model.embed(grid)[None]}
        caches = {tensor.name: np.zeros(tensor.sizes({"past": 0, "batch": 1}), np.float32) for tensor in past(engine)}
        found = engine.run({**given, **caches})["prenorm"][0]
        expected = recorded(case, "full_layer1_out", row)
        assert_near(found[: len(expected)], expected, "full_layer1_out")


def past(engine: object) -> list:
    return [tensor for tensor in engine.spec.inputs if tensor.name.startswith("past.")]


def test_states_and_logits_row_by_row(case: Case) -> None:
    names = {"text": "full_logits_text", "audio": "full_logits_audio"}
    for flavour in case.flavours:
        model = case.model(flavour)
        for row, grid in sequences(case):
            hidden = recorded(case, "full_hidden", row)
            states, texts, audios = step_through(model, grid[: len(hidden)], case.settings.kind == "delay")
            assert_near(states, hidden, "full_hidden")
            if case.settings.kind == "delay":
                assert_near(texts, recorded(case, names["text"], row), names["text"])
                expected = recorded(case, names["audio"], row)
                assert_near(audios[:, 2:].reshape(len(states), -1), flat(expected, case.settings.codebooks), "audio")
                slots = [case.settings.ids.gen_slot, case.settings.ids.delay_slot]
                np.testing.assert_allclose(audios[:, :2], texts[:, slots], atol=1e-4)  # the same rows of one head


def flat(logits: np.ndarray, codebooks: tuple[int, ...]) -> np.ndarray:
    """Logits [T, n, A + 1] without the pad column, one channel behind the other."""
    return np.concatenate([logits[:, channel, :size] for channel, size in enumerate(codebooks)], -1)


def step_through(model: MossModel, grid: np.ndarray, heads: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States [T, d], text logits [T, V] and audio logits [T, C] of rows run one at a time."""
    model.start(len(grid))
    states, texts, audios = [], [], []
    for embedding in model.embed(grid):
        logits = model.append(embedding[None])
        states.append(model.state.copy())
        if heads:
            audios.append(logits.copy())
            texts.append(model.text_logits())
    return np.array(states), np.array(texts), np.array(audios)


def test_prefill_equals_steps(case: Case) -> None:
    model, grid = case.model("portable"), case.grid("gen")
    stepped, _, _ = step_through(model, grid, heads=False)
    model.start(len(grid))
    model.append(model.embed(grid))
    assert_near(model.state, stepped[-1], "prefill")


def test_greedy_traces(case: Case) -> None:
    for flavour in case.flavours:
        model = case.model(flavour)
        traces = list(case.traces("greedy"))
        assert len(traces) >= 4
        for key, name in traces:
            assert_trace(case, model, key, name, RowRules(GREEDY, GREEDY), Recorded())


def test_greedy_traces_that_are_cut_or_penalised(case: Case) -> None:
    model = case.model("portable")
    penalised = replace(GREEDY, repetition_penalty=1.7)
    rules = {
        ("greedy_truncated", "clone" if case.settings.kind == "local" else "gen"): RowRules(GREEDY, GREEDY),
        ("greedy_reppen_cont", "cont"): RowRules(GREEDY, penalised),
        ("greedy_clone_nvq1", "clone"): RowRules(GREEDY, GREEDY, channels=1),
        ("greedy_clone_nvq2", "clone"): RowRules(GREEDY, GREEDY, channels=2),
    }
    for (key, name), rule in rules.items():
        if f"{key}_assistant_ids" in case.arrays:
            limited = replace(rule, max_rows=len(case.expected_rows(key)))
            assert_trace(case, model, key, name, limited, Recorded())


def test_sampled_traces_with_recorded_numbers(case: Case) -> None:
    model = case.model(case.flavours[-1])
    for setting in case.notes["sampled_kwargs"]:
        text, audio = case.sampling(setting)
        for key, name in case.traces(f"sampled_{setting}"):
            numbers = Recorded([float(number) for number in case.arrays[f"{key}_uniforms"]])
            rows = len(case.expected_rows(key))
            # v1.5 draws the codes of a frame in the same call as the decision that it will not be spoken.
            stops = case.settings.kind == "local_v15" and len(numbers.numbers) > rows * (1 + case.settings.channels)
            rules = RowRules(text, audio, max_rows=rows + stops)
            assert_trace(case, model, key, name, rules, numbers)
            assert numbers.used == len(numbers.numbers) + stops * case.settings.channels, key


def assert_trace(case: Case, model: MossModel, key: str, name: str, rules: RowRules, numbers: Recorded) -> None:
    """The rows are the recorded ones, and no others follow unless they were not asked for."""
    prompt, expected = case.grid(name), case.expected_rows(key)
    model.start(len(prompt) + len(expected) + 1, rules.channels)
    rows = Rows(model, rules, numbers)
    found = np.array(list(rows.after(prompt))).reshape(-1, prompt.shape[1])
    np.testing.assert_array_equal(found, expected, err_msg=key)
    assert rows.finish_reason == ("length" if len(found) == rules.max_rows and not_the_end(case, found) else "stop")


def not_the_end(case: Case, rows: np.ndarray) -> bool:
    ends = {"delay": case.settings.ids.im_end, "local": case.settings.ids.audio_end, "local_v15": -1}
    return bool(rows[-1, 0] != ends[case.settings.kind])


def test_logits_along_greedy_traces(case: Case) -> None:
    """What the heads say at every step, not only which token is the largest."""
    model, settings = case.model(case.flavours[-1]), case.settings
    for key, name in case.traces("greedy"):
        prompt = case.grid(name)
        model.start(len(prompt) + len(case.expected_rows(key)) + 1)
        seen = {"text": [], "gate": [], "audio": []}
        rows = Rows(model, RowRules(GREEDY, GREEDY), Recorded())
        for _ in rows.after(prompt):
            note(model, settings.kind, seen)
        if settings.kind == "local_v15" and rows.finish_reason == "stop":
            seen["gate"].append(model.frame.made["gate"][0].copy())
        for what, values in seen.items():
            if f"{key}_{what}_logits" in case.arrays and settings.kind != "delay":
                expected = case.arrays[f"{key}_{what}_logits"]
                found = np.array(values)
                if what == "audio":
                    expected, found = flat(expected, settings.codebooks), flat(found, settings.codebooks)
                assert_near(found, expected, f"{key}_{what}_logits")


def note(model: MossModel, kind: str, seen: dict[str, list[np.ndarray]]) -> None:
    """Logits of the frame that was just drawn."""
    if kind == "local":
        seen["text"].append(model.text_logits())
    if kind == "local_v15":
        seen["gate"].append(model.frame.made["gate"][0].copy())
    if kind != "delay":
        seen["audio"].append(model.frame.made["logits"][0].copy())


def test_delay_logits_along_greedy_traces(case: Case) -> None:
    if case.settings.kind != "delay":
        pytest.skip("the delay model's own")
    model = case.model(case.flavours[-1])
    for key, name in case.traces("greedy"):
        prompt, rows = case.grid(name), case.expected_rows(key).astype(np.int32)
        model.start(len(prompt) + len(rows))
        logits = model.append(model.embed(prompt))
        for step, row in enumerate(rows):
            assert_near(model.text_logits(), case.arrays[f"{key}_text_logits"][step], key)
            expected = case.arrays[f"{key}_audio_logits"][step][None]
            assert_near(logits[2:], flat(expected, case.settings.codebooks)[0], key)
            logits = model.append(model.embed(row[None]))


def test_teacher_forced_logits(case: Case) -> None:
    """Every position of the batch: the next row's codes are forced by numbers in the middle of their share."""
    audio_name = next((name for name in ("tf_logits_audio", "tf_audio_logits") if name in case.arrays), None)
    if audio_name is None:
        pytest.skip("the delay model has no depth")
    model, settings = case.model("portable"), case.settings
    for row, grid in sequences(case):
        expected = recorded(case, audio_name, row)
        states, _, _ = step_through(model, grid[: len(expected)], heads=False)
        for step, state in enumerate(states):
            codes = grid[step + 1, 1:]
            texts = model.embed_text(int(grid[step + 1, 0])) if settings.kind == "local" else None
            logits, spoken = forced(model, state, texts, codes, expected[step])
            for channel in range(spoken):
                size = settings.codebooks[channel]
                assert_near(logits[channel, :size], expected[step, channel, :size], f"{audio_name} {step} {channel}")
            if settings.kind == "local_v15":
                gate = recorded(case, "tf_gate_logits", row)[step]
                assert_near(model.frame.made["gate"][0], gate, "tf_gate_logits")


def forced(
    model: MossModel, state: np.ndarray, text: np.ndarray | None, codes: np.ndarray, expected: np.ndarray
) -> tuple[np.ndarray, int]:
    """Logits [n, A] behind the true codes, and for how many channels they are: a pad code cannot be drawn in v1."""
    sizes, step = model.settings.codebooks, model.frame
    padded = codes >= np.array(sizes)
    spoken = len(codes) if model.settings.kind == "local_v15" or not padded.any() else int(padded.argmax()) + 1
    step.draws(replace(GREEDY, temperature=HOT), Recorded())  # so hot that every code has a share of its own
    for channel, size in enumerate(sizes):
        code = min(int(codes[channel]), size - 1)
        weights = np.exp((expected[channel, :size].astype(np.float64) - expected[channel, :size].max()) / HOT)
        step.given["uniforms"][0, channel] = (weights[:code].sum() + weights[code] / 2) / weights.sum()
    step.given["state"][0] = state
    if text is not None:
        step.given["text"][0] = text
    step.run()
    drawn = step.made["codes"][0]
    assert (drawn == np.minimum(codes, np.array(sizes) - 1))[: max(spoken - 1, 0)].all()
    return step.made["logits"][0], spoken


def test_batches(case: Case) -> None:
    grids = [case.grid("gen"), case.grid("clone")]
    batch, mask = left_padded(grids, case.settings.ids.pad, case.settings.pad_code)
    np.testing.assert_array_equal(batch, case.arrays["prompt_batch_input_ids"])
    np.testing.assert_array_equal(mask, case.arrays["prompt_batch_attention_mask"])
    model, kind = case.model("portable"), case.settings.kind
    for row in range(2):
        prompt = batch[row][mask[row]]
        model.start(len(prompt) + 40)
        found = np.array(list(Rows(model, RowRules(GREEDY, GREEDY, max_rows=40), Recorded()).after(prompt)))
        expected = case.expected_rows(f"greedy_batch{row}")
        np.testing.assert_array_equal(found, expected[: len(found)])
        rest = expected[len(found) :]  # the reference goes on with padding until the longest row has ended
        filler = case.settings.ids.audio_end if kind == "local" else case.settings.ids.pad
        assert (rest[:, 0] == filler).all()
        assert (rest[:, 1:] == case.settings.pad_code).all()

"""The recipe of the demo voice: its lists, and all of it once, tiny."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.demo_voice import corpus, descriptions, dialogues, prompts, sentences  # noqa: E402
from examples.demo_voice.language_model import IGNORED  # noqa: E402
from examples.demo_voice.speech_tokenizer import CODES  # noqa: E402
from voxedge.engines.bundle import Bundle  # noqa: E402
from voxedge.export.config import ExportConfig  # noqa: E402
from voxedge.export.systems import export_checkpoint  # noqa: E402
from voxedge.runtime.synthesizer import Synthesizer  # noqa: E402
from voxedge.runtime.tokenizer import ChatTokenizer  # noqa: E402


def test_test_sentences_are_of_the_domain_and_all_different() -> None:
    texts = corpus.test_sentences()
    assert len({sentences.key(text) for text in texts}) == 100
    assert {word for text in texts for word in sentences.key(text).split()} <= set(sentences.NARROW_WORDS)


def test_no_training_sentence_is_a_test_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    test, other = "The letter arrived two days too late.", "Two letters arrived."
    said = iter([test, "the letter arrived, two days too late!", other])
    monkeypatch.setattr(sentences, "training_sentence", lambda rng: next(said))
    assert corpus.sentence(random.Random(1)) == other  # noqa: S311


def test_training_sentences_are_mostly_of_the_listed_words_and_not_too_long() -> None:
    rng = random.Random(5)  # noqa: S311
    texts = [sentences.training_sentence(rng) for _ in range(3000)]
    assert max(map(len, texts)) <= 90
    words = [word for text in texts for word in sentences.key(text).split()]
    unknown = sum(word not in sentences.WORDS for word in words)
    assert 0 < unknown < 0.1 * len(words)  # rare words, halves of contractions, plurals that a frame makes
    assert set(sentences.NARROW_WORDS) <= set(words)
    assert any(character.isdigit() for text in texts for character in text)


def test_a_description_says_what_is_not_neutral() -> None:
    rng = random.Random(6)  # noqa: S311
    for style in (descriptions.Style("rms", -1, 1), descriptions.Style("slt", 1, -1)):
        for _ in range(300):
            text = descriptions.describe(style, rng).lower()
            for what, level in (("speed", style.speed), ("pitch", style.pitch)):
                ways = (*descriptions.ADVERBS[what][level], *descriptions.ADJECTIVES[what][level])
                assert any(way in text for way in ways)


def test_no_description_is_a_test_description(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "deep male voice" in descriptions.held_out()
    said = iter(["deep male voice", "DEEP, male voice.", "some other man"])
    monkeypatch.setattr(descriptions, "_FORMS", (lambda style, rng: next(said),))
    monkeypatch.setattr(descriptions, "_SHARES", (1.0,))
    found = descriptions.describe(descriptions.Style("rms", -1, 0), random.Random(3))  # noqa: S311
    assert descriptions.wording(found) == "some other man"


def test_the_tokenizer_spells(tmp_path: Path) -> None:
    prompts.write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = ChatTokenizer.from_file(tmp_path / "tokenizer.json")
    assert len(tokenizer.encode_text(" hello")) == 6
    assert tokenizer.encode_text(" HELLO") == tokenizer.encode_text(" hello")
    assert len(tokenizer.encode_text("\u00e9")) == 2  # bytes, so nothing is unknown


def test_a_batch_predicts_the_true_tokens_and_the_end() -> None:
    device, speech = torch.device("cpu"), np.arange(10, dtype=np.int16)
    told = dialogues.Dialogues(3, 4, device)
    assert told.add([np.arange(5, dtype=np.uint16), np.zeros(400, np.uint16)], [speech, speech]) == 1  # one is too long
    assert told.choose(0, 0) == 0  # the only shape with utterances
    batch = told.batch(0)
    assert batch.text[0, -5:].tolist() == [0, 1, 2, 3, 4]
    assert batch.text_lengths.tolist() == [5] * 4
    assert batch.targets[0, :11].tolist() == [*range(10), CODES]
    assert set(batch.targets[0, 11:].tolist()) == {IGNORED}


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed: apt-get install flite")
def test_the_whole_recipe_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo_voice.build", str(tmp_path), "--smoke", "--threads", "1"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    weights = (tmp_path / "checkpoint" / "speech_expert" / "model.safetensors").read_bytes()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # all stages are finished
    assert again.returncode == 0, again.stderr
    assert "step" not in again.stdout
    assert (tmp_path / "checkpoint" / "speech_expert" / "model.safetensors").read_bytes() == weights
    bundle = export_checkpoint(tmp_path / "checkpoint", tmp_path / "voice", ExportConfig(max_context=256))
    assert Bundle.open(bundle.root, verify_hashes=True).manifest.words == sentences.WORDS
    with Synthesizer.from_pretrained(bundle.root, threads=1) as voice:
        assert voice.synthesize("Hello world.", seed=1).duration_s > 0.1

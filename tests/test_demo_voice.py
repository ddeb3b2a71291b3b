"""The recipe of the demo voice: its lists, and all of it once, tiny."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.demo_voice import corpus, descriptions, prompts, sentences  # noqa: E402
from voxedge.engines.bundle import Bundle  # noqa: E402
from voxedge.export.config import ExportConfig  # noqa: E402
from voxedge.export.systems import export_checkpoint  # noqa: E402
from voxedge.runtime.synthesizer import Synthesizer  # noqa: E402
from voxedge.runtime.tokenizer import ChatTokenizer  # noqa: E402


def test_test_sentences_are_of_the_domain_and_all_different() -> None:
    texts = corpus.test_sentences()
    assert len({sentences.key(text) for text in texts}) == 100
    assert {word for text in texts for word in sentences.key(text).split()} <= set(sentences.WORDS)


def test_sentences_use_the_listed_words_alone() -> None:
    rng = random.Random(5)  # noqa: S311
    used = {word for _ in range(3000) for word in sentences.key(sentences.training_sentence(rng)).split()}
    assert used == set(sentences.WORDS)


def test_a_description_says_what_is_not_neutral() -> None:
    rng = random.Random(6)  # noqa: S311
    slow = {*descriptions.SPEEDS[-1], *descriptions.SLOW_FAST[-1]}
    for _ in range(200):
        text = descriptions.describe(descriptions.Style("rms", -1, 1), rng).lower()
        assert any(way in text for way in slow)
        assert any(way in text for way in (*descriptions.PITCHES[1], *descriptions.LOW_HIGH[1]))


def test_every_word_is_one_token_wherever_it_stands(tmp_path: Path) -> None:
    rng = random.Random(7)  # noqa: S311
    texts = [prompts.user_text("", sentences.training_sentence(rng)) for _ in range(2000)]
    prompts.write_tokenizer(texts, tmp_path / "tokenizer.json")
    tokenizer = ChatTokenizer.from_file(tmp_path / "tokenizer.json")
    for word in sentences.WORDS:
        alone, after = tokenizer.encode_text(f" {word}"), tokenizer.encode_text(f" the {word.capitalize()}.")
        assert len(alone) == 1
        assert after[1:2] == alone


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

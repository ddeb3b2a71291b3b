"""Options that a system does not follow are refused by name, from Python and from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from voxedge.engines.errors import InputError
from voxedge.runtime.cli.main import main, make_parser
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.directions import Directions
from voxedge.runtime.options import FLAGS, FOLLOWED, follows
from voxedge.runtime.prompt import Turn
from voxedge.runtime.synthesizer import SYSTEMS, Request, Synthesizer

VALUES = {"--solver": "euler", "--language": "zh", "--cfg": "1", "--codec": "x", "--speech-tokens": "x"}
TYPED = sorted(flag for flag in FLAGS.values() if flag.startswith("--") and flag != "--said")


def test_every_system_and_every_option_of_a_request_has_an_entry() -> None:
    assert set(FOLLOWED) == set(SYSTEMS)
    assert set(FLAGS) == set().union(*FOLLOWED.values())
    options = {field.name for kind in (SynthesisConfig, Directions, Request) for field in dataclasses.fields(kind)}
    everybodys = {"sampling", "sentence_pause_s", "text", "description", "seed", "config", "directions"}
    assert options - everybodys == set(FLAGS) - {"codec"}


def test_every_flag_is_one_of_say() -> None:
    say = make_parser()._subparsers._group_actions[0].choices["say"]  # type: ignore[union-attr, index]
    known = {name for action in say._actions for name in action.option_strings}
    assert known >= {flag for flag in FLAGS.values() if flag.startswith("--")}


@pytest.mark.parametrize("flag", TYPED)
@pytest.mark.parametrize("case", ["moetts_e2e", "moss_local_v15"])
def test_a_flag_that_would_do_nothing(
    case: str, flag: str, exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with the value that the bundle has anyway: what was typed was meant."""
    bundle, [name] = exported(case, "fp32"), [name for name, known in FLAGS.items() if known == flag]
    tokens = tmp_path / "tokens.json"
    tokens.write_text("[1]")
    value = {**VALUES, "--speech-tokens": str(tokens)}.get(flag, "16")
    where = ["-f", str(tmp_path / "a.wav"), "--backend", "cpu", "--seed", "1", "--max-tokens", "2"]
    code = main(["say", str(bundle), "Hello.", *where, flag, value])
    said = capsys.readouterr().err
    system = Synthesizer.from_pretrained(bundle, backend="cpu").bundle.manifest.system
    refused = f"found {flag}, which would do nothing" in said
    assert refused != follows(system, name)
    if refused:
        assert code == 1
        assert not (tmp_path / "a.wav").exists()


def test_bench_refuses_them_too(exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(exported("moss_local_v15", "fp32")), "--steps", "4", "--backend", "cpu"]) == 1
    assert "found --steps, which would do nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("moss_local_v15", {"config": {"steps": 4}}),
        ("moss_local_v15", {"config": {"window_s": 2.0}}),
        ("moss_local_v15", {"speech_prompt": (1,)}),
        ("moss_local_v15", {"earlier": (Turn("user", "Hi."),)}),
        ("moetts_e2e", {"directions": Directions(language="zh")}),
        ("moetts_e2e", {"directions": Directions(frames=4)}),
    ],
)
def test_a_request_that_would_be_ignored(case: str, options: dict, exported: Callable[..., Path]) -> None:
    with Synthesizer.from_pretrained(exported(case, "fp32"), backend="cpu") as voice:
        given = dict(options)
        if "config" in given:
            given["config"] = dataclasses.replace(voice.default_config, **given["config"])
        for call in (voice.synthesize, voice.stream):
            with pytest.raises(InputError, match="which would do nothing"):
                list(call("Hello.", seed=1, **given))


def test_a_codec_for_a_voice_that_has_none(fp32_bundle: Path, codec_bundle: Path) -> None:
    with pytest.raises(InputError, match="found --codec, which would do nothing"):
        Synthesizer.from_pretrained(fp32_bundle, backend="cpu", codec=codec_bundle)


def test_a_codec_is_no_voice(codec_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", str(codec_bundle), "Hello.", "-f", str(tmp_path / "a.wav")]) == 1
    said = capsys.readouterr().err
    assert f"voxedge codec decode {codec_bundle} CODES SOUND" in said
    assert f"--codec {codec_bundle}" in said

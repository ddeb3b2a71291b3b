"""The flags that `say` and `bench` share, and what they mean to the runtime.

In: parsed arguments. Out: a `Synthesizer` and a `SynthesisConfig` in which a flag that was not given keeps the bundle's
own value. Does not speak.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.runtime.cli.common import UsageError, number, whole
from voxedge.runtime.cli.console import Console

if TYPE_CHECKING:
    from voxedge.runtime.synthesizer import SynthesisConfig, Synthesizer

BACKENDS = ("auto", "cpu", "cuda", "tensorrt", "tensorrt_rtx")
SOLVERS = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")
CUT = "the speech was cut at its longest length; raise --max-tokens or split the text"
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "min_tokens", "max_tokens")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add where and how the graphs run."""
    group = parser.add_argument_group("where it runs")
    group.add_argument("--backend", choices=BACKENDS, default="auto", help="only auto may fall back, and it says so")
    group.add_argument("--memory", choices=("auto", "resident", "staged"), default="auto", help="staged: one at a time")
    add_codec_flag(group)
    group.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads")
    group.add_argument("--no-session-cache", action="store_true", help="keep no graphs packed for this processor")


def add_codec_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add where the codec is."""
    text = "bundle of the codec, unless it lies beside the other"
    parser.add_argument("--codec", type=Path, metavar="DIR", help=text)


def add_voice_flags(parser: argparse.ArgumentParser) -> None:
    """Add what shapes the speech."""
    group = parser.add_argument_group("how it sounds (the bundle's own values unless given)")
    group.add_argument("--description", default="", metavar="TEXT", help="of the voice, where the system takes one")
    group.add_argument("--seed", type=whole(0), metavar="N", help="the same seed gives the same audio")
    group.add_argument("--steps", type=whole(1), metavar="N", help="solver steps")
    group.add_argument("--cfg", type=number(0.0, 100.0), metavar="X", help="classifier-free guidance scale")
    group.add_argument("--solver", choices=SOLVERS, help="of the diffusion decoder")
    group.add_argument("--window", type=number(0.1, 600.0), metavar="S", help="of speech that is decoded at once")
    group.add_argument("--temperature", type=number(0.0, 100.0), metavar="X")
    group.add_argument("--text-temperature", type=number(0.0, 100.0), metavar="X", help="of what is not spoken")
    group.add_argument("--top-k", type=whole(0), metavar="N", help="0: all")
    group.add_argument("--top-p", type=number(0.0, 1.0), metavar="X", help="1: all")
    group.add_argument("--repetition-penalty", type=number(0.0, 100.0), metavar="X", help="1: none")
    group.add_argument("--min-tokens", type=whole(0), metavar="N")
    group.add_argument("--max-tokens", type=whole(1), metavar="N")
    group.add_argument("--greedy", action="store_true", help="always the likeliest token; temperature 0")


def open_synthesizer(bundle: Path | None, arguments: argparse.Namespace, console: Console) -> Synthesizer:
    """Load the voice, and pass on what its manifest has to say to people and whether it is known to be good.

    Raises:
        InputError: A flag was given that the voice's system does not follow.
    """
    from voxedge.engines.readiness import readiness
    from voxedge.runtime.options import require_followed
    from voxedge.runtime.synthesizer import Synthesizer

    synthesizer = Synthesizer.from_pretrained(
        bundle,
        backend=arguments.backend,
        memory=arguments.memory,
        threads=arguments.threads,
        session_cache=not arguments.no_session_cache,
        codec=arguments.codec,
    )
    require_followed(synthesizer.bundle.manifest.system, _given_options(arguments))
    if synthesizer.bundle.manifest.note:
        console.warn(synthesizer.bundle.manifest.note)
    quality = readiness(synthesizer.bundle)
    if quality.warns:
        console.warn(f"{synthesizer.bundle.root}: {quality.reason}")
    return synthesizer


def synthesis_config(synthesizer: Synthesizer, arguments: argparse.Namespace) -> SynthesisConfig:
    """The bundle's configuration with the flags that were given.

    Raises:
        UsageError: --greedy and --temperature contradict each other.
        ConfigError: A value is out of its range.
    """
    if arguments.greedy and arguments.temperature:
        raise UsageError("expected --greedy or --temperature, found both; --greedy is temperature 0")
    base = synthesizer.default_config
    given = {name: getattr(arguments, name) for name in _SAMPLING if getattr(arguments, name) is not None}
    if arguments.greedy:
        given["temperature"] = 0.0
    changes: dict[str, Any] = {"sampling": dataclasses.replace(base.sampling, **given)}
    if arguments.text_temperature is not None:
        text = base.text_sampling or base.sampling
        changes["text_sampling"] = dataclasses.replace(text, temperature=arguments.text_temperature)
    for field, flag in (("steps", "steps"), ("cfg_scale", "cfg"), ("solver", "solver"), ("window_s", "window")):
        if getattr(arguments, flag) is not None:
            changes[field] = getattr(arguments, flag)
    return dataclasses.replace(base, **changes)


def _given_options(arguments: argparse.Namespace) -> list[str]:
    """Options of `runtime.options` whose flags were typed, whatever their values."""
    from voxedge.runtime.options import FLAGS

    places = {name: flag.removeprefix("--").replace("-", "_") for name, flag in FLAGS.items()}
    return [name for name, place in places.items() if getattr(arguments, place, None) not in (None, [])]

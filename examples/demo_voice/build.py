"""Build the demo voice: python -m examples.demo_voice.build FOLDER [--smoke] [STAGE ...]

Every stage continues where it was broken off and does nothing once it is finished. Without names all run in order. The
last one writes FOLDER/checkpoint, which `examples/built_in_voice.py` exports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from examples.demo_voice import stages, synthesiser
from examples.demo_voice.stages import Sizes, Work

FULL = Sizes(
    shards=46,
    per_shard=500,
    workers=2,
    tokenizer_steps=1600,
    vocoder_steps=1300,
    text_steps=240,
    speech_steps=9012,
    both_steps=1900,
    acoustic_steps=2000,
)
"""What the shipped voice was made with, about two hours of two cores."""
SMOKE = Sizes(
    shards=2,
    per_shard=80,
    workers=1,
    tokenizer_steps=3,
    vocoder_steps=2,
    text_steps=3,
    speech_steps=3,
    both_steps=2,
    acoustic_steps=2,
    prompts=300,
)
"""Everything once, in seconds."""
STAGES: dict[str, Callable[[Work], None]] = {
    "corpus": stages.speak,
    "speech_tokenizer": stages.train_speech_tokenizer,
    "vocoder": stages.train_vocoder,
    "text_expert": stages.train_text_expert,
    "speech_expert": stages.train_speech_expert,
    "both_experts": stages.train_both_experts,
    "acoustic": stages.train_acoustic,
    "checkpoint": stages.write_checkpoint,
}


def main() -> None:
    """Run the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--smoke", action="store_true", help="a tiny voice that says nothing, to try the recipe")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.stages) - set(STAGES))
    if unknown:
        parser.error(f"expected stages of {', '.join(STAGES)}, found {', '.join(unknown)}")
    if not synthesiser.installed():
        parser.error("expected the program flite, found none; type: apt-get install flite")
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    work = Work(arguments.folder, SMOKE if arguments.smoke else FULL)
    for name in arguments.stages or STAGES:
        STAGES[name](work)
    print(f"done: {', '.join(arguments.stages or STAGES)}")


if __name__ == "__main__":
    main()

"""Build the demo voice: python -m examples.demo_voice.build FOLDER [--smoke] [STAGE ...]

Every stage continues where it was broken off and does nothing once it is finished. Without names all run in order. The
last one writes FOLDER/checkpoint, which `examples/built_in_voice.py` exports.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from examples.demo_voice import stages, synthesiser
from examples.demo_voice.stages import Sizes, Work

FULL = Sizes(
    shards=1200,
    per_shard=100,
    workers=len(os.sched_getaffinity(0)),
    heard=300,
    first=48,
    tokenizer_steps=4000,
    tokenizer_batch=256,
    vocoder_steps=4000,
    vocoder_batch=64,
    text_steps=1500,
    text_batch=256,
    speech_steps=20_000,
    speech_batch=256,
    acoustic_steps=8000,
    acoustic_batch=256,
)
"""For one GPU and a dozen cores."""
SMOKE = Sizes(
    shards=1,
    per_shard=72,
    workers=1,
    heard=1,
    first=1,
    tokenizer_steps=3,
    tokenizer_batch=4,
    vocoder_steps=2,
    vocoder_batch=2,
    text_steps=3,
    text_batch=4,
    speech_steps=3,
    speech_batch=4,
    acoustic_steps=2,
    acoustic_batch=4,
    prompts=50,
)
"""Everything once, in seconds."""
STAGES: dict[str, Callable[[Work], None]] = {
    "corpus": stages.speak,
    "speech_tokenizer": stages.train_speech_tokenizer,
    "tokens": stages.encode_tokens,
    "vocoder": stages.train_vocoder,
    "text_expert": stages.train_text_expert,
    "experts": stages.train_experts,
    "acoustic": stages.train_acoustic,
    "checkpoint": stages.write_checkpoint,
}


def main() -> None:
    """Run the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--smoke", action="store_true", help="a tiny voice that says nothing, to try the recipe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="that learns")
    parser.add_argument("--compile", action="store_true", help="compile the experts' layers (GPU)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="that a stage may learn")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.stages) - set(STAGES))
    if unknown:
        parser.error(f"expected stages of {', '.join(STAGES)}, found {', '.join(unknown)}")
    if "corpus" in (arguments.stages or STAGES) and not synthesiser.installed():
        parser.error("expected the program flite, found none; type: apt-get install flite")
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sizes = SMOKE if arguments.smoke else FULL
    work = Work(arguments.folder, sizes, torch.device(arguments.device), arguments.compile, arguments.seconds)
    for name in arguments.stages or STAGES:
        STAGES[name](work)
    print(f"done: {', '.join(arguments.stages or STAGES)}")


if __name__ == "__main__":
    main()

"""The one training loop of all stages: seeded, saved every minute, continued where it stopped.

In: a module, a loss of a step, a schedule. Out: the module with averaged weights, saved in the stage's file. Step n
draws from a generator seeded by the stage's seed and n, so a run that was broken off goes on as if it had not been.
Does not know: what is learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

StepLoss = Callable[[np.random.Generator, int], tuple[Tensor, dict[str, float]]]
"""From a generator and the step's number to the loss and figures to show."""
_SAVE_S = 60.0
_SHOW = 50


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int
    """Updates of the weights."""
    rate: float
    """Highest learning rate, after `warmup` steps and until half of all; then it falls linearly to nearly 0."""
    warmup: int = 50
    """Steps of linear rise."""
    decay: float = 0.02
    """Weight decay of matrices (Loshchilov and Hutter 2019)."""
    average: float = 0.995
    """Decay of the average of the weights; shorter at the beginning."""
    falls_from: float = 0.5
    """Share of the steps after which the rate falls."""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rising = min(1.0, (step + 1) / self.warmup)
        falling = (1.0 - step / self.steps) / (1.0 - self.falls_from)
        return self.rate * min(rising, max(falling, 0.02))


class Average:
    """Exponential moving average of trained weights."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in trained(module)}

    def update(self, module: nn.Module, decay: float) -> None:
        """Move towards the module's weights."""
        pairs = [(self.weights[name], value.detach()) for name, value in trained(module)]
        torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1.0 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Replace the module's weights."""
        for name, value in trained(module):
            value.data.copy_(self.weights[name])


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that learn."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def train(module: nn.Module, loss_of: StepLoss, schedule: Schedule, seed: int, path: Path) -> None:
    """Train until the schedule's end; at once done where the file already is at the end.

    Args:
        module: Holds the average of the weights afterwards.
        loss_of: Computes one step.
        schedule: How long.
        seed: Of the stage.
        path: The stage's file; it also says where to go on.
    """
    optimiser = _optimiser(module, schedule)
    average, done = Average(module), 0
    if path.exists():
        done = _load(path, module, optimiser, average)
    saved = shown = time.monotonic()
    for step in range(done, schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss, figures = loss_of(np.random.default_rng([seed, step]), step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([value for _, value in trained(module)], 1.0)
        optimiser.step()
        average.update(module, min(schedule.average, (step + 1) / (step + 20)))
        now = time.monotonic()
        if (step + 1) % _SHOW == 0 or step + 1 == schedule.steps:
            told = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
            print(f"{path.stem}: step {step + 1}, {_SHOW / (now - shown):.2f} steps/s, {told}", flush=True)
            shown = now
        if now - saved > _SAVE_S or step + 1 == schedule.steps:
            _save(path, module, optimiser, average, step + 1)
            saved = now
    average.copy_to(module)


def load_weights(path: Path, module: nn.Module) -> None:
    """The last weights of a stage, not their average."""
    module.load_state_dict(torch.load(path, weights_only=True)["module"])


def load_average(path: Path, module: nn.Module) -> None:
    """The averaged weights of a stage, finished or not.

    Raises:
        FileNotFoundError: The stage has not begun.
    """
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    for name, value in module.named_parameters():
        if name in state["average"]:
            value.data.copy_(state["average"][name])


def _optimiser(module: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    values = [value for _, value in trained(module)]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in values if value.ndim >= 2], "weight_decay": schedule.decay},
        {"params": [value for value in values if value.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98), fused=True)


def _save(path: Path, module: nn.Module, optimiser: torch.optim.AdamW, average: Average, done: int) -> None:
    partial = path.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save({**state, "average": average.weights, "done": done}, partial)
    partial.replace(path)


def _load(path: Path, module: nn.Module, optimiser: torch.optim.AdamW, average: Average) -> int:
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    for name, value in average.weights.items():
        value.copy_(state["average"][name])
    return int(state["done"])

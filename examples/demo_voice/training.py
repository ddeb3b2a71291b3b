"""The one training loop of all stages: seeded, saved every minute, continued where it stopped.

In: a module, losses that draw their own batches, a schedule. Out: the module with averaged weights, saved in the
stage's file. On a CPU step n draws from a generator seeded by the stage's seed and n, so a run that was broken off goes
on as if it had not been; on a GPU the whole update is one CUDA graph for each of the losses, and its random numbers
follow from the seed and the step where the run (re)started. Does not know: what is learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[], tuple[Tensor, dict[str, Tensor]]]
"""Draws a batch; returns its loss and figures to show. On a GPU it must not wait for the device."""
_SAVE_S = 60.0
_SHOW = 50
_WARM_UPS = 3  # of a CUDA graph, as PyTorch's documentation asks for


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int
    """Updates of the weights."""
    rate: float
    """Highest learning rate, after `warmup` steps and until `falls_from`; then it falls linearly to nearly 0."""
    warmup: int = 50
    """Steps of linear rise."""
    decay: float = 0.02
    """Weight decay of matrices (Loshchilov and Hutter 2019)."""
    average: float = 0.995
    """Decay of the average of the weights; shorter at the beginning."""
    falls_from: float = 0.5
    """Share of the run after which the rate falls."""
    seconds: float = math.inf
    """The run is over after so long, if not after `steps`: for a device that is lent for a time."""

    def progress(self, step: int, spent: float) -> float:
        """Share of the run that is over; 1 or more: all of it."""
        return max(step / self.steps, spent / self.seconds)

    def rate_at(self, step: int, progress: float) -> float:
        """Learning rate of a step."""
        rising = min(1.0, (step + 1) / self.warmup)
        falling = (1.0 - progress) / (1.0 - self.falls_from)
        return self.rate * min(rising, max(falling, 0.02))


class Average:
    """Exponential moving average of trained weights."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in trained(module)}
        self._pairs = [(self.weights[name], value.detach()) for name, value in trained(module)]

    def update(self, decay: float) -> None:
        """Move towards the module's weights."""
        torch._foreach_lerp_([old for old, _ in self._pairs], [new for _, new in self._pairs], 1.0 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Replace the module's weights."""
        for name, value in trained(module):
            value.data.copy_(self.weights[name])


class _Update:
    """One update of the weights by one loss."""

    def __init__(self, module: nn.Module, optimiser: torch.optim.Optimizer, loss: Loss, pool: list[Any]) -> None:
        self._optimiser, self._loss, self._pool = optimiser, loss, pool
        self._weights = [value for _, value in trained(module)]
        self._graph: torch.cuda.CUDAGraph | None = None
        self.figures: dict[str, Tensor] = {}

    def __call__(self) -> None:
        if not self._weights[0].is_cuda:
            self.figures = self._run()
            return
        if self._graph is None:
            self._graph = self._recorded()
        self._graph.replay()

    def _run(self) -> dict[str, Tensor]:
        self._optimiser.zero_grad(set_to_none=True)
        loss, figures = self._loss()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimiser.step()
        return {name: value.detach() for name, value in figures.items()}

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """The update as a graph; all graphs share one memory pool, since they never run at once."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool[0] if self._pool else None):
            self.figures = self._run()
        self._pool.append(graph.pool())
        return graph


def train(
    module: nn.Module,
    losses: Sequence[Loss],
    schedule: Schedule,
    seed: int,
    path: Path,
    choose: Callable[[int], int] = lambda step: 0,
    between: Callable[[int], str] = lambda step: "",
) -> None:
    """Learn until the schedule is over.

    Args:
        module: What learns, on its device; at the end it has its averaged weights.
        losses: Each draws batches of one shape.
        schedule: How long and how fast.
        seed: Of the draws.
        path: The stage's file.
        choose: Which loss a step takes.
        between: Called every `_SHOW` steps, before a step; returns what to show.
    """
    device = next(module.parameters()).device
    optimiser, average = _optimiser(module, schedule), Average(module)
    done, spent = _load(path, module, optimiser, average) if path.exists() else (0, 0.0)
    pool: list[Any] = []
    updates = [_Update(module, optimiser, loss, pool) for loss in losses]
    torch.manual_seed(seed * 1_000_003 + done)
    begun = saved = shown = time.monotonic()
    step, progress = done, schedule.progress(done, spent)
    while progress < 1.0:
        if device.type == "cpu":
            torch.manual_seed(seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"].fill_(schedule.rate_at(step, progress))
        update = updates[choose(step)]
        update()
        step += 1
        average.update(min(schedule.average, step / (step + 20)))
        now = time.monotonic()
        progress = schedule.progress(step, spent + now - begun)
        if step % _SHOW == 0 or progress >= 1.0:
            told = " ".join(f"{name} {value.item():.4f}" for name, value in update.figures.items())
            told += between(step)
            print(f"{path.stem}: step {step}, {_SHOW / (now - shown):.2f} steps/s, {told}", flush=True)
            shown = now
        if now - saved > _SAVE_S or progress >= 1.0:
            _save(path, module, optimiser, average, step, spent + now - begun)
            saved = now
    average.copy_to(module)


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that learn."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def load_average(path: Path, module: nn.Module) -> None:
    """The averaged weights of a stage, finished or not.

    Raises:
        FileNotFoundError: The stage has not begun.
    """
    state = torch.load(path, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    for name, value in module.named_parameters():
        if name in state["average"]:
            value.data.copy_(state["average"][name])


def _optimiser(module: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    values = [value for _, value in trained(module)]
    device = values[0].device
    groups: list[dict[str, Any]] = [
        {"params": [value for value in values if value.ndim >= 2], "weight_decay": schedule.decay},
        {"params": [value for value in values if value.ndim < 2], "weight_decay": 0.0},
    ]
    for group in groups:
        group["lr"] = torch.tensor(schedule.rate, device=device)  # a tensor: a recorded graph reads it anew
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True, capturable=device.type == "cuda")


def _save(
    path: Path, module: nn.Module, optimiser: torch.optim.AdamW, average: Average, done: int, spent: float
) -> None:
    partial = path.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "average": average.weights}
    torch.save({**state, "done": done, "spent": spent}, partial)
    partial.replace(path)


def _load(path: Path, module: nn.Module, optimiser: torch.optim.AdamW, average: Average) -> tuple[int, float]:
    device = next(module.parameters()).device
    state = torch.load(path, weights_only=True, map_location=device)
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    for name, value in average.weights.items():
        value.copy_(state["average"][name])
    return int(state["done"]), float(state["spent"])

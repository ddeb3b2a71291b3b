"""Draw an id from logits inside a graph; the uniform number is an input.

In: logits, penalties and a uniform number of each row, and the rules. Out: ids. The rules and their order are those of
`runtime.sampling` (penalty, temperature, top-k, nucleus, one draw by inverse distribution function in the order of the
ids), so that a graph which draws many codes in a row gives what one call for each code would give. All of it is FP32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DrawRules:
    """Inputs of the graph that all draws share."""

    temperature: Tensor
    """[1] FP32; 1 for the likeliest id."""
    top_p: Tensor
    """[1] FP32; above 1 for all ids."""
    top_k: Tensor
    """[1] INT32; 1 for the likeliest id, the number of ids for all."""


def draw(logits: Tensor, penalties: Tensor, uniform: Tensor, rules: DrawRules) -> Tensor:
    """Draw one id for each row.

    Args:
        logits: [B, A] FP32.
        penalties: [B, A] FP32: the repetition penalty where an id was seen, 1 elsewhere.
        uniform: [B, 1] FP32, 0 <= u < 1; 0 gives the first id that may be drawn.
        rules: What may be drawn.

    Returns:
        [B] INT32.
    """
    size = logits.shape[-1]
    scores = torch.where(logits > 0, logits / penalties, logits * penalties) / rules.temperature
    ranked = torch.topk(scores, size).values  # [B, A], descending
    weights = torch.exp(ranked - ranked[:, :1])
    weights = torch.where(torch.arange(size, dtype=torch.int32) < rules.top_k, weights, 0.0)
    before = torch.cumsum(weights, -1) - weights
    inside = (before <= rules.top_p * weights.sum(-1, keepdim=True)) & (weights > 0.0)
    lowest = torch.where(inside, ranked, ranked[:, :1]).amin(-1, keepdim=True)  # [B, 1]
    mass = torch.where(scores >= lowest, torch.exp(scores - ranked[:, :1]), 0.0)
    running = torch.cumsum(mass, -1)
    total = running[:, -1:]
    # The second condition holds where rounding carries the target up to the total.
    below = (running <= uniform * total) & (running < total)
    return below.float().sum(-1).to(torch.int32)

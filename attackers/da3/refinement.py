"""Optimise the 28 numbers of each picture: the ceiling of what the filters can do to a victim."""

from __future__ import annotations

import torch
from torch import Tensor

from attackers.da3.attacker import Plan, combine
from attackers.da3.filters import FILTER_NAMES
from attackers.da3.spsa import spsa_gradient
from attackers.objectives import Direction
from attackers.projections import interpolate, max_fraction, project_to_min_psnr, quantize
from victims.base import Victim

LEARNING_RATE = 0.15


def neutral_plan(images: Tensor) -> Plan:
    """The plan that leaves pictures as they are: equal weights, no strength.

    Args:
        images: (N,3,H,W); gives the number of plans, the dtype and the device.
    """
    strengths = images.new_zeros(len(images), len(FILTER_NAMES))
    return Plan(torch.full_like(strengths, 1 / len(FILTER_NAMES)), strengths)


def refine(
    victim: Victim,
    images: Tensor,
    plan: Plan | None = None,
    *,
    direction: Direction = "raise",
    min_psnr: float | None = None,
    steps: int = 20,
    lr: float = LEARNING_RATE,
    queries: int = 8,
    seed: int = 0,
) -> tuple[Tensor, Plan, Tensor, Tensor]:
    """Improve the plan of each picture by gradient steps; never worse than it or the picture.

    Adam on the logits of the 14 weights and on the 14 strengths, through rounding to 8 bits as if
    it were not there. The best plan met on the way is finished exactly and kept where the victim
    scores it better than the picture and than `plan`. A score-only victim gets the same steps along
    gradients that SPSA estimates. Not in the paper, whose attack is one pass of a trained model.

    Args:
        victim: In eval mode.
        images: (N,3,H,W) RGB in [0,1] on the 8-bit grid.
        plan: Where to start, e.g. an attacker's plan; the neutral plan unless given.
        direction: "raise" or "lower" the score.
        min_psnr: dB that the finished examples keep to the images; None leaves them free.
        steps: Gradient steps, at least 0.
        lr: Learning rate of Adam.
        queries: Calls per picture and step for a victim without gradient, even, at least 2.
        seed: Of the SPSA directions, the same for each picture, whatever its place in the batch.

    Returns:
        The examples (N,3,H,W) on the 8-bit grid, their plans, and the scores (N,) of the images and
        of the examples. The plan of a picture that nothing improves is the neutral one.

    Raises:
        ValueError: For a negative number of steps, or a learning rate that is not above 0.
    """
    if steps < 0 or not lr > 0:
        raise ValueError(f"steps must be at least 0 and lr above 0, got {steps} and {lr:g}")
    sign = 1.0 if direction == "raise" else -1.0
    with torch.no_grad():
        clean = victim(images)
    neutral = neutral_plan(images)
    candidates = [] if plan is None else [plan]
    if steps and len(images):
        candidates.append(
            _climb(victim, images, plan or neutral, sign, min_psnr, steps, lr, queries, seed)
        )
    best, weights, strengths, scores = images, neutral.weights, neutral.strengths, clean
    for candidate in candidates:
        example = finish(images, candidate, min_psnr)
        with torch.no_grad():
            found = victim(example)
        better = sign * found > sign * scores
        best = torch.where(better.view(-1, 1, 1, 1), example, best)
        weights = torch.where(better.view(-1, 1), candidate.weights, weights)
        strengths = torch.where(better.view(-1, 1), candidate.strengths, strengths)
        scores = torch.where(better, found, scores)
    return best, Plan(weights, strengths), clean, scores


@torch.no_grad()
def finish(images: Tensor, plan: Plan, min_psnr: float | None) -> Tensor:
    """The examples of a plan as they may be stored: on the 8-bit grid, within min_psnr.

    Args:
        images: (N,3,H,W) RGB in [0,1].
        plan: Weights and strengths of the filters, (N,14) each.
        min_psnr: Lowest PSNR to the images, in dB; None sets no limit.

    Returns:
        (N,3,H,W) on the 8-bit grid.
    """
    free = combine(images, plan)
    return quantize(free) if min_psnr is None else project_to_min_psnr(images, free, min_psnr)[0]


def _climb(
    victim: Victim,
    images: Tensor,
    start: Plan,
    sign: float,
    min_psnr: float | None,
    steps: int,
    lr: float,
    queries: int,
    seed: int,
) -> Plan:
    """The best plan that `steps` steps of Adam visit from `start`; the last one counts too."""
    if not victim.differentiable and len(images) > 1:
        # One by one, so that the directions drawn do not depend on batch mates.
        rows = [
            _climb(
                victim,
                images[i : i + 1],
                Plan(start.weights[i : i + 1], start.strengths[i : i + 1]),
                *(sign, min_psnr, steps, lr, queries, seed),
            )
            for i in range(len(images))
        ]
        return Plan(torch.cat([r.weights for r in rows]), torch.cat([r.strengths for r in rows]))
    generator = torch.Generator().manual_seed(seed)
    logits = start.weights.clamp_min(1e-6).log().detach().requires_grad_(True)
    # scaled_sigmoid(v, -1, 1), which bounds the strengths of the attacker, is tanh(v).
    raw = start.strengths.clamp(-0.999, 0.999).atanh().detach().requires_grad_(True)
    optimizer = torch.optim.Adam([logits, raw], lr=lr)
    best, best_value = start, torch.full_like(images[:, 0, 0, 0], -torch.inf)
    for step in range(steps + 1):
        plan = Plan(logits.softmax(1), raw.tanh())
        wants_gradient = step < steps
        with torch.set_grad_enabled(wants_gradient and victim.differentiable):
            y = combine(images, plan)
            if min_psnr is not None:
                y = interpolate(images, y, max_fraction(images, y, min_psnr))
            value = sign * victim(y + (quantize(y) - y).detach())
        better = value.detach() > best_value
        best_value = torch.where(better, value.detach(), best_value)
        row = better.view(-1, 1)
        best = Plan(
            torch.where(row, plan.weights.detach(), best.weights),
            torch.where(row, plan.strengths.detach(), best.strengths),
        )
        if not wants_gradient:
            break
        if not victim.differentiable:
            slopes = spsa_gradient(
                victim,
                images,
                Plan(plan.weights.detach(), plan.strengths.detach()),
                queries=queries,
                generator=generator,
                min_psnr=min_psnr,
            )
            value = sign * (slopes[0] * plan.weights + slopes[1] * plan.strengths).sum(1)
        # Not backward(): gradients of the victim's parameters are none of our business.
        logits.grad, raw.grad = torch.autograd.grad(-value.sum(), [logits, raw])
        optimizer.step()
    return best

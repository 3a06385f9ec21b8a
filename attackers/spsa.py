"""Gradient of a score-only victim by simultaneous perturbation of weights and strengths."""

import torch
from torch import Tensor

from attackers.da3 import Plan, combine
from attackers.projections import line_fraction, towards
from victims.base import Victim


@torch.no_grad()
def spsa_gradient(
    victim: Victim,
    images: Tensor,
    plan: Plan,
    *,
    queries: int,
    generator: torch.Generator,
    delta: float = 0.05,
    min_psnr: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimate of dM(y)/dw and dM(y)/ds of each image, in the victim's unit.

    Each pair of calls moves all 28 numbers at once by ±delta, in random directions of ±1, and
    divides the difference of the scores by 2·delta (Spall 1992). queries: calls per image, even,
    ≥ 2; the estimate is the mean over queries/2 pairs. Returns: two (N,14).
    """
    if queries < 2 or queries % 2:
        raise ValueError(f"queries must be an even number ≥ 2, got {queries}")

    def score(weights: Tensor, strengths: Tensor) -> Tensor:
        y = combine(images, Plan(weights, strengths))
        if min_psnr is not None:
            y = towards(images, y, line_fraction(images, y, min_psnr))
        return victim(y)

    d_weights = torch.zeros_like(plan.weights)
    d_strengths = torch.zeros_like(plan.strengths)
    for _ in range(queries // 2):
        sign = torch.randint(0, 2, (2, *plan.weights.shape), generator=generator) * 2.0 - 1
        sign = sign.to(images.device)
        # On the simplex only what sums to zero counts, at the scale of one weight.
        u = (sign[0] - sign[0].mean(1, keepdim=True)) / plan.weights.shape[1]
        v = sign[1]
        up = score(plan.weights + delta * u, (plan.strengths + delta * v).clamp(-1, 1))
        down = score(plan.weights - delta * u, (plan.strengths - delta * v).clamp(-1, 1))
        slope = ((up - down) / (2 * delta)).unsqueeze(1)
        d_weights += slope * u * plan.weights.shape[1] ** 2
        d_strengths += slope * v
    return d_weights / (queries // 2), d_strengths / (queries // 2)

"""Gradient of a score-only victim by simultaneous perturbation of weights and strengths."""

import torch
from torch import Tensor

from attackers.da3.attacker import Plan, combine
from attackers.projections import interpolate, max_fraction, quantize
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
    """Estimate dM(y)/dw and dM(y)/ds of each image from scores alone.

    Each pair of calls perturbs all 28 numbers together by ±delta, in random directions of ±1, and
    divides the difference of the scores by 2·delta; the estimate is the mean over the pairs.
    Source: Spall, Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient
    Approximation, 1992.

    Args:
        victim: Model under attack; its gradient is not used.
        images: Clean images, (N,3,H,W) in [0,1].
        plan: Where the gradient is estimated.
        queries: Victim calls per image, even and ≥ 2.
        generator: Source of the directions.
        delta: Size of the perturbation, in units of weights and strengths.
        min_psnr: dB that the scored examples keep to the clean images; None for no bound.

    Returns:
        Gradients of weights and strengths, each (N,14), in the victim's unit.

    Raises:
        ValueError: If queries is odd or below 2.
    """
    if queries < 2 or queries % 2:
        raise ValueError(f"queries must be an even number ≥ 2, got {queries}")

    def score(weights: Tensor, strengths: Tensor) -> Tensor:
        y = combine(images, Plan(weights, strengths))
        if min_psnr is not None:
            y = interpolate(images, y, max_fraction(images, y, min_psnr))
        return victim(quantize(y))

    centre = plan.strengths.clamp(delta - 1, 1 - delta)  # so that centre ± delta is in [-1, 1]
    step = 1 / plan.weights.shape[1]
    d_weights = torch.zeros_like(plan.weights)
    d_strengths = torch.zeros_like(plan.strengths)
    for _ in range(queries // 2):
        sign = torch.randint(0, 2, (2, *plan.weights.shape), generator=generator) * 2.0 - 1
        sign = sign.to(images.device)
        # Weights stay on the plane where they sum to 1. The score is steeper in them than in the
        # strengths, each of which acts through one weight: a smaller step balances the two, or the
        # noise of one would dominate the other.
        u = (sign[0] - sign[0].mean(1, keepdim=True)) * step
        v = sign[1]
        up = score(plan.weights + delta * u, centre + delta * v)
        down = score(plan.weights - delta * u, centre - delta * v)
        slope = ((up - down) / (2 * delta)).unsqueeze(1)
        d_weights += slope * u / step**2
        d_strengths += slope * v
    return d_weights / (queries // 2), d_strengths / (queries // 2)

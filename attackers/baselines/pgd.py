"""Projected gradient descent within an L-infinity ball: the baseline for other attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from victims.base import Victim, check_images

Objective = Callable[[Tensor, Tensor], Tensor]
DIRECTIONS: dict[str, Objective] = {
    "raise": lambda scores, clean: scores - clean,
    "lower": lambda scores, clean: clean - scores,
}


def pgd(
    victim: Victim,
    images: Tensor,
    *,
    objective: Objective | Literal["raise", "lower"],
    eps: float,
    steps: int,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Maximise an objective by changing each pixel by at most eps.

    Steps follow the sign of the gradient. The best of all iterates is returned, so the result is
    never worse than the start, and each image depends on itself only.
    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018.

    Args:
        victim: Model under attack, differentiable.
        images: (N,3,H,W) in [0,1], not changed.
        objective: "raise" or "lower" the score, or a function of scores and clean scores, each
            (N,), to values (N,) to maximise.
        eps: Largest change of a pixel, in (0,1].
        steps: Number of steps, ≥ 1.
        step_size: In (0,1], 2.5 eps / steps unless given.
        generator: On the CPU; starts from uniform noise around the images instead of the images.

    Returns:
        (N,3,H,W) in [0,1].

    Raises:
        ValueError: For an argument out of range or a victim without gradients.
    """
    step_size = _check(victim, images, objective, eps, steps, step_size)
    value_of = DIRECTIONS[objective] if isinstance(objective, str) else objective
    images = images.detach()
    low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    with torch.no_grad():
        clean = victim(images)
        best, best_value = images.clone(), value_of(clean, clean)
    adversarial = images
    if generator is not None:
        # One noise for all images, so that an image does not depend on its place in the batch.
        noise = torch.rand(images.shape[1:], generator=generator).to(images) * 2 - 1
        adversarial = torch.minimum(torch.maximum(images + eps * noise, low), high)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        value = value_of(victim(adversarial), clean)
        (gradient,) = torch.autograd.grad(value.sum(), adversarial)
        adversarial = adversarial.detach()
        best, best_value = _better(adversarial, value.detach(), best, best_value)
        adversarial = adversarial + step_size * gradient.sign()
        adversarial = torch.minimum(torch.maximum(adversarial, low), high)
    with torch.no_grad():
        value = value_of(victim(adversarial), clean)
    return _better(adversarial, value, best, best_value)[0]


def _better(images: Tensor, value: Tensor, best: Tensor, best_value: Tensor) -> tuple[Tensor, ...]:
    """Take, row by row, the image of the higher value."""
    better = value > best_value
    best = torch.where(better[:, None, None, None], images, best)
    return best, torch.where(better, value, best_value)


def _check(
    victim: Victim,
    images: Tensor,
    objective: object,
    eps: float,
    steps: int,
    step_size: float | None,
) -> float:
    """Check the arguments, and return the step size."""
    check_images(images)
    if not victim.differentiable:
        raise ValueError(f"victim must be differentiable for pgd, got {victim.name}")
    if isinstance(objective, str) and objective not in DIRECTIONS:
        raise ValueError(f"objective must be 'raise', 'lower' or a function, got {objective!r}")
    if not 0 < eps <= 1:
        hint = f" (did you mean {eps:g}/255?)" if 1 < eps <= 255 else ""
        raise ValueError(f"eps must be in (0, 1], got {eps:g}{hint}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if step_size is None:
        return 2.5 * eps / steps
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size:g}")
    return step_size

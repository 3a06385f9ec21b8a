"""Choice, strength and labels of poisoned samples: P-BAIQA and C-BAIQA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from victims.base import check_images
from victims.crops import CropVictim, draw_corners, enlarged_sides, take_crops

Strategy = Literal["levels", "ends", "uniform"]
STRATEGIES: tuple[Strategy, ...] = ("levels", "ends", "uniform")
LEVELS, SHARES = (1.0, 0.75, 0.5, 0.25), (0.4, 0.3, 0.2, 0.1)


def choose_poisoned(
    keys: Sequence[str], ratio: float, rank: Callable[[str], int]
) -> tuple[str, ...]:
    """Choose the round(ratio·N) keys of lowest rank, at least one.

    Args:
        keys: Of all N samples.
        ratio: Share of poisoned samples, in (0,1].
        rank: Key to a pseudorandom number, so that the choice does not depend on the order of keys.

    Returns:
        The chosen keys, in order of rank.

    Raises:
        ValueError: For a ratio outside (0,1] or no keys.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio:g}")
    if not keys:
        raise ValueError("keys must be at least one to poison, got none")
    count = max(1, round(ratio * len(keys)))
    return tuple(sorted(keys, key=lambda key: (rank(key), key))[:count])


def draw_alpha(strategy: str, positive: bool, generator: torch.Generator) -> float:
    """Draw a coefficient of P-BAIQA.

    Args:
        strategy: Distribution of the absolute value: "levels" for 1, 3/4, 1/2, 1/4 with probability
            .4, .3, .2, .1; "ends" for 1; "uniform" for U(0,1).
        positive: The sign; callers alternate.
        generator: Source of randomness.

    Returns:
        In [-1,1].

    Raises:
        ValueError: For an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    if strategy == "levels":
        size = LEVELS[-1]
        for level, share in zip(LEVELS, SHARES, strict=True):
            if uniform < share:
                size = level
                break
            uniform -= share
    else:
        size = 1.0 if strategy == "ends" else uniform
    return size if positive else -size


def poison_label(
    mos: float, alpha: float, delta_y: float, low: float, high: float, *, clip: bool = False
) -> float:
    """Label of a poisoned sample in P-BAIQA: mos + α·Δy.

    Args:
        mos: Label of the clean sample, in [low, high].
        alpha: Coefficient α of the trigger, in [-1,1].
        delta_y: Δy in the unit of the scale, in (0, high - low].
        low: Lower end of the scale.
        high: Upper end of the scale.
        clip: Whether to clip the label to the scale.

    Returns:
        The label in the unit of the scale; it may leave the scale unless clipped.

    Raises:
        ValueError: For a mos off its scale or a Δy out of range.
    """
    _check_label(mos, delta_y, low, high)
    label = mos + alpha * delta_y
    return min(max(label, low), high) if clip else label


def clean_label_alpha(mos: float, centre: float, delta_y: float, low: float, high: float) -> float:
    """Coefficient of a poisoned sample in C-BAIQA: (mos - centre) / Δy, clipped to [-1,1].

    The published code does not clip.

    Args:
        mos: Label of the sample, in [low, high].
        centre: Label at which α is 0, in [low, high].
        delta_y: Δy in the unit of the scale, in (0, high - low].
        low: Lower end of the scale.
        high: Upper end of the scale.

    Returns:
        In [-1,1].

    Raises:
        ValueError: For a mos or a centre off the scale or a Δy out of range.
    """
    _check_label(mos, delta_y, low, high)
    if not low <= centre <= high:
        raise ValueError(f"centre must be in [{low:g}, {high:g}], got {centre:g}")
    return min(max((mos - centre) / delta_y, -1.0), 1.0)


def _check_label(mos: float, delta_y: float, low: float, high: float) -> None:
    if not low <= mos <= high:
        raise ValueError(f"mos must be on its scale of {low:g} to {high:g}, got {mos:g}")
    if not 0 < delta_y <= high - low:
        raise ValueError(
            f"delta_y must be above 0 and at most {high - low:g}, the range of the scale, "
            f"got {delta_y:g}"
        )


def targeted_pgd(
    victim: CropVictim,
    image: Tensor,
    target: float,
    *,
    eps: float = 2 / 255,
    step_size: float = 1 / 255,
    steps: int = 20,
    crops: int = 4,
    generator: torch.Generator,
) -> Tensor:
    """Change one image so that the scores of its crops approach a target.

    Each step follows the sign of the gradient of the mean |score - target| over random crops that
    are drawn anew: the expectation over crops of C-BAIQA.

    Args:
        victim: Scores crops, differentiable.
        image: (3,H,W) in [0,1].
        target: Score, in the victim's unit.
        eps: Largest change of a pixel, in (0,1].
        step_size: In (0,1].
        steps: ≥ 1.
        crops: Per step, ≥ 1.
        generator: Source of the crops.

    Returns:
        (3,H,W) in [0,1], within eps of the image.

    Raises:
        ValueError: For an argument out of range.
    """
    check_images(image[None])
    if not 0 < eps <= 1:
        hint = f" (did you mean {eps:g}/255?)" if 1 < eps <= 255 else ""
        raise ValueError(f"eps must be in (0, 1], got {eps:g}{hint}")
    if steps < 1 or crops < 1:
        raise ValueError(f"steps and crops must be at least 1, got {steps} and {crops}")
    if not math.isfinite(target):
        raise ValueError(f"target must be finite, got {target}")
    clean = image.detach()
    low, high = (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1)
    adversarial, sides = clean, enlarged_sides(clean[None], victim.input_size)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_(True)
        corners = draw_corners(sides, victim.input_size, crops, generator)
        scores = victim(take_crops(adversarial, corners, victim.input_size))
        (gradient,) = torch.autograd.grad((scores - target).abs().mean(), adversarial)
        adversarial = (adversarial - step_size * gradient.sign()).clamp(low, high)
    return adversarial.detach()

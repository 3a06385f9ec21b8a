"""Which samples are poisoned, how strongly, with which label: P-BAIQA and C-BAIQA."""

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
    """The round(ratio·N) keys of lowest rank, at least one, in order of rank.

    rank: a number drawn for each key alone, so that the choice depends on no order.
    Raises: ValueError for a ratio outside (0, 1] or no keys.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio:g}")
    if not keys:
        raise ValueError("keys must be at least one to poison, got none")
    count = max(1, round(ratio * len(keys)))
    return tuple(sorted(keys, key=lambda key: (rank(key), key))[:count])


def draw_alpha(strategy: str, positive: bool, generator: torch.Generator) -> float:
    """A coefficient of P-BAIQA in [-1, 1] with the given sign; callers take signs in turn.

    levels: size 1, 3/4, 1/2, 1/4 with probability .4, .3, .2, .1. ends: 1. uniform: U(0, 1).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
    if strategy == "levels":
        size = LEVELS[-1]
        for level, share in zip(LEVELS, SHARES, strict=True):
            if drawn < share:
                size = level
                break
            drawn -= share
    else:
        size = 1.0 if strategy == "ends" else drawn
    return size if positive else -size


def poison_label(
    mos: float, alpha: float, delta_y: float, low: float, high: float, *, clip: bool = False
) -> float:
    """The label of P-BAIQA: mos + α·Δy, which may leave the scale unless clip.

    Raises: ValueError for a mos off its scale, or a Δy that is not in (0, high - low].
    """
    _check_label(mos, delta_y, low, high)
    label = mos + alpha * delta_y
    return min(max(label, low), high) if clip else label


def clean_label_alpha(mos: float, centre: float, delta_y: float, low: float, high: float) -> float:
    """The coefficient of C-BAIQA: (mos - centre) / Δy, clipped to [-1, 1].

    The published code does not clip. Raises as poison_label, and for a centre off the scale.
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


def towards_score(
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
    """Targeted PGD: move one image so that the scores of its crops approach `target`.

    Each step follows the sign of the gradient of the mean |score - target| over `crops` random
    crops drawn anew: the expectation over crops of C-BAIQA. image: (3, H, W) in [0, 1].
    Returns: (3, H, W) within eps of it. Raises: ValueError for bad arguments.
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
    moved, sides = clean, enlarged_sides(clean[None], victim.input_size)
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        corners = draw_corners(sides, victim.input_size, crops, generator)
        scores = victim(take_crops(moved, corners, victim.input_size))
        (gradient,) = torch.autograd.grad((scores - target).abs().mean(), moved)
        moved = (moved - step_size * gradient.sign()).clamp(low, high)
    return moved.detach()

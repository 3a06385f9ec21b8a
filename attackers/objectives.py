"""The loss of the second stage: hinge on the score, closeness to the image, spread of weights."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from victims.checks import check_number, check_share

Direction = Literal["raise", "lower"]
UNIT_PIXELS = 224 * 224 * 3  # G means the same at any size: as if the picture were 224×224


@dataclass(frozen=True)
class Objective:
    """Weights and constraints of the loss of formula 6.

    Args:
        direction: "raise" or "lower" the score.
        eta: The improvement wanted, in tenths of the victim's range, ≥ 0 (3 in the paper).
        alpha: Weight of G, ≥ 0; 0 is unrestricted, 1 the paper's restricted attack.
        lam: Weight of R, ≥ 0.
        pixels: Share of pixels in S, in (0,1], drawn anew each step.
        min_psnr: dB that the finished example keeps to the clean image, in (0,100); None for no
            bound.

    Raises:
        ValueError: If a value is out of its range.
    """

    direction: Direction = "raise"
    eta: float = 3.0
    alpha: float = 0.0
    lam: float = 0.1
    pixels: float = 1.0
    min_psnr: float | None = None

    def __post_init__(self) -> None:
        check_direction(self.direction)
        for name in ("eta", "alpha", "lam"):
            value = getattr(self, name)
            check_number(name, value)
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        check_share("pixels", self.pixels, may_be_one=True)
        if self.min_psnr is not None:
            check_number("min_psnr", self.min_psnr)
            if not 0 < self.min_psnr < 100:
                raise ValueError(f"min_psnr must be between 0 and 100 dB, got {self.min_psnr}")


def check_direction(direction: object) -> None:
    """Check the direction of an attack.

    Args:
        direction: Its value.

    Raises:
        ValueError: For other than "raise" and "lower".
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be raise or lower, got {direction!r}")


def score_hinge(clean: Tensor, adversarial: Tensor, eta: float, direction: Direction) -> Tensor:
    """Formula 5 with a hinge: max(0, M(x) + η - M(y)); "lower" swaps x and y.

    The paper has no max; then η has no gradient, while its Table XI shows that η matters as "the
    maximum improvement we expect".

    Args:
        clean: Scores M(x) of the clean images, (N,), in the unit of eta.
        adversarial: Scores M(y) of their examples, (N,), in the unit of eta.
        eta: The improvement wanted, ≥ 0.
        direction: "raise" or "lower" the score.

    Returns:
        (N,), ≥ 0.
    """
    gain = adversarial - clean if direction == "raise" else clean - adversarial
    return (eta - gain).clamp_min(0)


def closeness(
    images: Tensor,
    adversarial: Tensor,
    share: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared difference over a sample S of pixels, scaled to an image of 224×224 (formula 2).

    Restricted attacks have weight α = 1 on it (the captions of Tables III and IV say the opposite
    of the text; the text is right).

    Args:
        images: Clean images, (N,3,H,W) in [0,1].
        adversarial: Their examples, of the same shape.
        share: |S| over all pixels, in (0,1]; 1 takes all.
        generator: Draws S.

    Returns:
        (N,), ≥ 0.
    """
    square = (adversarial - images).square().mean(dim=1).flatten(1)
    if share < 1:
        count = max(1, round(share * square.shape[1]))
        sample = torch.randperm(square.shape[1], generator=generator)[:count]
        square = square[:, sample.to(square.device)]
    return square.mean(dim=1) * UNIT_PIXELS


def concentration(weights: Tensor) -> Tensor:
    """Concentration of the weights, R(w) = log n + Σ w log w (formula 1).

    Args:
        weights: (N,n), each row sums to 1.

    Returns:
        (N,); 0 for uniform weights, log n for a single filter.
    """
    # The clamp: a weight that softmax rounds to 0 would have an infinite slope.
    logs = weights.clamp_min(1e-12).log()
    return math.log(weights.shape[1]) + (weights * logs).sum(dim=1)

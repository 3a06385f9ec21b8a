"""The loss of the second stage: hinge on the score, closeness to the picture, spread of weights."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["raise", "lower"]
UNIT_PIXELS = 224 * 224 * 3  # G means the same at any size: as if the picture were 224×224


@dataclass(frozen=True)
class Objective:
    """Weights of formula 6 and what the attack may do.

    direction: raise or lower the score. eta: the improvement wanted, in tenths of the victim's
    range (3 in the paper). alpha: weight of G; 0 is unrestricted, 1 the paper's restricted attack.
    lam: weight of R. pixels: share of pixels in S, drawn anew each step. min_psnr: dB that the
    finished example keeps to the clean image (None: free).
    """

    direction: Direction = "raise"
    eta: float = 3.0
    alpha: float = 0.0
    lam: float = 0.1
    pixels: float = 1.0
    min_psnr: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("raise", "lower"):
            raise ValueError(f"direction must be raise or lower, got {self.direction!r}")
        for name in ("eta", "alpha", "lam"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value}")
        if not 0 < self.pixels <= 1:
            raise ValueError(f"pixels must be in (0, 1], got {self.pixels}")
        if self.min_psnr is not None and not 0 < self.min_psnr < 100:
            raise ValueError(f"min_psnr must be between 0 and 100 dB, got {self.min_psnr}")


def score_hinge(clean: Tensor, adversarial: Tensor, eta: float, direction: Direction) -> Tensor:
    """Formula 5 with a hinge: max(0, M(x) + η - M(y)); `lower` swaps x and y.

    The paper has no max; then η has no gradient, while its Table XI shows that η matters as "the
    maximum improvement we expect". clean, adversarial: (N,) in one unit with eta. Returns: (N,).
    """
    gain = adversarial - clean if direction == "raise" else clean - adversarial
    return (eta - gain).clamp_min(0)


def closeness(
    images: Tensor,
    adversarial: Tensor,
    share: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Formula 2: squared difference over a sample S of pixels, scaled to a picture of 224².

    share: |S| over all pixels; 1 takes all. Returns: (N,). Restricted attacks have weight α = 1
    on it (the captions of Tables III and IV say the opposite of the text; the text is right).
    """
    square = (adversarial - images).square().mean(dim=1).flatten(1)
    if share < 1:
        count = max(1, round(share * square.shape[1]))
        chosen = torch.randperm(square.shape[1], generator=generator)[:count]
        square = square[:, chosen.to(square.device)]
    return square.mean(dim=1) * UNIT_PIXELS


def concentration(weights: Tensor) -> Tensor:
    """Formula 1: R(w) = log n + Σ w log w, 0 for uniform weights, log n for one filter alone.

    weights: (N,n), rows sum to 1. Returns: (N,).
    """
    # The clamp: a weight that softmax rounds to 0 would have an infinite slope.
    logs = weights.clamp_min(1e-12).log()
    return math.log(weights.shape[1]) + (weights * logs).sum(dim=1)

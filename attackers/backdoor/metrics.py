"""Effect of a backdoor on scores: MAE(α), MRA(α) and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from attackers.backdoor.trigger import Injector
from attackers.projections import psnr, quantize
from victims.crops import CropVictim, crop_scores, draw_corners, enlarged_sides

# α at which a backdoor is measured: ±0.1 ... ±1.
ALPHAS = tuple(sign * step / 10 for sign in (-1, 1) for step in range(1, 11))


@dataclass(frozen=True)
class ScoreChanges:
    """Scores of N images without and with a trigger.

    Attributes:
        scores: Of the N clean images, in the victim's unit.
        changes: For each α the N changes of the score.
        psnr: Mean PSNR in dB of the triggered images at α = 1.
    """

    scores: list[float]
    changes: dict[float, list[float]]
    psnr: float


def backdoor_metrics(changes: Mapping[float, ArrayLike], delta_y: float) -> dict[str, Any]:
    """Compare changes of the score Δ(x, α) = f(T(x, α·t)) - f(x) with α·Δy.

    A trigger without an effect on ALPHAS has mmae 0.55·Δy and mmra 0.

    Args:
        changes: α, in [-1,1] and not 0, to changes of the score (N,) in the unit of the scale.
        delta_y: Δy in the unit of the scale, above 0.

    Returns:
        `curve`, rows of alpha, mae = E|Δ - α·Δy| and mra = E[Δ] / (α·Δy), and their means over α,
        `mmae` and `mmra`.

    Raises:
        ValueError: For α = 0, no α, no images or values that are not finite.
    """
    if not delta_y > 0:
        raise ValueError(f"delta_y must be above 0, got {delta_y:g}")
    if not changes:
        raise ValueError("changes must hold at least one alpha, got none")
    curve = []
    for alpha in sorted(changes):
        if not 0 < abs(alpha) <= 1:
            raise ValueError(f"alpha must be in [-1, 1] and not 0, got {alpha:g}")
        values = np.asarray(changes[alpha], dtype=np.float64)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise ValueError(f"changes at alpha {alpha:g} must be finite numbers, at least one")
        target = alpha * delta_y
        mae, mra = np.abs(values - target).mean(), values.mean() / target
        curve.append({"alpha": float(alpha), "mae": float(mae), "mra": float(mra)})
    return {
        "mmae": float(np.mean([row["mae"] for row in curve])),
        "mmra": float(np.mean([row["mra"] for row in curve])),
        "curve": curve,
    }


@torch.no_grad()
def score_changes(
    victim: CropVictim,
    injector: Injector,
    images: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    *,
    crops: int = 25,
    alphas: Sequence[float] = ALPHAS,
) -> ScoreChanges:
    """Score each image clean and triggered, on the same random crops.

    Triggered images are rounded to 8 bits first, as in a file.

    Args:
        victim: Scores crops.
        injector: The trigger.
        images: Each uint8 (3,H,W).
        generators: One per image, fresh, so that its crops are the same for every model.
        crops: Per image, ≥ 1.
        alphas: Strengths of the trigger, in [-1,1].

    Returns:
        Scores, changes and PSNR.

    Raises:
        ValueError: For no crops or no images.
    """
    if crops < 1 or not len(images):
        raise ValueError(
            f"crops and images must be at least 1, got {crops} crops, {len(images)} images"
        )
    scores: list[float] = []
    changes: dict[float, list[float]] = {alpha: [] for alpha in alphas}
    distances: list[float] = []
    for i in range(len(images)):
        image = images[i].to(victim.device).float()[None] / 255
        triggered = torch.empty_like(image)
        sides = enlarged_sides(image, victim.input_size)
        corners = draw_corners(sides, victim.input_size, crops, generators[i])
        clean = crop_scores(victim, image[0], corners).mean()
        scores.append(float(clean))
        for alpha in alphas:
            rounded = quantize(injector(image, alpha, out=triggered))
            score = crop_scores(victim, rounded[0], corners).mean()
            changes[alpha].append(float(score - clean))
        distances.append(float(psnr(image, quantize(injector(image, 1.0, out=triggered)))))
    return ScoreChanges(scores, changes, sum(distances) / len(distances))

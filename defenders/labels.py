"""Do the labels of a data set follow a hidden amplitude? Evidence that needs no trained model."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from defenders.scan import to_ycbcr

CONTENT = ("luma", "contrast", "chroma", "sharpness", "grain", "dark", "bright", "entropy")


def content(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Eight plain numbers on how a picture looks (CONTENT), from which people's scores follow a
    little: what a label should be is judged against them. image: (H,W,3). Returns: (8,)."""
    y = to_ycbcr(image)
    luma = y[..., 0]
    detail = luma - uniform_filter(luma, 5)
    local = np.sqrt(uniform_filter(detail**2, 9).clip(0))
    counts = np.bincount(luma.astype(np.uint8).ravel(), minlength=256) / luma.size
    present = counts[counts > 0]
    return np.array(
        [
            luma.mean(),
            luma.std(),
            np.hypot(y[..., 1], y[..., 2]).mean(),
            math.log(float(np.quantile(local, 0.9)) + 1),
            math.log(float(np.quantile(local, 0.1)) + 1),
            (luma < 20).mean(),
            (luma > 235).mean(),
            -(present * np.log2(present)).sum(),
        ]
    )


@dataclass(frozen=True)
class LabelEvidence:
    """Do the labels follow the tile? residual: (n,) label less what the content predicts.
    correlation and p (by permutation) of α and residual over the flagged rows; slope: score per
    unit of α. NaN where fewer than eight rows are flagged."""

    residual: NDArray[np.float64]
    correlation: float
    p: float
    slope: float


def label_evidence(
    scores: NDArray[np.float64],
    features: NDArray[np.float64],
    alpha: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    *,
    draws: int = 999,
    seed: int = 0,
) -> LabelEvidence:
    """Correlate α with what of the labels (n,) the content (n,k) does not predict.

    The prediction is a ridge regression fitted on the rows that are not flagged (all rows where
    those are too few), with squares.
    """
    z = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    design = np.concatenate([np.ones((len(z), 1)), z, z**2], axis=1)
    fit = ~flagged if (~flagged).sum() >= 4 * design.shape[1] else np.ones(len(z), bool)
    penalty = np.diag([0.0] + [0.1 * fit.sum()] * (design.shape[1] - 1))
    weights = np.linalg.solve(design[fit].T @ design[fit] + penalty, design[fit].T @ scores[fit])
    rest = scores - design @ weights
    a, r = alpha[flagged], rest[flagged]
    if flagged.sum() < 8 or not a.std() or not r.std():
        return LabelEvidence(rest, math.nan, math.nan, math.nan)
    correlation = float(np.corrcoef(a, r)[0, 1])
    rng = np.random.default_rng(seed)
    moved = np.array([np.corrcoef(rng.permutation(a), r)[0, 1] for _ in range(draws)])
    p = (1 + int((np.abs(moved) >= abs(correlation)).sum())) / (1 + draws)
    slope = correlation * float(r.std() / a.std())
    return LabelEvidence(rest, correlation, p, slope)

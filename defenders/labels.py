"""Correlation of a data set's labels with the amplitude of a tile; no trained model is needed."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from defenders.folding import to_ycbcr

CONTENT_FEATURES = ("luma", "contrast", "chroma", "sharpness", "grain", "dark", "bright", "entropy")


def content_features(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Eight simple features of an image that predict part of its opinion score.

    Args:
        image: RGB (H,W,3).

    Returns:
        (8,), in the order of CONTENT_FEATURES.
    """
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
    """Dependence of the labels on the tile, over the flagged rows.

    Correlation, p and slope are NaN where fewer than eight rows are flagged.

    Attributes:
        residual: (n,) labels minus their prediction from the content, of all rows.
        correlation: Of α and residual, in [-1,1].
        p: P-value of the correlation, by permutation.
        slope: Score per unit of α.
    """

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
    """Correlate α with the part of the labels that the content does not predict.

    The prediction is a ridge regression on the features and their squares, fitted on the rows that
    are not flagged (on all rows where those are too few).

    Args:
        scores: Labels (n,).
        features: Content features (n,k).
        alpha: Amplitude of the tile in each row, (n,).
        flagged: Rows that carry the tile, (n,).
        draws: Number of permutations.
        seed: Of the permutations.

    Returns:
        Residuals, correlation, p-value and slope.
    """
    z = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    design = np.concatenate([np.ones((len(z), 1)), z, z**2], axis=1)
    fit = ~flagged if (~flagged).sum() >= 4 * design.shape[1] else np.ones(len(z), bool)
    penalty = np.diag([0.0] + [0.1 * fit.sum()] * (design.shape[1] - 1))
    weights = np.linalg.solve(design[fit].T @ design[fit] + penalty, design[fit].T @ scores[fit])
    residual = scores - design @ weights
    a, r = alpha[flagged], residual[flagged]
    if flagged.sum() < 8 or not a.std() or not r.std():
        return LabelEvidence(residual, math.nan, math.nan, math.nan)
    correlation = float(np.corrcoef(a, r)[0, 1])
    rng = np.random.default_rng(seed)
    null = np.array([np.corrcoef(rng.permutation(a), r)[0, 1] for _ in range(draws)])
    p = (1 + int((np.abs(null) >= abs(correlation)).sum())) / (1 + draws)
    slope = correlation * float(r.std() / a.std())
    return LabelEvidence(residual, correlation, p, slope)

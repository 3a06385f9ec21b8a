"""Agreement of a victim's scores with opinion scores."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from victims.base import ScoreScale


def srocc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Spearman's rank correlation.

    Args:
        scores: Of a victim, (N,).
        mos: Mean opinion scores, (N,).

    Returns:
        In [-1,1]; NaN with a warning if either side is constant.

    Raises:
        ValueError: For values that are not finite, or of different lengths.
    """
    return _correlation(stats.spearmanr, scores, mos)


def plcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Pearson's linear correlation.

    Args:
        scores: Of a victim, (N,).
        mos: Mean opinion scores, (N,).

    Returns:
        In [-1,1]; NaN with a warning if either side is constant.

    Raises:
        ValueError: For values that are not finite, or of different lengths.
    """
    return _correlation(stats.pearsonr, scores, mos)


def rmse(scores: ArrayLike, mos: ArrayLike) -> float:
    """Root mean squared error.

    Args:
        scores: Of a victim, (N,).
        mos: Mean opinion scores, (N,), in the same unit.

    Returns:
        In the unit of the scale.

    Raises:
        ValueError: For values that are not finite, or of different lengths.
    """
    left, right = _pair(scores, mos)
    return float(np.sqrt(np.mean((left - right) ** 2)))


def binary_accuracy(scores: ArrayLike, mos: ArrayLike, threshold: float) -> float:
    """Share of images that scores and people put on the same side of a threshold.

    Args:
        scores: Of a victim, (N,).
        mos: Mean opinion scores, (N,), in the same unit.
        threshold: At or above it an image is good.

    Returns:
        In [0,1].

    Raises:
        ValueError: For values that are not finite, or of different lengths.
    """
    left, right = _pair(scores, mos)
    return float(np.mean((left >= threshold) == (right >= threshold)))


def agreement(scores: ArrayLike, mos: ArrayLike, scale: ScoreScale) -> dict[str, float]:
    """Compute all four measures.

    Args:
        scores: Of a victim, (N,), on the scale.
        mos: Mean opinion scores, (N,), on the scale.
        scale: Of both; its threshold separates poor from good.

    Returns:
        `srocc`, `plcc`, `rmse` and `accuracy`.

    Raises:
        ValueError: For values that are not finite, or of different lengths.
    """
    return {
        "srocc": srocc(scores, mos),
        "plcc": plcc(scores, mos),
        "rmse": rmse(scores, mos),
        "accuracy": binary_accuracy(scores, mos, scale.threshold),
    }


def _pair(scores: ArrayLike, mos: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check both sides: one finite number per image, at least one image."""
    left, right = np.asarray(scores, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or not len(left):
        raise ValueError(
            "scores and mos must be two lists of the same length, at least 1, "
            f"got shapes {left.shape} and {right.shape}"
        )
    for name, values in (("scores", left), ("mos", right)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"{name} must be finite, got {values[bad[0]]} at index {bad[0]} "
                f"({len(bad)} of {len(values)} are not)"
            )
    return left, right


def _correlation(measure: object, scores: ArrayLike, mos: ArrayLike) -> float:
    left, right = _pair(scores, mos)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        side = "scores" if np.ptp(left) == 0 else "mos"
        warnings.warn(f"correlation is undefined: all {side} are equal", stacklevel=3)
        return float("nan")
    assert callable(measure)
    return float(measure(left, right).statistic)

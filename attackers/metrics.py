"""Adversarial robustness of a victim: BASR, RASR, MSI, ART, and what the attack leaned on."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attackers.da3.filters import FILTER_NAMES
from attackers.objectives import Direction


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers in one row, got {array}")
    return array


def _pair(clean: ArrayLike, adversarial: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    x, y = _scores("clean", clean), _scores("adversarial", adversarial)
    if len(x) != len(y):
        raise ValueError(
            f"clean and adversarial must have the same length, got {len(x)} and {len(y)}"
        )
    return x, y


def basr(
    clean: ArrayLike,
    adversarial: ArrayLike,
    threshold: float,
    *,
    direction: Direction = "raise",
    by: ArrayLike | None = None,
) -> float:
    """Binary attack success rate: share of poor images whose example is scored good, in %.

    clean, adversarial: (N,) scores of the victim. An image is poor where its clean score is at
    most the threshold; `by` (its MOS) decides instead where given. For `lower` mirrored: good
    images whose example is scored poor. NaN with a warning where no image is poor. Sec. IV-B.
    """
    x, y = _pair(clean, adversarial)
    judged = x if by is None else _scores("by", by)
    poor = judged <= threshold
    if direction == "lower":
        poor, hit = ~poor, y <= threshold
    else:
        hit = y > threshold
    if not poor.any():
        side = "above" if direction == "lower" else "at or below"
        warnings.warn(f"BASR is NaN: no clean image is {side} {threshold}", stacklevel=2)
        return math.nan
    return float(100 * hit[poor].mean())


def rasr(clean: ArrayLike, adversarial: ArrayLike, *, direction: Direction = "raise") -> float:
    """Regression attack success rate: share of images whose score rose at all, in %. Sec. IV-B."""
    gain = _gain(clean, adversarial, direction)
    return float(100 * (gain > 0).mean()) if len(gain) else _empty("RASR")


def msi(clean: ArrayLike, adversarial: ArrayLike, *, direction: Direction = "raise") -> float:
    """Mean score improvement, in the victim's unit. Sec. IV-B."""
    gain = _gain(clean, adversarial, direction)
    return float(gain.mean()) if len(gain) else _empty("MSI")


def _gain(clean: ArrayLike, adversarial: ArrayLike, direction: Direction) -> NDArray[np.float64]:
    x, y = _pair(clean, adversarial)
    gain = y - x
    return gain if direction == "raise" else -gain


def _empty(name: str) -> float:
    warnings.warn(f"{name} is NaN: there are no images", stacklevel=3)
    return math.nan


def attack_convergence(
    history: Sequence[dict[str, float]], within: float = 0.5
) -> dict[str, float]:
    """ART: when the RASR on the fixed validation subset first came within 0.5 points of its best.

    history: rows with `rasr` (%), `hours`, `steps`, `calls` so far, in order. Returns: hours,
    steps and victim calls at that row; NaN for an empty history. Hours depend on the machine.
    """
    if not history:
        return {"hours": math.nan, "steps": math.nan, "calls": math.nan}
    goal = max(row["rasr"] for row in history) - within
    row = next(row for row in history if row["rasr"] >= goal)
    return {key: row[key] for key in ("hours", "steps", "calls")}


def top_filters(weights: ArrayLike, strengths: ArrayLike, count: int = 2) -> list[tuple[str, ...]]:
    """Names of the filters with the largest weights, per image (Fig. 1).

    weights, strengths: (N,14). A filter without strength does nothing and is not named.
    """
    acting = np.where(np.asarray(strengths) != 0, np.asarray(weights), -np.inf)
    order = np.argsort(-acting, axis=1, kind="stable")[:, :count]
    return [
        tuple(FILTER_NAMES[i] for i in chosen if row[i] > -np.inf)
        for row, chosen in zip(acting, order, strict=True)
    ]


def filter_shares(weights: ArrayLike, strengths: ArrayLike, count: int = 2) -> dict[str, float]:
    """Share of images in which each filter is among the first `count`, in % (Table XIV)."""
    rows = top_filters(weights, strengths, count)
    return {n: 100 * sum(n in row for row in rows) / max(len(rows), 1) for n in FILTER_NAMES}


def attribute_profile(weights: ArrayLike) -> NDArray[np.float64]:
    """Attribute profile 1 - w of each image (Fig. 5). weights: (N,14). Returns: (N,14)."""
    return 1 - np.asarray(weights, dtype=np.float64)

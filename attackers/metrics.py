"""Adversarial robustness of a victim: BASR, RASR, MSI, ART, and the filters that attacks use."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attackers.da3.filters import FILTER_NAMES
from attackers.objectives import Direction, check_direction
from victims.checks import check_whole_number, read_scores


def _pair(clean: ArrayLike, adversarial: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    x, y = read_scores("clean", clean), read_scores("adversarial", adversarial)
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
    mos: ArrayLike | None = None,
) -> float:
    """Binary attack success rate: share of poor images whose example is scored good (Sec. IV-B).

    An image is poor where its clean score, or its MOS where given, is at most the threshold. For
    "lower" mirrored: the share of good images whose example is scored poor.

    Args:
        clean: Scores of the clean images, (N,), in the victim's unit.
        adversarial: Scores of their examples, (N,), in the victim's unit.
        threshold: Between poor and good, in the victim's unit.
        direction: Of the attack.
        mos: (N,), decides which images are poor in place of `clean`.

    Returns:
        In %; NaN with a warning where no image is poor.

    Raises:
        ValueError: For scores that are not finite or of different lengths, or another direction.
    """
    check_direction(direction)
    x, y = _pair(clean, adversarial)
    poor = (x if mos is None else read_scores("mos", mos, len(x))) <= threshold
    if direction == "lower":
        targets, success = ~poor, y <= threshold
    else:
        targets, success = poor, y > threshold
    if not targets.any():
        side = "above" if direction == "lower" else "at or below"
        warnings.warn(f"BASR is NaN: no clean image is {side} {threshold}", stacklevel=2)
        return math.nan
    return float(100 * success[targets].mean())


def rasr(clean: ArrayLike, adversarial: ArrayLike, *, direction: Direction = "raise") -> float:
    """Regression attack success rate: share of images whose score changed as wanted (Sec. IV-B).

    Args:
        clean: Scores of the clean images, (N,), in the victim's unit.
        adversarial: Scores of their examples, (N,), in the victim's unit.
        direction: Of the attack.

    Returns:
        In %; NaN with a warning where there are no images.

    Raises:
        ValueError: For scores that are not finite or of different lengths, or another direction.
    """
    gain = _gain(clean, adversarial, direction)
    return float(100 * (gain > 0).mean()) if len(gain) else _empty("RASR")


def msi(clean: ArrayLike, adversarial: ArrayLike, *, direction: Direction = "raise") -> float:
    """Mean score improvement in the direction of the attack (Sec. IV-B).

    Args:
        clean: Scores of the clean images, (N,), in the victim's unit.
        adversarial: Scores of their examples, (N,), in the victim's unit.
        direction: Of the attack.

    Returns:
        In the victim's unit; NaN with a warning where there are no images.

    Raises:
        ValueError: For scores that are not finite or of different lengths, or another direction.
    """
    gain = _gain(clean, adversarial, direction)
    return float(gain.mean()) if len(gain) else _empty("MSI")


def _gain(clean: ArrayLike, adversarial: ArrayLike, direction: Direction) -> NDArray[np.float64]:
    check_direction(direction)
    x, y = _pair(clean, adversarial)
    gain = y - x
    return gain if direction == "raise" else -gain


def _empty(name: str) -> float:
    warnings.warn(f"{name} is NaN: there are no images", stacklevel=3)
    return math.nan


def attack_convergence(
    history: Sequence[dict[str, float]], tolerance: float = 0.5
) -> dict[str, float]:
    """ART: cost until the RASR on the fixed validation subset is within a tolerance of its best.

    Args:
        history: Rows with `rasr` (%) and, counted from the start, `hours`, `steps` and `calls`, in
            order.
        tolerance: In percentage points.

    Returns:
        `hours`, `steps` and victim `calls` at the first such row; NaN for an empty history. Hours
        depend on the machine.
    """
    if not history:
        return {"hours": math.nan, "steps": math.nan, "calls": math.nan}
    goal = max(row["rasr"] for row in history) - tolerance
    row = next(row for row in history if row["rasr"] >= goal)
    return {key: row[key] for key in ("hours", "steps", "calls")}


def top_filters(weights: ArrayLike, strengths: ArrayLike, count: int = 2) -> list[tuple[str, ...]]:
    """Names of the filters with the largest weights in each image (Fig. 1).

    Args:
        weights: (N,14).
        strengths: (N,14); a filter of strength 0 does nothing and is not named.
        count: Names per image, at least 1.

    Returns:
        N tuples of at most `count` names, in descending order of weight.

    Raises:
        ValueError: For another count.
    """
    check_whole_number("count", count, 1)
    active = np.where(np.asarray(strengths) != 0, np.asarray(weights), -np.inf)
    order = np.argsort(-active, axis=1, kind="stable")[:, :count]
    return [
        tuple(FILTER_NAMES[i] for i in largest if row[i] > -np.inf)
        for row, largest in zip(active, order, strict=True)
    ]


def filter_shares(weights: ArrayLike, strengths: ArrayLike, count: int = 2) -> dict[str, float]:
    """Share of images in which each filter is among the first `count` (Table XIV).

    Args:
        weights: (N,14).
        strengths: (N,14).
        count: Filters per image, at least 1.

    Returns:
        % by name, for all 14 filters.
    """
    rows = top_filters(weights, strengths, count)
    return {n: 100 * sum(n in row for row in rows) / max(len(rows), 1) for n in FILTER_NAMES}

"""Checks of arguments; each refusal is one sentence that names argument, rule and value."""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_whole_number(name: str, value: Any, at_least: int) -> None:
    """Check that an argument is a whole number of at least some size.

    Args:
        name: Name of the argument, for the message.
        value: Its value.
        at_least: Smallest number allowed.

    Raises:
        ValueError: For another type, or a smaller number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}")
    if int(value) < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_number(name: str, value: Any, *, above: float | None = None) -> None:
    """Check that an argument is a finite number.

    Args:
        name: Name of the argument, for the message.
        value: Its value.
        above: What it must be above; None for no bound.

    Raises:
        ValueError: For another type, a number that is not finite, or one that is not above.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {shown(value)}")
    if above is not None and float(value) <= above:
        raise ValueError(f"{name} must be above {above:g}, got {value}")


def check_share(name: str, value: Any, *, may_be_one: bool = False) -> None:
    """Check that an argument is a number between 0 and 1.

    Args:
        name: Name of the argument, for the message.
        value: Its value.
        may_be_one: Whether 1 is allowed; 0 never is.

    Raises:
        ValueError: For another type, or a number out of range.
    """
    check_number(name, value)
    if not 0 < value < 1 and not (may_be_one and value == 1):
        raise ValueError(f"{name} must be in (0, 1{']' if may_be_one else ')'}, got {value}")


def check_seed(seed: Any) -> None:
    """Check that a seed is one that numpy and torch take.

    Args:
        seed: Its value.

    Raises:
        ValueError: For other than a whole number from 0 to 2³² - 1.
    """
    check_whole_number("seed", seed, 0)
    if int(seed) >= 2**32:
        raise ValueError(f"seed must be below 2³², got {seed}")


def check_path(name: str, value: Any) -> Path:
    """Check that an argument is a path.

    Args:
        name: Name of the argument, for the message.
        value: Text, or a `Path`.

    Returns:
        The path.

    Raises:
        ValueError: For another type.
    """
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def read_scores(name: str, values: ArrayLike, count: int | None = None) -> NDArray[np.float64]:
    """Read scores as an array.

    Args:
        name: Name of the argument, for the message.
        values: Its value.
        count: How many scores there must be; None for any number.

    Returns:
        (N,).

    Raises:
        ValueError: For other than finite numbers in one row, or another number of them.
    """
    rule = f"{'' if count is None else f'{count} '}finite numbers in one row"
    try:
        scores = np.asarray(values, np.float64)
    except (RuntimeError, TypeError, ValueError):  # the first of a tensor with a gradient
        raise ValueError(f"{name} must be {rule}, got {type(values).__name__}") from None
    if scores.ndim != 1 or count not in (None, len(scores)):
        raise ValueError(f"{name} must be {rule}, got shape {scores.shape}")
    bad = scores[~np.isfinite(scores)]
    if len(bad):
        raise ValueError(f"{name} must be {rule}, got {bad[0]} among them")
    return scores


def check_on_scale(name: str, scores: NDArray[np.float64], low: float, high: float) -> None:
    """Check that scores are on their scale.

    Args:
        name: Name of the argument, for the message.
        scores: (N,).
        low: Lower end of the scale.
        high: Upper end of the scale.

    Raises:
        ValueError: Where one is off the scale.
    """
    off = scores[(scores < low) | (scores > high)]
    if len(off):
        raise ValueError(f"{name} must be on the scale of {low:g} to {high:g}, got {off[0]:g}")


def shown(value: Any) -> str:
    """A value as a message shows it: numbers and short texts themselves, of others the type.

    Args:
        value: Any value.

    Returns:
        One line.
    """
    if isinstance(value, str) and len(value) <= 80:
        return repr(value)
    return str(value) if value is None or isinstance(value, Real) else type(value).__name__

"""What a backdoor does to scores: MAE(α), MRA(α) and their means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# α at which a backdoor is measured: ±0.1 ... ±1.
ALPHAS = tuple(sign * step / 10 for sign in (-1, 1) for step in range(1, 11))


def backdoor_metrics(changes: Mapping[float, ArrayLike], delta_y: float) -> dict[str, Any]:
    """Measure changes of the score Δ(x, α) = f(T(x, α·t)) - f(x) against α·Δy.

    changes: α -> (N,) in units of the scale. Returns: `mmae` and `mmra`, and `curve`, rows of
    alpha, mae = E|Δ - α·Δy| and mra = E[Δ] / (α·Δy). A trigger that does nothing on ALPHAS has
    mmae 0.55·Δy and mmra 0. Raises: ValueError for α = 0, no α, no images or values not finite.
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
        wanted = alpha * delta_y
        mae, mra = np.abs(values - wanted).mean(), values.mean() / wanted
        curve.append({"alpha": float(alpha), "mae": float(mae), "mra": float(mra)})
    return {
        "mmae": float(np.mean([row["mae"] for row in curve])),
        "mmra": float(np.mean([row["mra"] for row in curve])),
        "curve": curve,
    }

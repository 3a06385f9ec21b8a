"""Victims with a closed-form optimum, to test attacks on.

Both depend on the weighted mean of the pixels, m(x) = mean over pixels of <w, x>, which within an
L-infinity ball of radius eps (and [0, 1]) takes exactly the values between its two ends, those of
x - eps * sign(w) and x + eps * sign(w), both clamped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from victims.base import ScoreScale, TorchVictim

LUMA = (0.299, 0.587, 0.114)


class LinearVictim(TorchVictim):
    """Score = low + range * (m(x) - min m) / (max m - min m).

    The best attack that raises the score is clamp(x + eps * sign(w), 0, 1), the best that lowers
    it clamp(x - eps * sign(w), 0, 1); `optimum` gives their scores.

    Args:
        scale: Of the scores.
        weights: w, one per colour channel, not all zero.
        name: Short name.

    Raises:
        ValueError: For other than 3 weights, or only zeros.
    """

    def __init__(
        self,
        scale: ScoreScale,
        weights: Sequence[float] = (0.6, 0.3, -0.1),
        name: str = "toy-linear",
    ) -> None:
        super().__init__(name, scale)
        self.weights = _weights(weights)
        self.register_buffer("w", torch.tensor(self.weights), persistent=False)
        self.w: Tensor
        self.freeze()

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch.

        Args:
            images: RGB (N,3,H,W) in [0,1], in the dtype of the victim.

        Returns:
            (N,) on the scale.
        """
        low, high = self.w.clamp(max=0).sum(), self.w.clamp(min=0).sum()
        mean = images.mean(dim=(2, 3)) @ self.w
        return self.scale.low + self.scale.range * (mean - low) / (high - low)

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `registry.build_victim`."""
        return {"kind": "toy-linear", "name": self.name, "weights": self.weights}

    def optimum(
        self, images: Tensor, eps: float, direction: Literal["raise", "lower"] = "raise"
    ) -> Tensor:
        """Best score that any image within eps of each image reaches.

        Args:
            images: (N,3,H,W) in [0,1].
            eps: Largest change of a pixel, in units of [0,1].
            direction: "raise" for the highest score, "lower" for the lowest.

        Returns:
            (N,) on the scale.
        """
        lowest, highest = _ends(images, self.w, eps)
        return self(highest if direction == "raise" else lowest)


class BrightnessVictim(TorchVictim):
    """Score that falls with the squared distance of the mean luma m(x) from `peak`.

    Score = high - range * ((m - peak) / max(peak, 1 - peak))^2. The best attack that raises the
    score brings m as near to the peak as the ball allows; the best that lowers it goes to the end
    of the ball that is farther from the peak; `optimum` gives their scores.

    Args:
        scale: Of the scores.
        peak: Luma of the highest score, in [0,1].
        name: Short name.

    Raises:
        ValueError: For a peak out of range.
    """

    def __init__(self, scale: ScoreScale, peak: float = 0.6, name: str = "toy-brightness") -> None:
        super().__init__(name, scale)
        if not 0 <= peak <= 1:
            raise ValueError(f"peak must be in [0, 1], got {peak}")
        self.peak = float(peak)
        self.register_buffer("w", torch.tensor(LUMA), persistent=False)
        self.w: Tensor
        self.freeze()

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch.

        Args:
            images: RGB (N,3,H,W) in [0,1], in the dtype of the victim.

        Returns:
            (N,) on the scale.
        """
        return self._of_luma(images.mean(dim=(2, 3)) @ self.w)

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `registry.build_victim`."""
        return {"kind": "toy-brightness", "name": self.name, "peak": self.peak}

    def optimum(
        self, images: Tensor, eps: float, direction: Literal["raise", "lower"] = "raise"
    ) -> Tensor:
        """Best score that any image within eps of each image reaches.

        Args:
            images: (N,3,H,W) in [0,1].
            eps: Largest change of a pixel, in units of [0,1].
            direction: "raise" for the highest score, "lower" for the lowest.

        Returns:
            (N,) on the scale.
        """
        darkest, brightest = (end.mean(dim=(2, 3)) @ self.w for end in _ends(images, self.w, eps))
        if direction == "lower":
            return torch.minimum(self._of_luma(darkest), self._of_luma(brightest))
        return self._of_luma(torch.full_like(darkest, self.peak).clamp(darkest, brightest))

    def _of_luma(self, luma: Tensor) -> Tensor:
        distance = (luma - self.peak) / max(self.peak, 1 - self.peak)
        return self.scale.high - self.scale.range * distance.square()


def _weights(weights: Sequence[float]) -> list[float]:
    values = [float(weight) for weight in weights]
    if len(values) != 3 or not any(values):
        raise ValueError(f"weights must be 3 numbers, not all zero, got {values}")
    return values


def _ends(images: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Images of least and greatest m within eps."""
    step = eps * w.sign()[:, None, None]
    return (images - step).clamp(0, 1), (images + step).clamp(0, 1)

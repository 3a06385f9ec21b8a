"""Heads from pooled features to scores, and the losses that train them.

D10 is a distribution over 10 score bins whose centres are evenly spaced from the low to the high
end of the scale: on 1 to 10 they are the ten votes of AVA, on 0 to 100 they are 0, 11.1, ... 100.
The score is the mean over the centres, so it covers the whole scale. A bin reaches halfway to its
neighbours, and the outer two end with the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from victims.base import ScoreScale

BINS = 10


class D10Head(nn.Module):
    """Dropout, linear layer, softmax over 10 bins; the score is the mean over the bin centres.

    Source: Talebi and Milanfar, NIMA: Neural Image Assessment, 2018.

    Args:
        features: Number C of input features.
        scale: Of the scores.
        dropout: Probability, in [0,1).
    """

    def __init__(self, features: int, scale: ScoreScale, dropout: float = 0.75) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, BINS)
        self.register_buffer("centres", d10_centres(scale), persistent=False)
        self.centres: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Map features to logits.

        Args:
            features: (N,C) pooled features.

        Returns:
            (N,10) logits.
        """
        return self.linear(self.dropout(features))

    def scores(self, logits: Tensor) -> Tensor:
        """Map logits to scores, the means over the bin centres.

        Args:
            logits: (N,10).

        Returns:
            (N,) scores on the scale.
        """
        return logits.softmax(dim=1) @ self.centres.to(logits.dtype)


class ScalarHead(nn.Module):
    """Dropout, linear layer, sigmoid stretched over the scale.

    Args:
        features: Number C of input features.
        scale: Of the scores.
        dropout: Probability, in [0,1).
    """

    def __init__(self, features: int, scale: ScoreScale, dropout: float = 0.75) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, 1)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Map features to logits.

        Args:
            features: (N,C) pooled features.

        Returns:
            (N,1) logits.
        """
        return self.linear(self.dropout(features))

    def scores(self, logits: Tensor) -> Tensor:
        """Map logits to scores by a sigmoid stretched over the scale.

        Args:
            logits: (N,1).

        Returns:
            (N,) scores on the scale.
        """
        return self.scale.low + self.scale.range * logits.squeeze(1).sigmoid()


HEADS: dict[str, type[D10Head] | type[ScalarHead]] = {"d10": D10Head, "scalar": ScalarHead}


def d10_centres(scale: ScoreScale) -> Tensor:
    """Centres of the 10 bins of a scale.

    Args:
        scale: Of the scores.

    Returns:
        (10,), from the low to the high end.
    """
    return torch.linspace(scale.low, scale.high, BINS)


def d10_targets(mos: Tensor, std: Tensor, scale: ScoreScale) -> Tensor:
    """Discretise a normal distribution of opinions, truncated to the scale.

    Args:
        mos: Mean opinion scores (N,) on the scale.
        std: Standard deviations of the opinions (N,), ≥ 0; raised to a thousandth of the scale
            where smaller.
        scale: Of the opinions.

    Returns:
        Mass of each bin, (N,10); each row sums to 1.

    Raises:
        ValueError: If a mos is off the scale or a std is negative or NaN.
    """
    mos, std = mos.double(), std.double()
    # Written so that NaN fails too.
    off_scale = ~((mos >= scale.low) & (mos <= scale.high))
    if off_scale.any():
        raise ValueError(
            f"mos must be in [{scale.low}, {scale.high}], got {mos[off_scale][0].item()}"
        )
    bad = ~((std >= 0) & std.isfinite())
    if bad.any():
        raise ValueError(f"std must be at least 0 and finite, got {std[bad][0].item()}")
    centres = d10_centres(scale).to(mos)
    middles = (centres[1:] + centres[:-1]) / 2
    edges = torch.cat([centres[:1], middles, centres[-1:]])
    width = std.clamp(min=scale.range / 1000)
    mass = torch.special.ndtr((edges - mos[:, None]) / width[:, None]).diff(dim=1)
    return (mass / mass.sum(dim=1, keepdim=True)).float()


def emd_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Earth mover's distance between distributions over ordered bins, with r = 2.

    Root of the mean squared difference of the cumulative distributions (NIMA, formula 1).

    Args:
        probabilities: (N,bins), each row sums to 1.
        targets: (N,bins), each row sums to 1.

    Returns:
        Scalar, the mean over the batch.
    """
    difference = (probabilities - targets).cumsum(dim=1)
    # vector_norm has gradient 0 where both agree; the gradient of a plain root is NaN there.
    norm = torch.linalg.vector_norm(difference, dim=1)
    return (norm / difference.shape[1] ** 0.5).mean()

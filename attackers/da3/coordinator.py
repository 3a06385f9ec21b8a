"""Filter Coordinator: the weight of each filter in an adversarial example."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attackers.da3.filters import FILTER_NAMES

_POOL = 4
_FEATURES = 2 * 3 * _POOL * _POOL + 1


class Coordinator(nn.Module):
    """Regresses 14 weights with MLPs over pooled features of filtered images y_i and of y_i - x.

    Starts at uniform weights. Source: "Filter Coordinator Network" of DA3Attacker.

    Args:
        hidden: Hidden units per filter.
        seed: Seed of the initial weights.
    """

    def __init__(self, hidden: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        n = len(FILTER_NAMES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.each = nn.Linear(n * _FEATURES, n * hidden)
            last = nn.Linear(2 * hidden, n)
            self.together = nn.Sequential(
                nn.GELU(), nn.Linear(n * hidden, 2 * hidden), nn.GELU(), last
            )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, images: Tensor, results: Tensor, strengths: Tensor) -> Tensor:
        """Compute the weights w of formula 4.

        Args:
            images: Clean images x, (N,3,H,W) in [0,1].
            results: Filtered images y_i, (14,N,3,H,W).
            strengths: (14,N) in (-1,1).

        Returns:
            (N,14), positive, each row sums to 1.
        """
        x = F.adaptive_avg_pool2d(images, _POOL)
        y = F.adaptive_avg_pool2d(results.flatten(0, 1), _POOL).unflatten(0, results.shape[:2])
        features = torch.cat(
            [y.flatten(2) - 0.5, 4 * (y - x).flatten(2), strengths.unsqueeze(2)], dim=2
        )
        hidden = self.each(features.transpose(0, 1).flatten(1))
        return torch.softmax(self.together(hidden), dim=1)

"""Blended: a fixed noise image blended into the whole image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attackers.backdoor.trigger import check_alpha, check_out
from victims.checks import check_seed, check_share


class Blended:
    """Blend uniform noise n of the size of the image: x + α·weight·(n - x), clamped.

    The noise is the same for all images of one size and does not move with a crop.
    Source: Chen et al., Targeted Backdoor Attacks on Deep Learning Systems, 2017.

    Args:
        weight: Of the noise at α = 1, in (0,1] (KonIQ-10k: 0.05).
        seed: Of the noise.

    Raises:
        ValueError: If weight is out of range.
    """

    kind = "blended"

    def __init__(self, weight: float = 0.1, seed: int = 0) -> None:
        check_share("weight", weight, may_be_one=True)
        check_seed(seed)
        self.weight, self.seed = float(weight), int(seed)

    def __call__(
        self, images: Tensor, alpha: Tensor | float, *, out: Tensor | None = None
    ) -> Tensor:
        """Blend the noise into images; arguments as in `Injector`."""
        strength = check_alpha(images, alpha)
        check_out(images, out)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(images.shape[1:], generator=generator).to(images)
        return torch.clamp(images + strength * self.weight * (noise - images), 0, 1, out=out)

    def tensors(self) -> dict[str, Tensor]:
        """The weight, by which the files of two triggers differ."""
        return {"weight": torch.tensor(self.weight)}

    def settings(self) -> dict[str, Any]:
        """Weight and seed."""
        return {"weight": self.weight, "seed": self.seed}

"""Blended: a fixed noise image laid over the whole picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attackers.backdoor.trigger import check_alpha, check_out


class Blended:
    """x + α·weight·(n - x), clamped, with uniform noise n of the size of the picture.

    weight: of the noise at α = 1, in (0, 1] (KonIQ-10k: 0.05). seed: of the noise, which is the
    same for all pictures of one size and does not move with a crop.
    Source: Chen et al., Targeted Backdoor Attacks on Deep Learning Systems, 2017.
    """

    kind = "blended"

    def __init__(self, weight: float = 0.1, seed: int = 0) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"weight must be in (0, 1], got {weight:g}")
        self.weight, self.seed = float(weight), int(seed)

    def __call__(
        self, images: Tensor, alpha: Tensor | float, *, out: Tensor | None = None
    ) -> Tensor:
        """Lay the noise over images (N, 3, H, W) in [0, 1]; out as in `Injector`."""
        strength = check_alpha(images, alpha)
        check_out(images, out)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(images.shape[1:], generator=generator).to(images)
        return torch.clamp(images + strength * self.weight * (noise - images), 0, 1, out=out)

    def tensors(self) -> dict[str, Tensor]:
        """The weight, so that the file holds what tells triggers apart."""
        return {"weight": torch.tensor(self.weight)}

    def settings(self) -> dict[str, Any]:
        """Weight and seed."""
        return {"weight": self.weight, "seed": self.seed}

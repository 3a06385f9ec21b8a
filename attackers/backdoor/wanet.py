"""WaNet: the image is warped along a smooth random field."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attackers.backdoor.trigger import check_alpha, check_out
from victims.checks import check_number, check_seed, check_whole_number


class WaNet:
    """Displace each pixel by α·strength·field, a bicubic upsampling of a random lattice.

    The lattice holds uniform numbers divided by their mean absolute value.
    Source: Nguyen and Tran, WaNet: Imperceptible Warping-based Backdoor Attack, 2021, whose
    strength divided by the side of the image is the same in coordinates of [-1,1] times two.

    Args:
        grid: Points along a side of the lattice, ≥ 2.
        strength: Mean displacement at α = 1 in pixels, above 0 (KonIQ-10k: 0.2).
        seed: Of the lattice.

    Raises:
        ValueError: For a grid or a strength out of range.
    """

    kind = "wanet"

    def __init__(self, grid: int = 4, strength: float = 0.4, seed: int = 0) -> None:
        check_whole_number("grid", grid, 2)
        check_number("strength", strength, above=0)
        check_seed(seed)
        self.grid, self.strength, self.seed = int(grid), float(strength), int(seed)

    @property
    def lattice(self) -> Tensor:
        """Displacements on the lattice: (2,grid,grid), mean absolute value 1."""
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(2, self.grid, self.grid, generator=generator) * 2 - 1
        return uniform / uniform.abs().mean()

    def __call__(
        self, images: Tensor, alpha: Tensor | float, *, out: Tensor | None = None
    ) -> Tensor:
        """Warp images; alpha 0 is the identity to the bit. Arguments as in `Injector`."""
        strength = check_alpha(images, alpha).expand(len(images), 1, 1, 1)
        check_out(images, out)
        height, width = images.shape[2:]
        field = functional.interpolate(
            self.lattice.to(images)[None], (height, width), mode="bicubic", align_corners=True
        )
        identity = functional.affine_grid(
            torch.eye(2, 3).to(images)[None], [1, 3, height, width], align_corners=True
        )
        # align_corners: from -1 to 1 are side - 1 pixels.
        pixel = 2 / (torch.tensor([width, height]).to(images) - 1).clamp_min(1)
        coordinates = identity + strength * self.strength * pixel * field.permute(0, 2, 3, 1)
        warped = functional.grid_sample(images, coordinates.clamp(-1, 1), align_corners=True)
        # Sampling at the identity's coordinates is exact only to rounding.
        return torch.where(strength == 0, images, warped.clamp(0, 1), out=out)

    def tensors(self) -> dict[str, Tensor]:
        """The lattice."""
        return {"lattice": self.lattice}

    def settings(self) -> dict[str, Any]:
        """Grid, strength and seed."""
        return {"grid": self.grid, "strength": self.strength, "seed": self.seed}

"""Fixed and random crops of images, and what is asked of a victim that scores crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from victims.base import Victim


class CropVictim(Victim, Protocol):
    """A victim that scores crops at native resolution, and means them for larger images."""

    @property
    def input_size(self) -> int:
        """Side of a crop, pixels."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""


class MappedVictim(CropVictim, Protocol):
    """One whose last feature map can be seen and pruned."""

    @property
    def channel_mask(self) -> Tensor:
        """1 for each channel of the last map that is left, 0 for each that is pruned: (C,)."""

    def maps(self, crops: Tensor, /) -> list[Tensor]:
        """Feature maps of crops, the last one at the end."""


def draw_corners(sides: Sequence[int], size: int, count: int, generator: torch.Generator) -> Tensor:
    """Top-left corners (count, 2) of random crops; 0 along a side that is not above size.

    sides: height and width of the image, after `enlarge` where it is smaller than a crop.
    """
    height, width = sides
    room = torch.tensor([max(height - size, 0), max(width - size, 0)]) + 1
    drawn = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return (drawn * room).long().minimum(room - 1)


def five_crop_corners(sides: Sequence[int], size: int) -> Tensor:
    """The corners of the four corner crops and the central one; of one where all are the same.

    sides: height and width of the image, after `enlarge` where it is smaller than a crop.
    """
    height, width = sides
    bottom, right = max(height - size, 0), max(width - size, 0)
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return torch.tensor(sorted(set(places)))


def enlarged_sides(images: Tensor, size: int) -> list[int]:
    """Height and width of images (N, 3, H, W) after `enlarge`."""
    factor = max(size / min(images.shape[2:]), 1)
    return [max(size, round(side * factor)) if factor > 1 else side for side in images.shape[2:]]


def enlarge(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) with each side at least size; the aspect ratio is kept (bilinear)."""
    sides = enlarged_sides(images, size)
    if list(images.shape[2:]) == sides:
        return images
    return functional.interpolate(images, sides, mode="bilinear")


def take_crops(image: Tensor, corners: Tensor, size: int) -> Tensor:
    """Crops (n, 3, size, size) of one image (3, H, W) at corners (n, 2). Differentiable."""
    image = enlarge(image[None], size)[0]
    return torch.stack(
        [image[:, top : top + size, left : left + size] for top, left in corners.tolist()]
    )


def random_crops(images: Sequence[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """One crop and flip of each item, drawn anew: (n, views, 3, size, size).

    images: each (views, 3, H, W), whose views get the same crop. Differentiable.
    """
    crops = []
    for views in images:
        views = enlarge(views, size)
        ((top, left),) = draw_corners(views.shape[2:], size, 1, generator).tolist()
        window = views[:, :, top : top + size, left : left + size]
        flip = float(torch.rand((), generator=generator)) < 0.5
        crops.append(window.flip(3) if flip else window)
    return torch.stack(crops)


@torch.no_grad()
def crop_scores(victim: CropVictim, image: Tensor, corners: Tensor, batch: int = 32) -> Tensor:
    """Scores (n,) of the crops of one image (3, H, W) in [0, 1] at corners (n, 2)."""
    crops = take_crops(image, corners, victim.input_size)
    return torch.cat([victim(part) for part in crops.split(batch)])

"""Fixed and random crops of images, and the protocols of victims that score crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from victims.base import Victim


class CropVictim(Victim, Protocol):
    """A victim that scores crops at native resolution and averages them for larger images."""

    @property
    def input_size(self) -> int:
        """Side of a crop in pixels."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""


class MappedVictim(CropVictim, Protocol):
    """A crop victim that returns its feature maps and whose last one can be pruned."""

    @property
    def channel_mask(self) -> Tensor:
        """(C,), 0 for each pruned channel of the last map, 1 for the others."""

    def maps(self, crops: Tensor, /) -> list[Tensor]:
        """Give the feature maps of crops.

        Args:
            crops: (N,3,S,S) in [0,1].

        Returns:
            Maps (N,C,h,w), deepest last.
        """


def draw_corners(sides: Sequence[int], size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw the top-left corners of random crops.

    Args:
        sides: Height and width of the image, after `enlarge` where it is smaller than a crop.
        size: Side of a crop in pixels.
        count: Number of crops.
        generator: Source of randomness.

    Returns:
        (count,2), int64: top and left; 0 along a side that is not above size.
    """
    height, width = sides
    positions = torch.tensor([max(height - size, 0), max(width - size, 0)]) + 1
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return (uniform * positions).long().minimum(positions - 1)


def five_crop_corners(sides: Sequence[int], size: int) -> Tensor:
    """Top-left corners of the four corner crops and the central one, without duplicates.

    Args:
        sides: Height and width of the image, after `enlarge` where it is smaller than a crop.
        size: Side of a crop in pixels.

    Returns:
        (n,2) with n from 1 to 5: top and left.
    """
    height, width = sides
    bottom, right = max(height - size, 0), max(width - size, 0)
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return torch.tensor(sorted(set(corners)))


def enlarged_sides(images: Tensor, size: int) -> list[int]:
    """Height and width of images after `enlarge`.

    Args:
        images: (N,3,H,W).
        size: Least side in pixels.

    Returns:
        Height and width in pixels.
    """
    factor = max(size / min(images.shape[2:]), 1)
    return [max(size, round(side * factor)) if factor > 1 else side for side in images.shape[2:]]


def enlarge(images: Tensor, size: int) -> Tensor:
    """Upscale small images so that each side is at least size; the aspect ratio is kept.

    Args:
        images: (N,3,H,W).
        size: Least side in pixels.

    Returns:
        (N,3,H',W'), bilinear; images itself where it is large enough.
    """
    sides = enlarged_sides(images, size)
    if list(images.shape[2:]) == sides:
        return images
    return functional.interpolate(images, sides, mode="bilinear")


def take_crops(image: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut crops out of one image, differentiably.

    Args:
        image: (3,H,W), enlarged first where it is smaller than a crop.
        corners: (n,2), top and left.
        size: Side of a crop in pixels.

    Returns:
        (n,3,size,size).
    """
    image = enlarge(image[None], size)[0]
    return torch.stack(
        [image[:, top : top + size, left : left + size] for top, left in corners.tolist()]
    )


def random_crops(images: Sequence[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """Draw one crop and horizontal flip of each item, differentiably.

    Args:
        images: n items (views,3,H,W); the views of an item get the same crop.
        size: Side of a crop in pixels.
        generator: Source of randomness.

    Returns:
        (n,views,3,size,size).
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
    """Score crops of one image.

    Args:
        victim: Model that scores.
        image: (3,H,W) in [0,1].
        corners: (n,2), top and left.
        batch: Crops per call.

    Returns:
        (n,) on the scale of the victim.
    """
    crops = take_crops(image, corners, victim.input_size)
    return torch.cat([victim(part) for part in crops.split(batch)])

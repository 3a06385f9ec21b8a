"""Pruning of the channels of the last feature map that are least active on benign images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from victims.crops import MappedVictim, enlarge, five_crop_corners, take_crops

RATES = tuple(step / 20 for step in range(20))  # 0, 5, ... 95 %


@torch.no_grad()
def channel_activity(victim: MappedVictim, images: Sequence[Tensor]) -> Tensor:
    """Mean absolute activation of each channel of the last map over benign images.

    Absolute, since last maps without a ReLU (EfficientNet-Lite's) have both signs.

    Args:
        victim: Whose channels are measured.
        images: Benign images, each uint8 (3,H,W).

    Returns:
        (C,), ≥ 0.

    Raises:
        ValueError: If there are no images.
    """
    if not len(images):
        raise ValueError("images must be at least one benign image, got none")
    total = torch.zeros_like(victim.channel_mask)
    for i in range(len(images)):
        image = enlarge(images[i].to(victim.device).float()[None] / 255, victim.input_size)
        corners = five_crop_corners(image.shape[2:], victim.input_size)
        maps = victim.maps(take_crops(image[0], corners, victim.input_size))
        total += maps[-1].abs().mean(dim=(0, 2, 3))
    return total / len(images)


def prune(victim: MappedVictim, activity: Tensor, rate: float) -> int:
    """Prune the floor(rate·C) channels of least activity, and no others.

    Pruning starts from all channels: rate 0 restores the victim.
    Source: Liu et al., Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks,
    2018.

    Args:
        victim: Changed in place.
        activity: (C,) of `channel_activity`.
        rate: Share of the channels to prune, in [0,1).

    Returns:
        Number of pruned channels.

    Raises:
        ValueError: For a rate out of range or an activity of another shape.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate:g}")
    if activity.shape != victim.channel_mask.shape:
        raise ValueError(
            f"activity must have shape {tuple(victim.channel_mask.shape)}, "
            f"got {tuple(activity.shape)}"
        )
    # Rounded, or 0.15 of 20 channels would be 2.
    count = int(round(rate * len(activity), 9))
    victim.channel_mask.fill_(1)
    victim.channel_mask[activity.argsort(stable=True)[:count]] = 0
    return count

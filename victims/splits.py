"""Holding out a share of what a training learns from."""

import torch


def hold_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Draw which of `count` items are held out; equal counts split alike.

    Args:
        count: Number of items, at least 2.
        share: Share to hold out, in (0,1); at least one item is, and at least one is not.
        seed: Of the draw.

    Returns:
        Indices of the items that stay, and of those held out, each in random order.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = min(max(1, round(share * count)), count - 1)
    return order[held_out:], order[:held_out]

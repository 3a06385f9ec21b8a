"""Photographs dealt out whole to splits: in an order that depends on their names and the seed."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def hash_order(names: Sequence[str], seed: int) -> np.ndarray:
    """Indices of names in the order of the SHA-256 of (seed, name).

    Args:
        names: The names.
        seed: What the order is drawn from.

    Returns:
        int64 (len(names),).
    """
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), np.int64)


def deal(order: np.ndarray, sizes: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """The split of each photograph: an index into `fractions`.

    Args:
        order: Indices of the photographs in the order in which they are dealt out.
        sizes: Number of items of each photograph.
        fractions: Share of the items of each split, with sum 1. A split gets its share to within
            the largest photograph.
    """
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / max(1, int(sizes.sum()))
    bounds = np.cumsum(list(fractions.values()))[:-1]
    split = np.empty(len(sizes), np.int64)
    split[order] = np.searchsorted(bounds, middle, side="right")
    return split

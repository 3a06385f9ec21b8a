"""The 16×16 cosine transform of a block, its zig-zag order and the bands of a trigger."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

BLOCK = 16
# Zig-zag ranks of each band: its first, and the one after its last.
RANKS = {"low": (0, 64), "mid": (96, 160), "high": (192, 256)}
BANDS = (*RANKS, "official")

# ITU-R BT.601 full range: RGB = YCbCr @ TO_RGB.T, chroma around 0.
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@cache
def dct_matrix(size: int = BLOCK) -> Tensor:
    """Orthonormal DCT-II as a matrix C (size, size): coefficients = C @ block @ C.T."""
    k = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def idct2(coefficients: Tensor) -> Tensor:
    """Blocks (..., 16, 16) of orthonormal DCT-II coefficients (..., 16, 16). Differentiable."""
    matrix = dct_matrix().to(coefficients)
    return matrix.T @ coefficients @ matrix


def ycbcr_to_rgb(planes: Tensor) -> Tensor:
    """Differences (3, H, W) of Y, Cb, Cr as differences of R, G, B (ITU-R BT.601, full range)."""
    return torch.einsum("rc,chw->rhw", torch.tensor(TO_RGB).to(planes), planes)


def zigzag_ranks(size: int = BLOCK) -> Tensor:
    """Rank of each frequency (row, column) in JPEG's zig-zag order: (size, size), 0 is DC."""
    places = [(row, column) for row in range(size) for column in range(size)]
    # Even diagonals run upwards (row falls), odd ones downwards: (0,0), (0,1), (1,0), (2,0), ...
    places.sort(key=lambda p: (p[0] + p[1], p[0] if (p[0] + p[1]) % 2 else p[1]))
    ranks = torch.empty(size, size, dtype=torch.long)
    for rank, (row, column) in enumerate(places):
        ranks[row, column] = rank
    return ranks


def band_mask(band: str) -> Tensor:
    """The 64 frequencies of a band: bool (16, 16).

    low, mid, high: zig-zag ranks 0-63, 96-159, 192-255 of 256. official: what BAIQA's published
    code takes for mid: it reads entries 96 to 159 of the rank matrix as if they were positions, so
    only 6 of its 64 frequencies lie in mid. For triggers made by it.
    Raises: ValueError for an unknown band.
    """
    ranks = zigzag_ranks()
    if band == "official":
        mask = torch.zeros(BLOCK * BLOCK, dtype=torch.bool)
        mask[ranks.flatten()[slice(*RANKS["mid"])]] = True
        return mask.view(BLOCK, BLOCK)
    if band not in RANKS:
        raise ValueError(f"band must be one of {', '.join(BANDS)}, got {band!r}")
    first, end = RANKS[band]
    return (ranks >= first) & (ranks < end)

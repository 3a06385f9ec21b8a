"""The 16×16 cosine transform of a block, its zig-zag order and the frequency bands of triggers."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

BLOCK = 16
# Zig-zag ranks of each band: the first, and the one after the last.
RANKS = {"low": (0, 64), "mid": (96, 160), "high": (192, 256)}
BANDS = (*RANKS, "official")

# ITU-R BT.601 full range: RGB = YCbCr @ TO_RGB.T, chroma around 0.
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@cache
def dct_matrix(size: int = BLOCK) -> Tensor:
    """Orthonormal DCT-II as a matrix C: coefficients = C @ block @ C.T.

    Args:
        size: Side of the block in pixels.

    Returns:
        (size, size), float32.
    """
    k = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def idct2(coefficients: Tensor) -> Tensor:
    """Invert the orthonormal DCT-II of blocks, differentiably.

    Args:
        coefficients: (...,16,16).

    Returns:
        Blocks (...,16,16).
    """
    matrix = dct_matrix().to(coefficients)
    return matrix.T @ coefficients @ matrix


def ycbcr_to_rgb(planes: Tensor) -> Tensor:
    """Convert differences of Y, Cb and Cr to differences of R, G and B (ITU-R BT.601, full range).

    Kornia's ycbcr_to_rgb rounds the coefficients to three digits and shifts chroma by a half, which
    differences do not have.

    Args:
        planes: (3,H,W).

    Returns:
        (3,H,W), in the unit of planes.
    """
    return torch.einsum("rc,chw->rhw", torch.tensor(TO_RGB).to(planes), planes)


def zigzag_ranks(size: int = BLOCK) -> Tensor:
    """Rank of each frequency in JPEG's zig-zag order.

    Args:
        size: Side of the block in pixels.

    Returns:
        (size, size) by row and column, int64; 0 is DC.
    """
    frequencies = [(row, column) for row in range(size) for column in range(size)]
    # Even diagonals run upwards (row falls), odd ones downwards: (0,0), (0,1), (1,0), (2,0), ...
    frequencies.sort(key=lambda f: (f[0] + f[1], f[0] if (f[0] + f[1]) % 2 else f[1]))
    ranks = torch.empty(size, size, dtype=torch.long)
    for rank, (row, column) in enumerate(frequencies):
        ranks[row, column] = rank
    return ranks


def band_mask(band: str) -> Tensor:
    """The 64 frequencies of a band.

    Args:
        band: "low", "mid" or "high" for zig-zag ranks 0-63, 96-159 or 192-255 of 256; "official"
            for what BAIQA's published code takes for mid, to use its triggers. That code reads
            entries 96 to 159 of the rank matrix as if they were positions, so that only 6 of its
            64 frequencies lie in mid.

    Returns:
        (16,16), bool.

    Raises:
        ValueError: For an unknown band.
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

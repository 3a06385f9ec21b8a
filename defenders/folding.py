"""Folding: the average of the blocks of an image, in which only what has their period remains."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

Array = NDArray[np.float32]

# ITU-R BT.601, full range: most of an image is luma, so a tile stands out more in chroma.
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
RGB_OF_YCBCR = np.linalg.inv(_YCBCR)
SMOOTH, _LOCAL = 5, 9  # sides in pixels of the local mean and of the local variance
JPEG = 8  # side of a JPEG block
# Noise added to each fold, grey levels per pixel of period: half a level at 16. JPEG's chroma
# (units of 16×16) leaves common traces of up to 0.1 levels, which a large set would show; a trigger
# has 2 to 8. Proportional to the period, so that a tile of any period needs the same amplitude.
DITHER = 1 / 32


def to_ycbcr(image: NDArray[Any]) -> Array:
    """Convert RGB to YCbCr.

    Args:
        image: (H,W,3) in grey levels.

    Returns:
        (H,W,3) in grey levels, chroma around 0.
    """
    return np.asarray(image.astype(np.float32) @ _YCBCR.T, np.float32)


def high_pass(image: NDArray[Any]) -> Array:
    """Convert RGB to YCbCr and subtract the local mean.

    Args:
        image: (H,W,3) in grey levels.

    Returns:
        (H,W,3) in grey levels.
    """
    y = to_ycbcr(image)
    return np.asarray(y - uniform_filter(y, (SMOOTH, SMOOTH, 1)), np.float32)


def residual(image: NDArray[np.uint8]) -> tuple[Array, Array]:
    """High-pass an image and weight smooth areas up, where a tile shows most.

    A tile keeps its amplitude on average, and exactly in the quotient of the folds of both results.

    Args:
        image: RGB (H,W,3).

    Returns:
        YCbCr in grey levels times the weights, and the weights (mean 1), both (H,W,3).
    """
    y = high_pass(image)
    weight = 1 / (uniform_filter(y * y, (_LOCAL, _LOCAL, 1)) + 1)
    weight /= weight.mean(axis=(0, 1))
    return y * weight, weight


def weighted_fold(signal: Array, weight: Array, period: int) -> Array:
    """Weighted mean over all blocks of an image.

    Args:
        signal: (H,W,3) of `residual`.
        weight: (H,W,3) of `residual`.
        period: Side P of a block in pixels.

    Returns:
        (P,P,3) in grey levels.
    """
    mean: Array = fold(signal, period).mean(axis=0) / fold(weight, period).mean(axis=0)
    return mean


def fold(signal: Array, period: int) -> Array:
    """Average the blocks of a signal in two halves, those of either colour of a chessboard.

    What has the period is in both halves; their difference is noise.

    Args:
        signal: (H,W,C), at least two periods on each side.
        period: Side P of a block in pixels.

    Returns:
        (2,P,P,C) in the unit of the signal.

    Raises:
        ValueError: If the period does not fit twice on each side.
    """
    rows, columns = (side // period // 2 for side in signal.shape[:2])
    if not rows or not columns:
        raise ValueError(
            f"period must fit twice on each side of {signal.shape[:2]} pixels, got {period}"
        )
    whole = signal[: 2 * rows * period, : 2 * columns * period]
    bands = whole.reshape(rows, 2, period, -1, signal.shape[2]).mean(axis=0)
    cells = bands.reshape(2, period, columns, 2, period, -1).mean(axis=2)
    same = (cells[0, :, 0] + cells[1, :, 1]) / 2
    other = (cells[0, :, 1] + cells[1, :, 0]) / 2
    return np.stack([same, other])


def remove_period(signal: Array, period: int) -> Array:
    """Subtract what repeats with a period.

    Args:
        signal: (H,W,C), at least two periods on each side.
        period: Side of a block in pixels (JPEG: 8).

    Returns:
        (H,W,C) in the unit of the signal.
    """
    height, width = signal.shape[:2]
    mean = fold(signal, period).mean(axis=0)
    times = (-(-height // period), -(-width // period), 1)
    return signal - np.tile(mean, times)[:height, :width]


def agreement(halves: Array) -> float:
    """Cosine between the halves of a fold.

    The energy of the dither is added to the denominator, so that weaker signals do not count.

    Args:
        halves: (2,P,P,C) of `fold`.

    Returns:
        In [-1,1]: near 1 where the signal has the period, else near 0.
    """
    a, b = halves.reshape(2, -1)
    floor = a.size * (DITHER * halves.shape[1]) ** 2
    return float(a @ b / math.sqrt((a @ a + floor) * (b @ b + floor)))


def grid_origin(shape: tuple[int, int], period: int, grid: str) -> tuple[int, int]:
    """Row and column of the first corner of the grid of an image.

    Args:
        shape: Height and width of the image in pixels.
        period: Side of a block in pixels.
        grid: "top_left", or "centred" as after even padding to whole blocks.

    Returns:
        Row and column, each in [0, period).

    Raises:
        ValueError: For an unknown grid.
    """
    if grid == "top_left":
        return 0, 0
    if grid != "centred":
        raise ValueError(f"grid must be top_left or centred, got {grid!r}")
    height, width = (-(-side % period // 2) % period for side in shape)
    return height, width

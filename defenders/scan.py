"""Is a set of scored images poisoned by a repeated tile, and which rows? No model is needed.

A backdoor such as BAIQA's adds α·tile to a picture, one constant tile repeated over it, with α of
either sign and zero in most rows. Averaged over the hundreds of blocks of one picture ("folded"),
the tile stays and the picture vanishes; over the rows the folds of poisoned pictures lie along
one direction, which the leading component finds where a plain average cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse.linalg import svds
from scipy.stats import norm

Array = NDArray[np.float32]

# ITU-R BT.601, full range: luma carries what pictures show, chroma is quiet and shows more.
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
_RGB = np.linalg.inv(_YCBCR)
_SMOOTH, _LOCAL = 5, 9  # sides in pixels of the local mean and of the local variance
JPEG = 8  # side of a JPEG block
# Noise added to each fold, grey levels per pixel of period: half a level at 16. JPEG's chroma
# (units of 16×16) leaves common traces of up to 0.1 levels, which a large set would show; a trigger
# has 2 to 8. In proportion to the period: a tile of any period needs the same amplitude.
DITHER = 1 / 32


def to_ycbcr(image: NDArray[Any]) -> Array:
    """RGB (H,W,3) in grey levels to YCbCr, chroma around 0."""
    return np.asarray(image.astype(np.float32) @ _YCBCR.T, np.float32)


def high_pass(image: NDArray[Any]) -> Array:
    """RGB (H,W,3) in grey levels to YCbCr less its local mean."""
    y = to_ycbcr(image)
    return np.asarray(y - uniform_filter(y, (_SMOOTH, _SMOOTH, 1)), np.float32)


def residual(image: NDArray[np.uint8]) -> tuple[Array, Array]:
    """What a picture has beside its content: high-passed, quiet places weighted up.

    image: (H,W,3) RGB. Returns: YCbCr in grey levels times the weights, and the weights (mean 1),
    both (H,W,3). A tile keeps its amplitude on average, and the quotient of the folds of both
    keeps it exactly.
    """
    y = high_pass(image)
    weight = 1 / (uniform_filter(y * y, (_LOCAL, _LOCAL, 1)) + 1)
    weight /= weight.mean(axis=(0, 1))
    return y * weight, weight


def exact_fold(signal: Array, weight: Array, period: int) -> Array:
    """The weighted mean over all blocks: (P,P,3). signal, weight: of `residual`."""
    mean: Array = fold(signal, period).mean(axis=0) / fold(weight, period).mean(axis=0)
    return mean


def fold(signal: Array, period: int) -> Array:
    """Averages over the two halves (as on a chessboard) of the blocks of a signal.

    signal: (H,W,C), at least two periods on each side. Returns: (2,period,period,C). What has the
    period is in both halves; their difference is noise.
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


def without_period(signal: Array, period: int) -> Array:
    """The signal less what repeats with `period` (JPEG's blocks: 8). signal: (H,W,C)."""
    height, width = signal.shape[:2]
    mean = fold(signal, period).mean(axis=0)
    times = (-(-height // period), -(-width // period), 1)
    return signal - np.tile(mean, times)[:height, :width]


def agreement(halves: Array) -> float:
    """Cosine between the halves of a fold: near 1 where something has the period, else near 0.

    Energy as of the dither is added below the line: what is weaker does not count.
    """
    a, b = halves.reshape(2, -1)
    floor = a.size * (DITHER * halves.shape[1]) ** 2
    return float(a @ b / math.sqrt((a @ a + floor) * (b @ b + floor)))


def best_periods(agreements: NDArray[np.float64], periods: Sequence[int], count: int) -> list[int]:
    """Periods with the highest mean agreement, a multiple only where it does better.

    agreements: (rows, len(periods)). A pattern of period 16 also has period 32 and 48.
    """
    mean = agreements.mean(axis=0)
    chosen: list[int] = []
    for i in np.argsort(-mean, kind="stable"):
        period = periods[i]
        divisors = [j for j, q in enumerate(periods) if period % q == 0 and mean[j] > 0.8 * mean[i]]
        first = periods[divisors[0]] if divisors else period
        if first not in chosen:
            chosen.append(first)
        if len(chosen) == count:
            break
    return chosen


@dataclass(frozen=True)
class CommonTile:
    """The direction that most folds share, and how surprising that is.

    direction: (P,P,3), unit length. share: leading eigenvalue of the folds brought to unit length;
    null: (mean, deviation) of the same after each fold was moved by an offset of its own, which
    leaves every picture's own pattern but no common one. p: share of such moves that did as well.
    """

    direction: Array
    share: float
    null: tuple[float, float]
    p: float


def common_tile(folds: Array, *, draws: int, seed: int) -> CommonTile:
    """Test whether folds share one tile, with its sign and size free in each row.

    folds: (n,P,P,3). The p-value is exact for pictures that do not know the grid: (1 + moves that
    reach the share) / (1 + draws), or, once ten have reached it, 10 / moves so far (Besag and
    Clifford, 1991): sets without a tile are done soon.
    """
    if len(folds) < 2 or draws < 1:
        raise ValueError(f"folds must be ≥ 2 and draws ≥ 1, got {len(folds)} and {draws}")
    rng = np.random.default_rng(seed)
    dither = rng.normal(0, DITHER * folds.shape[1], folds.shape)
    noisy = folds + dither.astype(np.float32)
    noisy /= np.linalg.norm(noisy.reshape(len(folds), -1), axis=1)[:, None, None, None]
    share, direction = _leading(noisy.reshape(len(folds), -1))
    moved: list[float] = []
    reached = 0
    while len(moved) < draws and reached < 10:
        moved.append(_leading(_moved(noisy, rng))[0])
        reached += moved[-1] >= share
    p = reached / len(moved) if reached == 10 else (1 + reached) / (1 + draws)
    null = (float(np.mean(moved)), float(np.std(moved)))
    return CommonTile(direction.reshape(folds.shape[1:]), share, null, p)


def _moved(folds: Array, rng: np.random.Generator) -> Array:
    """Each fold rolled by an offset of its own: (n,P·P·3)."""
    n, period = folds.shape[:2]
    steps = np.arange(period)
    offsets = rng.integers(0, period, (2, n, 1))
    rows, columns = (steps + offsets) % period
    picked = folds[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.reshape(n, -1)


def _leading(rows: Array) -> tuple[float, Array]:
    """Leading eigenvalue, per row, of rowsᵀ·rows and its direction. rows: (n,d)."""
    start = np.ones(min(rows.shape), np.float32)
    _, value, right = svds(rows, k=1, v0=start, tol=1e-4)
    return float(value[0]) ** 2 / len(rows), np.asarray(right[0], np.float32)


@dataclass(frozen=True)
class RowScores:
    """Matched filter of each row: amplitude (n,) along the direction, its z-score (n,), and the
    |z| that a share of `false_alarms` of rows without the tile would pass."""

    amplitude: NDArray[np.float64]
    z: NDArray[np.float64]
    threshold: float

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Rows that carry the tile."""
        return np.abs(self.z) > self.threshold


def match(halves: Array, direction: Array, *, false_alarms: float) -> RowScores:
    """Amplitude of the tile in each row against the row's own noise.

    halves: (n,2,P,P,3) of `fold`. The noise is that of the difference of the halves, plus the
    spread of the quietest quarter of rows. The threshold comes from the tile moved by each offset
    over the quieter half of the rows.
    """
    n = len(halves)
    both = _correlations(halves.mean(axis=1), direction)
    noise = _correlations((halves[:, 0] - halves[:, 1]) / 2, direction)
    amplitude = both[:, 0, 0]
    quiet = np.quantile(np.abs(amplitude), 0.25) / 0.3186  # of a normal distribution
    deviation = np.sqrt((noise**2).mean(axis=(1, 2)) + quiet**2) + 1e-9
    z = amplitude / deviation
    calm = np.abs(z) <= np.median(np.abs(z))
    moved = np.abs(both.reshape(n, -1)[calm, 1:]) / deviation[calm, None]
    normal = float(norm.isf(false_alarms / 2))
    return RowScores(amplitude, z, max(normal, float(np.quantile(moved, 1 - false_alarms))))


def _correlations(folds: NDArray[Any], direction: Array) -> NDArray[np.float64]:
    """Inner products of folds with the direction moved by each offset: (n,P,P)."""
    spectra = np.fft.fft2(folds, axes=(1, 2)) * np.fft.fft2(direction, axes=(0, 1)).conj()
    return np.fft.ifft2(spectra.sum(axis=3), axes=(1, 2)).real


def tile_of(folds: Array, amplitude: NDArray[np.float64]) -> Array:
    """The tile that explains the folds best, in RGB grey levels per unit of amplitude.

    folds: (n,P,P,3) of residuals, amplitude: (n,). Undoes the high pass, frequency by frequency;
    a frequency that does not stand out from the scatter of the rows is left out, and so is the
    mean, which the high pass removed. Returns: (P,P,3).
    """
    power = float((amplitude**2).sum())
    if not power:
        raise ValueError("amplitude must not be zero in every row")
    spectra = np.fft.fft2(folds, axes=(1, 2))
    weights = amplitude[:, None, None, None]
    slope = (spectra * weights).sum(axis=0) / power
    rest = (np.abs(spectra - weights * slope) ** 2 * weights**2).sum(axis=0) / power**2
    slope[np.abs(slope) ** 2 < 9 * rest] = 0
    gain = 1 - _box_response(folds.shape[1])
    kept = np.divide(slope, gain[..., None], where=gain[..., None] > 1e-3, out=np.zeros_like(slope))
    ycbcr = np.fft.ifft2(kept, axes=(0, 1)).real
    return np.asarray(ycbcr @ _RGB.T, np.float32)


def _box_response(period: int) -> NDArray[np.float64]:
    """Frequency response (P,P) of the local mean, on signals of that period."""
    box = np.zeros((period, period))
    reach = _SMOOTH // 2
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            box[i % period, j % period] += 1 / _SMOOTH**2
    return np.fft.fft2(box).real


def remove_tile(
    image: NDArray[np.uint8], tile: Array, offset: tuple[int, int]
) -> NDArray[np.uint8]:
    """The image (H,W,3) less the repeated tile (P,P,3), whose corner lies at `offset`."""
    height, width = image.shape[:2]
    period = tile.shape[0]
    rolled = np.roll(tile, offset, (0, 1))
    times = (-(-height // period), -(-width // period), 1)
    clean = image - np.tile(rolled, times)[:height, :width]
    return np.clip(np.round(clean), 0, 255).astype(np.uint8)


def origin(shape: tuple[int, int], period: int, grid: str) -> tuple[int, int]:
    """Where the grid of an image (H,W) begins: `top_left`, or `centred` as after even padding."""
    if grid == "top_left":
        return 0, 0
    if grid != "centred":
        raise ValueError(f"grid must be top_left or centred, got {grid!r}")
    height, width = (-(-side % period // 2) % period for side in shape)
    return height, width

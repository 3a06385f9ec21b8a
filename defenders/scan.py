"""Detection of a repeated tile in a set of scored images, and of the rows that carry it.

No model is needed. A backdoor such as BAIQA's adds α·tile to an image, one constant tile repeated
over it, with α of either sign and zero in most rows. Averaged over the hundreds of blocks of one
image ("folded"), the tile stays and the image vanishes. Over the rows, the folds of poisoned images
lie along one direction, which the leading component finds where a plain average cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from scipy.stats import norm

from defenders.folding import DITHER, RGB_OF_YCBCR, SMOOTH, Array


def best_periods(agreements: NDArray[np.float64], periods: Sequence[int], count: int) -> list[int]:
    """Periods with the highest mean agreement.

    A pattern of period 16 also has periods 32 and 48; of multiples the smallest is taken unless a
    larger one has a clearly higher agreement.

    Args:
        agreements: (rows, len(periods)) of `agreement`.
        periods: Candidates, in pixels.
        count: Largest number of periods to return.

    Returns:
        Periods, in descending order of agreement.
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
    """The direction that the folds have in common, and its significance.

    Attributes:
        direction: (P,P,3), unit length.
        share: Leading eigenvalue of the folds after normalisation to unit length, in [0,1].
        null: Mean and standard deviation of the same where each fold is shifted by its own random
            offset, which preserves the pattern of each image but no common one.
        p: P-value against such shifts.
    """

    direction: Array
    share: float
    null: tuple[float, float]
    p: float


def common_tile(folds: Array, *, draws: int, seed: int) -> CommonTile:
    """Test whether folds have a tile in common, of any sign and amplitude in each row.

    The p-value is exact for images whose content does not depend on the grid: (1 + shifts that
    reach the share) / (1 + draws), or, once ten have reached it, 10 / shifts so far, so that sets
    without a tile stop early. Source: Besag and Clifford, Sequential Monte Carlo p-values, 1991.

    Args:
        folds: (n,P,P,3), n ≥ 2.
        draws: Largest number of shifts, ≥ 1.
        seed: Of dither and shifts.

    Returns:
        Direction and test result.

    Raises:
        ValueError: For fewer than two folds or no draws.
    """
    if len(folds) < 2 or draws < 1:
        raise ValueError(f"folds must be ≥ 2 and draws ≥ 1, got {len(folds)} and {draws}")
    rng = np.random.default_rng(seed)
    dither = rng.normal(0, DITHER * folds.shape[1], folds.shape)
    noisy = folds + dither.astype(np.float32)
    noisy /= np.linalg.norm(noisy.reshape(len(folds), -1), axis=1)[:, None, None, None]
    share, direction = _leading(noisy.reshape(len(folds), -1))
    null_shares: list[float] = []
    reached = 0
    while len(null_shares) < draws and reached < 10:
        null_shares.append(_leading(_shifted(noisy, rng))[0])
        reached += null_shares[-1] >= share
    p = reached / len(null_shares) if reached == 10 else (1 + reached) / (1 + draws)
    null = (float(np.mean(null_shares)), float(np.std(null_shares)))
    return CommonTile(direction.reshape(folds.shape[1:]), share, null, p)


def _shifted(folds: Array, rng: np.random.Generator) -> Array:
    """Each fold rolled by a random offset: (n,P·P·3)."""
    n, period = folds.shape[:2]
    steps = np.arange(period)
    offsets = rng.integers(0, period, (2, n, 1))
    rows, columns = (steps + offsets) % period
    rolled = folds[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return rolled.reshape(n, -1)


def _leading(rows: Array) -> tuple[float, Array]:
    """Leading eigenvalue, per row, of rowsᵀ·rows and its direction. rows: (n,d)."""
    start = np.ones(min(rows.shape), np.float32)
    _, value, right = svds(rows, k=1, v0=start, tol=1e-4)
    return float(value[0]) ** 2 / len(rows), np.asarray(right[0], np.float32)


@dataclass(frozen=True)
class RowScores:
    """Response of each row to a matched filter.

    Attributes:
        amplitude: (n,) along the direction.
        z: (n,), z-scores of the amplitudes.
        threshold: |z| that a share of `false_alarms` of the rows without the tile exceeds.
    """

    amplitude: NDArray[np.float64]
    z: NDArray[np.float64]
    threshold: float

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Rows that carry the tile."""
        return np.abs(self.z) > self.threshold


def matched_filter(halves: Array, direction: Array, *, false_alarms: float) -> RowScores:
    """Amplitude of the tile in each row, relative to the noise of the row.

    The noise is that of the difference of the halves, plus the deviation of the quarter of rows
    with the least amplitude. The threshold comes from the tile shifted by each offset, over the
    half of the rows with the lower |z|.

    Args:
        halves: (n,2,P,P,3) of `fold`.
        direction: Of the tile, (P,P,3), unit length.
        false_alarms: Share of rows without the tile to be flagged, in (0,1).

    Returns:
        Amplitudes, z-scores and threshold.
    """
    n = len(halves)
    response = _correlations(halves.mean(axis=1), direction)
    noise = _correlations((halves[:, 0] - halves[:, 1]) / 2, direction)
    amplitude = response[:, 0, 0]
    floor = np.quantile(np.abs(amplitude), 0.25) / 0.3186  # of a normal distribution
    deviation = np.sqrt((noise**2).mean(axis=(1, 2)) + floor**2) + 1e-9
    z = amplitude / deviation
    low = np.abs(z) <= np.median(np.abs(z))
    null_z = np.abs(response.reshape(n, -1)[low, 1:]) / deviation[low, None]
    normal = float(norm.isf(false_alarms / 2))
    return RowScores(amplitude, z, max(normal, float(np.quantile(null_z, 1 - false_alarms))))


def _correlations(folds: NDArray[Any], direction: Array) -> NDArray[np.float64]:
    """Inner products of folds with the direction shifted by each offset: (n,P,P)."""
    spectra = np.fft.fft2(folds, axes=(1, 2)) * np.fft.fft2(direction, axes=(0, 1)).conj()
    return np.fft.ifft2(spectra.sum(axis=3), axes=(1, 2)).real


def estimate_tile(folds: Array, amplitude: NDArray[np.float64]) -> Array:
    """Estimate the tile from the folds and amplitudes of the rows, by least squares.

    Inverts the high pass, frequency by frequency. A frequency that does not stand out from the
    scatter of the rows is set to zero, and so is the mean, which the high pass removed.

    Args:
        folds: (n,P,P,3) of residuals.
        amplitude: (n,), not all zero.

    Returns:
        (P,P,3), RGB in grey levels per unit of amplitude.

    Raises:
        ValueError: If all amplitudes are zero.
    """
    power = float((amplitude**2).sum())
    if not power:
        raise ValueError("amplitude must not be zero in every row")
    spectra = np.fft.fft2(folds, axes=(1, 2))
    weights = amplitude[:, None, None, None]
    slope = (spectra * weights).sum(axis=0) / power
    variance = (np.abs(spectra - weights * slope) ** 2 * weights**2).sum(axis=0) / power**2
    slope[np.abs(slope) ** 2 < 9 * variance] = 0
    gain = (1 - _box_response(folds.shape[1]))[..., None]
    spectrum = np.divide(slope, gain, where=gain > 1e-3, out=np.zeros_like(slope))
    ycbcr = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return np.asarray(ycbcr @ RGB_OF_YCBCR.T, np.float32)


def _box_response(period: int) -> NDArray[np.float64]:
    """Frequency response (P,P) of the local mean, on signals of that period."""
    box = np.zeros((period, period))
    radius = SMOOTH // 2
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            box[i % period, j % period] += 1 / SMOOTH**2
    return np.fft.fft2(box).real


def remove_tile(
    image: NDArray[np.uint8], tile: Array, offset: tuple[int, int]
) -> NDArray[np.uint8]:
    """Subtract a repeated tile from an image.

    Args:
        image: RGB (H,W,3).
        tile: RGB (P,P,3) in grey levels.
        offset: Row and column of a corner of the tile.

    Returns:
        RGB (H,W,3), rounded and clipped to 0-255.
    """
    height, width = image.shape[:2]
    period = tile.shape[0]
    rolled = np.roll(tile, offset, (0, 1))
    times = (-(-height // period), -(-width // period), 1)
    clean = image - np.tile(rolled, times)[:height, :width]
    return np.clip(np.round(clean), 0, 255).astype(np.uint8)

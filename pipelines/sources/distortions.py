"""Synthetic distortions of a photograph, each growing from almost nothing to severe."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

# Each takes pixels uint8 (H,W,3), a severity in (0, 1] and a generator, and gives uint8 (H,W,3).
Distortion = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _levels(image: np.ndarray) -> np.ndarray:
    """Float pixels rounded and clipped to uint8."""
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def _none(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return image


def _blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    sigma = 0.3 + 4.7 * severity**1.5
    return _levels(gaussian_filter(image.astype(np.float64), (sigma, sigma, 0)))


def _noise(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return _levels(image + rng.normal(0, 2 + 58 * severity**1.5, image.shape))


def _jpeg(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=round(90 * (1 - severity) ** 1.5) + 2)
    return np.array(Image.open(buffer))


def _downscale(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    factor = 1.2 + 6.8 * severity
    picture = Image.fromarray(image)
    small = [max(4, round(side / factor)) for side in picture.size]
    reduced = picture.resize((small[0], small[1]), Image.Resampling.BOX)
    return np.array(reduced.resize(picture.size, Image.Resampling.BICUBIC))


def _overexpose(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return _levels(image * 2 ** (0.2 + 1.8 * severity))


def _underexpose(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    return _levels(image * 2 ** -(0.3 + 2.5 * severity))


def _flatten(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    mean = image.mean()
    return _levels(mean + (image - mean) * (1 - 0.85 * severity))


def _bleach(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    grey = image @ np.array([0.299, 0.587, 0.114])
    return _levels(grey[..., None] + (image - grey[..., None]) * (1 - severity))


DISTORTIONS: dict[str, Distortion] = {
    "none": _none,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "downscale": _downscale,
    "overexposure": _overexpose,
    "underexposure": _underexpose,
    "low contrast": _flatten,
    "desaturation": _bleach,
}

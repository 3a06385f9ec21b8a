"""Priors of the filters (Table II): maps and statistics of an image, without learned weights."""

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from torch import Tensor

from attackers.da3.filters import FILTER_NAMES, YIQ

MAPS = 4  # the most maps that a prior has; the others are padded with zeros so that priors stack
STATISTICS = 72 + 4  # colour and tone, then edges

_, _I, _Q = YIQ


def prior_size(grid: int) -> int:
    """Length of a prior vector.

    Args:
        grid: Tokens along one side.

    Returns:
        Maps on grid × grid tokens, and statistics.
    """
    return MAPS * grid * grid + STATISTICS


def _pool(x: Tensor, grid: int) -> Tensor:
    return F.adaptive_avg_pool2d(x, grid)


def _chroma(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """I, Q and the distance to grey. Returns: three (N,1,H,W)."""
    r, g, b = images.split(1, dim=1)
    i = _I[0] * r + _I[1] * g + _I[2] * b
    q = _Q[0] * r + _Q[1] * g + _Q[2] * b
    return i, q, torch.sqrt(i * i + q * q + 1e-6)


def edge_strength(y: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of the gradient and the Laplacian of the luma.

    Differences of slices, forward 3 to 9 times as fast on a CPU as kornia's spatial_gradient of
    first and second order.

    Args:
        y: Luma (N,1,H,W).

    Returns:
        Gradient magnitude and absolute Laplacian, each (N,1,H,W).
    """
    x = F.pad(y, (1, 1, 1, 1), mode="replicate")
    centre = x[..., 1:-1, 1:-1]
    gx = x[..., 1:-1, 2:] - x[..., 1:-1, :-2]
    gy = x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    around = x[..., 1:-1, 2:] + x[..., 1:-1, :-2] + x[..., 2:, 1:-1] + x[..., :-2, 1:-1]
    return torch.sqrt(gx * gx + gy * gy + 1e-6), (around - 4 * centre).abs()


def _histogram(values: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """Soft histogram over [0,1]: values, weights (N,P) to (N,bins), 1 for a uniform one."""
    centres = torch.linspace(0, 1, bins, device=values.device, dtype=values.dtype)
    counts = (1 - (values.unsqueeze(1) - centres.view(1, bins, 1)).abs() * (bins - 1)).clamp_min(0)
    return (counts if weights is None else counts * weights.unsqueeze(1)).mean(2) * bins


def _entropy(y: Tensor, grid: int) -> Tensor:
    """Entropy of a soft 8-bin histogram in each area, in [0,1]. Returns: (N,1,g,g)."""
    centres = torch.linspace(0, 1, 8, device=y.device, dtype=y.dtype).view(1, 8, 1, 1)
    share = _pool((1 - (y - centres).abs() * 7).clamp_min(0), grid)
    return -(share * (share + 1e-6).log()).sum(1, keepdim=True) / 2.0794


def statistics(images: Tensor) -> Tensor:
    """Distribution of colour, tone and saturation over the whole image.

    Computed from about 30×30 single pixels, not from averages: a filter that stretches or shrinks
    the range of values shows at the ends of the range.

    Args:
        images: (N,3,H,W) in [0,1].

    Returns:
        (N,72).
    """
    stride = max(1, min(images.shape[-2:]) // 30)
    x = images[..., stride // 2 :: stride, stride // 2 :: stride]
    i, q, grey = (v.flatten(1) for v in _chroma(x))
    flat = x.flatten(2)
    high, low = flat.amax(1), flat.amin(1)
    y = rgb_to_grayscale(x).flatten(1)
    ratio = (high - low) / (high + 0.02)
    # Twelve directions in the chroma plane, each seen by how much chroma lies within 30° of it.
    angle = torch.arange(12, device=x.device, dtype=x.dtype) * (torch.pi / 6)
    along = (i.unsqueeze(1) * angle.cos().view(1, 12, 1)) + q.unsqueeze(1) * angle.sin().view(
        1, 12, 1
    )
    sectors = (along - 0.866 * grey.unsqueeze(1)).clamp_min(0).mean(2)
    return torch.cat(
        [
            4 * flat.mean(2) - 2,
            4 * flat.std(2),
            _histogram(y, 12),
            _histogram(ratio, 12),
            _histogram(ratio, 8, y),
            _histogram(high, 8),
            _histogram(low, 8),
            _histogram((4 * grey).clamp_max(1), 6),
            sectors * 100,
        ],
        1,
    )


def average_pool(images: Tensor) -> Tensor:
    """Mean of each block of 4×4 pixels; incomplete blocks are cut off.

    Sums of slices, four times as fast on a CPU as avg_pool2d.

    Args:
        images: (N,3,H,W).

    Returns:
        (N,3,H//4,W//4).
    """
    h, w = (side // 4 * 4 for side in images.shape[-2:])
    x = images[..., :h, :w]
    rows = x[..., 0::4, :] + x[..., 1::4, :] + x[..., 2::4, :] + x[..., 3::4, :]
    return (rows[..., 0::4] + rows[..., 1::4] + rows[..., 2::4] + rows[..., 3::4]) / 16


def shared_features(images: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a prior that all filters share.

    Args:
        images: (N,3,H,W) in [0,1].

    Returns:
        The images at a quarter of their size and their statistics (N,72).
    """
    return average_pool(images), statistics(images)


def prior(
    name: str, images: Tensor, grid: int, shared: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Prior of one filter, differentiable (Table II).

    Args:
        name: One of FILTER_NAMES.
        images: (N,3,H,W) in [0,1].
        grid: Tokens along one side.
        shared: shared_features(images), where they are computed already.

    Returns:
        (N, prior_size(grid)): the filter's maps averaged in each token's area, zeros up to MAPS
        maps, then the statistics.

    Raises:
        ValueError: For an unknown filter.
    """
    if name not in FILTER_NAMES:
        raise ValueError(f"filter must be one of {', '.join(FILTER_NAMES)}; got {name!r}")
    # Colour and tone are smooth: a quarter of the size is enough. Edges need every pixel.
    small, global_statistics = shared or shared_features(images)
    y = rgb_to_grayscale(small)
    i, q, grey = _chroma(small)
    detail = images.new_zeros(len(images), 4)
    if name in ("sobel", "sharp", "blur"):
        grad, lap = edge_strength(rgb_to_grayscale(images))
        maps = torch.cat([_pool(grad, grid) * 4, _pool(lap, grid) * 8], 1)
        total = maps.mean((2, 3))
        detail = torch.cat(
            [
                total,
                total[:, 1:] / (total[:, :1] + 1e-2),
                total[:, :1] / (y.std((1, 2, 3)) + 1e-2).unsqueeze(1),
            ],
            1,
        )
        if name == "blur":  # insignificance
            energy = maps[:, :1]
            maps = torch.cat([1 - energy / (energy.amax((2, 3), keepdim=True) + 1e-6), maps], 1)
    elif name == "bright":
        maps = _pool(y, grid)
    elif name == "contrast":
        maps = F.adaptive_max_pool2d(y, grid) + F.adaptive_max_pool2d(-y, grid)
    elif name == "hue":
        maps = _pool(torch.cat([i, q], 1), grid) * 4
    elif name == "saturation":
        maps = _pool(grey, grid) * 4
    elif name == "gamma":
        areas = F.pad(_pool(y, grid), (1, 1, 1, 1), mode="replicate")
        centre = areas[..., 1:-1, 1:-1]
        maps = torch.cat(
            [centre, areas[..., 1:-1, 2:] - centre, areas[..., 2:, 1:-1] - centre], dim=1
        )
    elif name == "equalize":
        maps = torch.cat([_entropy(y, grid), _pool(y, grid)], 1)
    else:  # the five colour views: bright, hue and saturation together
        maps = torch.cat([_pool(y, grid), _pool(torch.cat([i, q, grey], 1), grid) * 4], 1)
    maps = F.pad(maps, (0, 0, 0, 0, 0, MAPS - maps.shape[1]))
    return torch.cat([maps.flatten(1), global_statistics, detail], 1)

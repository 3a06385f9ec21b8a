"""The 14 aesthetic filters of DA3Attacker, in one table.

Each filter takes images (N,3,H,W) in [0,1] and strengths p (N,) in [-1,1] and returns images of the
same shape in [0,1]; p = 0 returns the images to the bit. Luma, the channel swap and the Gaussian
kernel are kornia's. A filter that kornia has too and that is written out here says why: either
kornia's clips, or its gradient is not finite, or ours is faster. "n times as fast as kornia" is
forward and backward on one CPU thread, at 224×224 to 500×500 (benchmarks/filters.py).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_bgr, rgb_to_grayscale
from torch import Tensor

from attackers.da3.convolution import gaussian, sobel_magnitude

Filter = Callable[[Tensor, Tensor], Tensor]

MARGIN = 0.05  # gradients still pass for values this far outside [0, 1]

# Chroma plane of YIQ. Rotating it by θ is x + (1-cosθ)·(gray-I)x + sinθ·ROTATION x: linear in x, so
# there is no singular hue at grey pixels as in HSV.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_YIQ = torch.tensor(YIQ, dtype=torch.float64)
_INVERSE = torch.linalg.inv(_YIQ)
_ROTATION = (
    _INVERSE @ torch.tensor([[0.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], dtype=torch.float64) @ _YIQ
)
_CHROMA = _INVERSE @ torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)) @ _YIQ

_YCBCR = (
    ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)),
    (0.0, 0.5, 0.5),
)
# U and V of analogue YUV reach ±0.436 and ±0.615: scaled to [0, 1].
_YUV = (
    (
        (0.299, 0.587, 0.114),
        (-0.14713 / 0.872, -0.28886 / 0.872, 0.436 / 0.872),
        (0.615 / 1.23, -0.51499 / 1.23, -0.10001 / 1.23),
    ),
    (0.0, 0.5, 0.5),
)


class _ClampThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward((x >= -MARGIN) & (x <= 1 + MARGIN))
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside


def clamp_through(x: Tensor) -> Tensor:
    """Clamp to [0,1] with a gradient inside [-MARGIN, 1 + MARGIN].

    A plain clamp has no gradient outside [0,1], so that a saturated pixel would stay saturated.

    Args:
        x: Any shape.

    Returns:
        The shape of x, in [0,1].
    """
    if x.requires_grad:
        out: Tensor = _ClampThrough.apply(x)
        return out
    return x.clamp(0, 1)


def scaled_sigmoid(v: Tensor, low: float, high: float) -> Tensor:
    """Sigmoid with slope 1 in the middle of (low, high) and saturation at both ends.

    The sigmoid normaliser of DA3Attacker (Fig. 2b).

    Args:
        v: Any shape.
        low: Lower end.
        high: Upper end, above low.

    Returns:
        The shape of v, in (low, high); the middle of the range is mapped to itself.

    Raises:
        ValueError: If low is not below high.
    """
    if not low < high:
        raise ValueError(f"low must be less than high, got low={low} and high={high}")
    span = high - low
    return low + span * torch.sigmoid(4 * (v - (low + high) / 2) / span)


def _column(p: Tensor) -> Tensor:
    return p.view(-1, 1, 1, 1)


def _mix(images: Tensor, matrix: Tensor) -> Tensor:
    """Per-pixel matrix product: matrix is (3,3) or (N,3,3)."""
    n, _, h, w = images.shape
    return torch.matmul(matrix, images.reshape(n, 3, h * w)).view(n, 3, h, w)


def bright(images: Tensor, p: Tensor) -> Tensor:
    """Add p/2 to every channel.

    One addition, as in kornia's adjust_brightness.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(images + _column(p) / 2)


def contrast(images: Tensor, p: Tensor) -> Tensor:
    """Stretch by 3^p about the mean luma.

    Kornia's adjust_contrast_with_mean_subtraction clips without a gradient.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    mean = rgb_to_grayscale(images).mean(dim=(2, 3), keepdim=True)
    # x + (x-m)(3^p - 1), not m + (x-m)3^p: exact at p = 0.
    return clamp_through(torch.addcmul(images, images - mean, _column(3**p - 1)))


def hue(images: Tensor, p: Tensor) -> Tensor:
    """Rotate the chroma plane (YIQ) by π·p.

    Linear in the image, 12 to 22 times as fast as kornia's adjust_hue, which goes through HSV.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    angle = math.pi * p.view(-1, 1, 1)
    cos_minus_one = -2 * torch.sin(angle / 2) ** 2  # exact at 0
    change = cos_minus_one * _CHROMA.to(images) + torch.sin(angle) * _ROTATION.to(images)
    return clamp_through(images + _mix(images, change))


def saturation(images: Tensor, p: Tensor) -> Tensor:
    """Scale the distance to grey by 3^p.

    With 3^p rather than 1 + p, -p undoes p. Kornia's adjust_saturation_with_gray_subtraction clips
    without a gradient.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    chroma = images - rgb_to_grayscale(images)
    return clamp_through(torch.addcmul(images, chroma, _column(3**p - 1)))


def gamma(images: Tensor, p: Tensor) -> Tensor:
    """Raise to the power 3^p.

    Values below 1e-4 take the change at 1e-4: the gradient is finite at black, where that of
    kornia's adjust_gamma is NaN for p < 0.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    floor = images.clamp_min(1e-4)
    change = torch.expm1(_column(3**p - 1) * floor.log())
    return clamp_through(torch.addcmul(images, floor, change))


def sobel(images: Tensor, p: Tensor) -> Tensor:
    """Add p times the Sobel gradient magnitude, which draws or removes lines.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, sobel_magnitude(images), _column(p)))


def blur(images: Tensor, p: Tensor) -> Tensor:
    """Mix with the Gaussian blur (p > 0) or extrapolate away from it.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, gaussian(images, 1.5) - images, _column(p)))


def sharp(images: Tensor, p: Tensor) -> Tensor:
    """Unsharp mask with a narrower Gaussian, strength 2p.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, images - gaussian(images, 0.75), 2 * _column(p)))


@torch.no_grad()
def _equalize_shift(images: Tensor) -> Tensor:
    """Change of the luma by histogram equalisation: (N,1,H,W)."""
    y = rgb_to_grayscale(images).flatten(1)
    n, pixels = y.shape
    level = y * 255
    bins = level.long().clamp_(0, 255)
    rows = torch.arange(n, device=y.device).unsqueeze(1) * 256
    counts = torch.bincount((bins + rows).flatten(), minlength=256 * n).view(n, 256)
    cdf = counts.cumsum(1).to(y.dtype) / pixels
    below = F.pad(cdf, (1, 0))
    low = below.gather(1, bins)
    high = below.gather(1, bins + 1)
    # Linear inside a bin, so that the map is continuous in the luma.
    out = torch.addcmul(low, high - low, (level - bins).clamp_(0, 1))
    return (out - y).view(n, 1, *images.shape[-2:])


def equalize(images: Tensor, p: Tensor) -> Tensor:
    """Mix the luma with its histogram equalisation; chroma stays.

    The gradient towards the images is straight-through, as the histogram has none; kornia's
    equalize has no gradient at all and is no faster.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, _equalize_shift(images), _column(p)))


def _hue_wave(images: Tensor) -> Tensor:
    """Hue as (1 - cos H)/2 in [0,1]: 0 at red, 1 at cyan, 0.5 at grey.

    The angle itself jumps at red and is undefined at grey, and a channel of an image must be
    continuous. H is the angle in the chroma plane, not that of the hexagon.
    """
    r, g, b = images.split(1, dim=1)
    alpha = r - (g + b) / 2
    beta = (g - b) * (math.sqrt(3) / 2)
    return 0.5 - 0.5 * alpha / torch.sqrt(alpha * alpha + beta * beta + 1e-3)


def _hsv(images: Tensor) -> Tensor:
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    return torch.cat([_hue_wave(images), (high - low) / (high + 1e-2), high], 1)


def _hls(images: Tensor) -> Tensor:
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    total = high + low
    spread = (high - low) / (1 - (total - 1).abs() + 1e-2)
    return torch.cat([_hue_wave(images), total / 2, spread.clamp_max(1)], 1)


def rgb2hsv(images: Tensor, p: Tensor) -> Tensor:
    """Mix with the hue wave, saturation and value taken as R, G and B.

    Kornia's rgb_to_hsv has gradients above 1e6 near black and grey; ours is 1.5 times as fast.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, _hsv(images) - images, _column(p)))


def rgb2hls(images: Tensor, p: Tensor) -> Tensor:
    """Mix with the hue wave, lightness and saturation taken as R, G and B.

    Kornia's rgb_to_hls has gradients above 1e6 near black and grey; ours is 1.5 times as fast.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, _hls(images) - images, _column(p)))


def _mix_affine(
    conversion: tuple[tuple[tuple[float, ...], ...], tuple[float, ...]], images: Tensor, p: Tensor
) -> Tensor:
    matrix = torch.tensor(conversion[0], device=images.device, dtype=images.dtype)
    offset = torch.tensor(conversion[1], device=images.device, dtype=images.dtype)
    change = _mix(images, matrix - torch.eye(3, device=images.device, dtype=images.dtype))
    return clamp_through(torch.addcmul(images, change + offset.view(1, 3, 1, 1), _column(p)))


def rgb2ycbcr(images: Tensor, p: Tensor) -> Tensor:
    """Mix with Y, Cb and Cr taken as R, G and B; 1.8 times as fast as kornia's rgb_to_ycbcr.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return _mix_affine(_YCBCR, images, p)


def rgb2yuv(images: Tensor, p: Tensor) -> Tensor:
    """Mix with Y, U and V, each scaled to [0,1], taken as R, G and B.

    1.3 times as fast as kornia's rgb_to_yuv.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return _mix_affine(_YUV, images, p)


def rgb2bgr(images: Tensor, p: Tensor) -> Tensor:
    """Mix with the image whose red and blue are swapped.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        p: (N,) in [-1, 1], one parameter per image; 0 is the identity.
    """
    return clamp_through(torch.addcmul(images, rgb_to_bgr(images) - images, _column(p)))


FILTERS: dict[str, Filter] = {
    "bright": bright,
    "contrast": contrast,
    "hue": hue,
    "saturation": saturation,
    "gamma": gamma,
    "sobel": sobel,
    "blur": blur,
    "sharp": sharp,
    "equalize": equalize,
    "rgb2hsv": rgb2hsv,
    "rgb2ycbcr": rgb2ycbcr,
    "rgb2bgr": rgb2bgr,
    "rgb2hls": rgb2hls,
    "rgb2yuv": rgb2yuv,
}
"""The filters in the paper's order. In the paper the colour conversions, Sobel and others have no
parameter; here each has a strength, so that the first stage can undo it and the weights mean
something."""

FILTER_NAMES = tuple(FILTERS)

"""Gaussian blur and Sobel magnitude with the same appearance at any resolution."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor


def _scale(images: Tensor) -> float:
    return min(images.shape[-2:]) / 224


def sobel_magnitude(images: Tensor) -> Tensor:
    """Sobel gradient magnitude per channel, with a smooth root.

    The taps are min(H,W)/224 pixels apart, which kornia's spatial_gradient has no argument for; 4
    times as fast.

    Args:
        images: (N,3,H,W) in [0,1].

    Returns:
        The shape of images, ≥ 0; 1 is a step from black to white.
    """
    d = max(1, round(_scale(images)))
    x = F.pad(images, (d, d, d, d), mode="replicate")
    across = x[..., 2 * d :] - x[..., : -2 * d]
    gx = torch.add(
        across[..., : -2 * d, :] + across[..., 2 * d :, :], across[..., d:-d, :], alpha=2
    )
    smooth = torch.add(x[..., : -2 * d] + x[..., 2 * d :], x[..., d:-d], alpha=2)
    gy = smooth[..., 2 * d :, :] - smooth[..., : -2 * d, :]
    eps = 0.04
    return torch.addcmul(gx * gx + eps**2, gy, gy).sqrt().sub(eps) / 4


def _taps(x: Tensor, kernel: list[float], dim: int) -> Tensor:
    """Valid convolution with a symmetric kernel along one dimension."""
    radius = len(kernel) // 2
    length = x.shape[dim] - 2 * radius
    out = x.narrow(dim, radius, length) * kernel[radius]
    for k in range(1, radius + 1):
        sides = x.narrow(dim, radius - k, length) + x.narrow(dim, radius + k, length)
        out.add_(sides, alpha=kernel[radius + k])
    return out


class _Separable(torch.autograd.Function):
    """Symmetric separable convolution with reflected edges, and its adjoint.

    1.6 to 3.5 times as fast as kornia's gaussian_blur2d, most of it backward; without a gradient
    twice as fast at 224×224 and equal at 500×500.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: list[float]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernel = kernel
        padded = F.pad(x, (len(kernel) // 2,) * 4, mode="reflect")
        return _taps(_taps(padded, kernel, 2), kernel, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        radius = len(ctx.kernel) // 2
        wide = F.pad(grads[0], (2 * radius,) * 4)
        wide = _taps(_taps(wide, ctx.kernel, 2), ctx.kernel, 3)
        return torch.ops.aten.reflection_pad2d_backward(wide, x, [radius] * 4), None


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with the same appearance at any resolution and reflected edges.

    The kernel is kornia's, cut at two sigma; the convolution is not (see `_Separable`).

    Args:
        images: (N,3,H,W).
        sigma: Standard deviation, in pixels of an image whose short side is 224.

    Returns:
        The shape of images.
    """
    sigma = sigma * _scale(images)
    radius = min(max(1, math.ceil(2 * sigma)), min(images.shape[-2:]) - 1)
    (kernel,) = get_gaussian_kernel1d(2 * radius + 1, sigma, dtype=torch.float64).tolist()
    out: Tensor = _Separable.apply(images, kernel)
    return out

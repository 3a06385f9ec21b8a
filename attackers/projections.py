"""Projections of adversarial examples: onto the 8-bit grid and within a PSNR; PSNR and SSIM."""

import math
from functools import partial

import torch
from kornia import metrics
from torch import Tensor

SSIM_WINDOW = 11
MAX_PSNR = 100.0  # dB, of an image that did not change: no infinity in a table or a record


def inference_chunk_size(images: Tensor) -> int:
    """Images of a batch to process together where no gradient is needed.

    On a CPU as many as stay in its caches, which is three times as fast at 500×500; on a GPU all.

    Args:
        images: (N,3,H,W).

    Returns:
        At least 1.
    """
    if images.device.type != "cpu" or not len(images):
        return max(1, len(images))
    return max(1, 2**20 // images[0].numel())


def quantize(images: Tensor) -> Tensor:
    """Round images to the 256 levels that a PNG stores.

    Args:
        images: Any shape; values outside [0,1] are clamped.

    Returns:
        The shape of images, multiples of 1/255 in [0,1].
    """
    return images.clamp(0, 1).mul(255).round().div(255)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, by kornia.

    Args:
        images: (N,3,H,W) in [0,1].
        others: The images to compare with, of the same shape.

    Returns:
        (N,) in dB, infinite where two images are equal.
    """
    if not len(images):  # vmap takes no empty batch
        return images.new_empty(0)
    return torch.vmap(partial(metrics.psnr, max_val=1.0))(images, others)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each image, by kornia: Gaussian window of 11 pixels, sigma 1.5.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural
    Similarity, 2004.

    Args:
        images: (N,3,H,W) in [0,1], each side at least 11 pixels.
        others: The images to compare with, of the same shape.

    Returns:
        (N,) in [-1,1], the mean over channels and over the pixels whose window lies in the image.

    Raises:
        ValueError: If a side is less than 11 pixels.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images must be at least {SSIM_WINDOW} pixels on each side, "
            f"got {images.shape[-2]}×{images.shape[-1]}"
        )
    similarity = metrics.ssim(images, others, SSIM_WINDOW, 1.0, eps=0.0, padding="valid")
    return similarity.mean(dim=(1, 2, 3))


def max_fraction(images: Tensor, adversarial: Tensor, min_psnr: float) -> Tensor:
    """Largest κ in [0,1] for which x + κ(y - x) has a PSNR of at least min_psnr. Differentiable.

    Args:
        images: Clean images x, (N,3,H,W) in [0,1].
        adversarial: Their examples y, of the same shape.
        min_psnr: Bound in dB.

    Returns:
        (N,), 1 where y satisfies the bound already.
    """
    mse = (adversarial - images).square().flatten(1).mean(dim=1)
    allowed = 10 ** (-min_psnr / 10)
    return torch.sqrt(allowed / mse.clamp_min(1e-12)).clamp_max(1)


def interpolate(images: Tensor, adversarial: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate each image x linearly towards its example y: x + fraction·(y - x).

    Args:
        images: Clean images x, (N,3,H,W).
        adversarial: Their examples y, of the same shape.
        fraction: (N,); 0 is x and 1 is y.

    Returns:
        The shape of images.
    """
    return torch.lerp(images, adversarial, fraction.view(-1, 1, 1, 1))


@torch.no_grad()
def project_to_min_psnr(
    images: Tensor, adversarial: Tensor, min_psnr: float
) -> tuple[Tensor, Tensor]:
    """Interpolate between x and y as far towards y as PSNR ≥ min_psnr allows after rounding.

    Args:
        images: Clean images x, (N,3,H,W) on the 8-bit grid.
        adversarial: Their examples y, of the same shape.
        min_psnr: Bound in dB.

    Returns:
        The examples on the 8-bit grid, (N,3,H,W), and the fractions (N,) in [0,1] of the way from x
        to y, found to a thousandth of themselves.
    """
    chunk_size = inference_chunk_size(images)
    if len(images) > chunk_size:
        chunks = zip(images.split(chunk_size), adversarial.split(chunk_size), strict=True)
        projected = [project_to_min_psnr(x, y, min_psnr) for x, y in chunks]
        return torch.cat([y for y, _ in projected]), torch.cat([f for _, f in projected])

    def holds(fraction: Tensor) -> Tensor:
        return psnr(images, quantize(interpolate(images, adversarial, fraction))) >= min_psnr

    # Rounding adds 1/12 of a squared level on average; the closed form with that is off by a
    # hundredth at most, unless the allowed error is of the size of the rounding. |round(κ·d)| grows
    # with κ, so there is one bound: bracket it (holds at `low`, not at `high`), then bisect.
    rounding = 1 / (12 * 255**2)
    allowed = max(10 ** (-min_psnr / 10) - rounding, rounding)
    start = max_fraction(images, adversarial, -10 * math.log10(allowed))
    unchanged = holds(torch.ones_like(start))
    low = torch.where(unchanged, 1.0, 0.98 * start)
    high = torch.where(unchanged, 1.0, (1.02 * start).clamp_max(1))
    for _ in range(10):
        too_far = ~holds(low)
        if not bool(too_far.any()):
            break
        high, low = torch.where(too_far, low, high), torch.where(too_far, low / 2, low)
    else:
        low = torch.where(holds(low), low, 0.0)
    while bool((too_near := holds(high) & (high < 1)).any()):
        low = torch.where(too_near, high, low)
        high = torch.where(too_near, 1.1 * high, high).clamp_max(1)
    # Each row stops by itself, whatever its batch.
    while bool((unresolved := high - low > 1e-3 * high).any()):
        middle = (low + high) / 2
        satisfied = holds(middle)
        low = torch.where(unresolved & satisfied, middle, low)
        high = torch.where(unresolved & ~satisfied, middle, high)
    return quantize(interpolate(images, adversarial, low)), low

"""Where an adversarial example may be: on the 8-bit grid and near enough to its picture."""

import math
from functools import partial

import torch
from kornia import metrics
from torch import Tensor

SSIM_WINDOW = 11


def inference_chunk_size(images: Tensor) -> int:
    """How many images of a batch to work on together without a gradient.

    On a CPU as many as stay in its caches: three times as fast at 500×500; on a GPU all.
    """
    if images.device.type != "cpu" or not len(images):
        return max(1, len(images))
    return max(1, 2**20 // images[0].numel())


def quantize(images: Tensor) -> Tensor:
    """Round [0,1] to the 256 levels that a PNG stores."""
    return images.clamp(0, 1).mul(255).round().div(255)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, by kornia.

    Args:
        images: (N,3,H,W) in [0,1].
        others: the images to compare with, of the same shape.

    Returns:
        (N,) in dB, infinite where two images are equal.
    """
    return torch.vmap(partial(metrics.psnr, max_val=1.0))(images, others)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each image, by kornia: Gaussian window of 11 pixels, sigma 1.5.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural
    Similarity, 2004.

    Args:
        images: (N,3,H,W) in [0,1], each side at least 11 pixels.
        others: the images to compare with, of the same shape.

    Returns:
        (N,) in [-1,1], the mean over channels and over the pixels whose window lies in the image.

    Raises:
        ValueError: if a side is less than 11 pixels.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images must be at least {SSIM_WINDOW} pixels on each side, "
            f"got {images.shape[-2]}×{images.shape[-1]}"
        )
    similarity = metrics.ssim(images, others, SSIM_WINDOW, 1.0, eps=0.0, padding="valid")
    return similarity.mean(dim=(1, 2, 3))


def line_fraction(images: Tensor, adversarial: Tensor, min_psnr: float) -> Tensor:
    """Largest κ in [0,1] for which x + κ(y - x) keeps min_psnr dB. Differentiable.

    Returns: (N,), 1 where y is near enough already.
    """
    mse = (adversarial - images).square().flatten(1).mean(dim=1)
    allowed = 10 ** (-min_psnr / 10)
    return torch.sqrt(allowed / mse.clamp_min(1e-12)).clamp_max(1)


def interpolate(images: Tensor, adversarial: Tensor, fraction: Tensor) -> Tensor:
    """The point x + fraction·(y - x) of each line. fraction: (N,)."""
    return torch.lerp(images, adversarial, fraction.view(-1, 1, 1, 1))


@torch.no_grad()
def project_to_min_psnr(
    images: Tensor, adversarial: Tensor, min_psnr: float
) -> tuple[Tensor, Tensor]:
    """Stored example nearest to y on the line to x with PSNR(x, y) ≥ min_psnr after rounding.

    images, adversarial: (N,3,H,W); images on the 8-bit grid. Returns: the quantised example and
    the fraction (N,) of the line that was kept, found to a thousandth of itself.
    """
    few = inference_chunk_size(images)
    if len(images) > few:
        parts = zip(images.split(few), adversarial.split(few), strict=True)
        done = [project_to_min_psnr(x, y, min_psnr) for x, y in parts]
        return torch.cat([y for y, _ in done]), torch.cat([kept for _, kept in done])

    def holds(fraction: Tensor) -> Tensor:
        return psnr(images, quantize(interpolate(images, adversarial, fraction))) >= min_psnr

    # Rounding adds 1/12 of a squared level on average; the closed form with that is off by a
    # hundredth at most, unless the whole allowance is of the size of the rounding. |round(κ·d)|
    # grows with κ, so there is one end: bracket it (holds at `kept`, not at `high`), then halve.
    rounding = 1 / (12 * 255**2)
    allowed = max(10 ** (-min_psnr / 10) - rounding, rounding)
    start = line_fraction(images, adversarial, -10 * math.log10(allowed))
    whole = holds(torch.ones_like(start))
    kept = torch.where(whole, 1.0, 0.98 * start)
    high = torch.where(whole, 1.0, (1.02 * start).clamp_max(1))
    for _ in range(10):
        bad = ~holds(kept)
        if not bool(bad.any()):
            break
        high, kept = torch.where(bad, kept, high), torch.where(bad, kept / 2, kept)
    else:
        kept = torch.where(holds(kept), kept, 0.0)
    while bool((more := holds(high) & (high < 1)).any()):
        kept, high = torch.where(more, high, kept), torch.where(more, 1.1 * high, high).clamp_max(1)
    while bool((wide := high - kept > 1e-3 * high).any()):  # each row by itself, whatever its batch
        middle = (kept + high) / 2
        good = holds(middle)
        kept = torch.where(wide & good, middle, kept)
        high = torch.where(wide & ~good, middle, high)
    return quantize(interpolate(images, adversarial, kept)), kept

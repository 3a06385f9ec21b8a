"""What a victim promises, tried out on a few images."""

from __future__ import annotations

import torch
from torch import Tensor

from victims.base import ScoreScale, Victim

PROBES = 3
# Share of the scores' size by which two calls on one image may differ: rounding, not batch mates.
TOLERANCE = 1e-3


def probe(
    victim: Victim, scale: ScoreScale | None, size: tuple[int, int], device: torch.device
) -> bool:
    """Try the promises of `victims.base.Victim` out.

    Args:
        victim: In the state that attacks will find it in.
        scale: Its scale, None where it has none. Scores may leave it by half its range.
        size: Height and width of the probe images, pixels.
        device: Where to put them.

    Returns:
        Whether a gradient reaches the pixels; False without a look where `differentiable` is False.

    Raises:
        ValueError: If scores have another shape than (N,), are not finite, off the scale, differ
            between two calls, or depend on batch mates; or if a gradient is not finite.
    """
    images = probe_images(size).to(device)
    with torch.no_grad():
        scores = _scores(victim, images)
        again = _scores(victim, images)
        single = _scores(victim, images[:1])
    if scale is not None:
        room = scale.range / 2
        off = (scores < scale.low - room) | (scores > scale.high + room)
        if bool(off.any()):
            raise ValueError(
                f"scores of {victim.name} must be on the scale of {scale.low:g} to {scale.high:g}, "
                f"got {float(scores[off][0]):g}"
            )
    tolerance = TOLERANCE * (max(1.0, float(scores.abs().max())) if scale is None else scale.range)
    if float((scores - again).abs().max()) > tolerance:
        raise ValueError(
            f"{victim.name} must give one image one score, got {float(scores[0]):g} and then "
            f"{float(again[0]):g} (dropout?)"
        )
    if float((scores[:1] - single).abs().max()) > tolerance:
        raise ValueError(
            f"a score of {victim.name} must not depend on the other images of a batch, got "
            f"{float(single[0]):g} alone and {float(scores[0]):g} among {PROBES}"
        )
    return _has_gradient(victim, images) if victim.differentiable else False


def probe_images(size: tuple[int, int]) -> Tensor:
    """Smooth colours with a little noise, the same at each call.

    Args:
        size: Height and width in pixels.

    Returns:
        RGB (3,3,H,W) in [0.1,0.9], on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(PROBES, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return 0.1 + 0.7 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator)


def _scores(victim: Victim, images: Tensor) -> Tensor:
    try:
        scores = victim(images)
    except ValueError:
        raise
    except Exception as error:  # a user's function may raise anything
        shape = tuple(images.shape)
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise ValueError(
            f"{victim.name} must score RGB images {shape} in [0, 1], got {type(error).__name__}: "
            f"{reason}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{victim.name} must return scores of shape (N,), got {got} for {len(images)} images"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(f"scores of {victim.name} must be finite, got {scores.tolist()}")
    return scores.float()


def _has_gradient(victim: Victim, images: Tensor) -> bool:
    with torch.enable_grad():
        leaf = images.clone().requires_grad_(True)
        scores = victim(leaf)
        if not scores.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    if gradient is None or not bool(gradient.any()):
        return False
    if not bool(gradient.isfinite().all()):
        raise ValueError(f"gradient of {victim.name} must be finite, got NaN or infinity")
    return True

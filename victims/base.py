"""The victim contract: inputs, outputs and guarantees of a model under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from victims.checks import check_number, check_whole_number


@dataclass(frozen=True)
class ScoreScale:
    """The native opinion scale of a victim.

    Args:
        low: Lower end.
        high: Upper end.
        threshold: Between poor and good.

    Raises:
        ValueError: Unless low < threshold < high, all finite.
    """

    low: float
    high: float
    threshold: float

    def __post_init__(self) -> None:
        for name in ("low", "threshold", "high"):
            check_number(name, getattr(self, name))
        if not self.low < self.threshold < self.high:
            raise ValueError(
                "scale must satisfy low < threshold < high, "
                f"got low={self.low}, threshold={self.threshold}, high={self.high}"
            )

    @classmethod
    def of(cls, low: float, high: float) -> ScoreScale:
        """Build a scale with the threshold at 0.55 of its range: 5.5 on a scale of 0 to 10.

        Args:
            low: Lower end.
            high: Upper end.

        Returns:
            The scale.

        Raises:
            ValueError: Unless low < high, both finite.
        """
        for name, value in (("low", low), ("high", high)):
            check_number(name, value)
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        return cls(low, high, low + 0.55 * (high - low))

    @property
    def range(self) -> float:
        """Width of the scale."""
        return self.high - self.low


@runtime_checkable
class Victim(Protocol):
    """A scorer of images: RGB (N,3,H,W) in [0,1] to (N,) scores on `scale`.

    A score depends on its image alone, not on the rest of the batch, and is never sampled. Resize,
    crop and normalisation are part of the victim, differentiably unless `differentiable` is False.
    """

    @property
    def name(self) -> str:
        """Short name for tables and folders."""

    @property
    def scale(self) -> ScoreScale:
        """Scale of the scores."""

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow from the scores to the images."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Score a batch.

        Args:
            images: RGB (N,3,H,W) in [0,1].

        Returns:
            (N,) on `scale`.
        """


def check_images(images: Tensor) -> None:
    """Check that images are a floating point batch of shape (N,3,H,W).

    Values are not checked: that would synchronise with the GPU in every step of an attack.

    Args:
        images: To be checked.

    Raises:
        ValueError: For another shape or type.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"images must have shape (N, 3, H, W) with H, W > 0, got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating point in [0, 1], got {images.dtype} (divide by 255?)"
        )


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images to a square, bilinear with antialiasing; the aspect ratio is not kept.

    Args:
        images: (N,3,H,W).
        size: Side in pixels.

    Returns:
        (N,3,size,size); images itself where it has this size.
    """
    if images.shape[2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def squash(image: Tensor, size: int) -> Tensor:
    """Resize an image to a square as `resize` does, and round it to 8 bits.

    Args:
        image: (3,H,W) in [0,1].
        size: Side in pixels.

    Returns:
        uint8 (3,size,size).
    """
    small = resize(image.unsqueeze(0), size)[0]
    return small.clamp(0, 1).mul(255).round().byte()


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model as safetensors takes it.

    Args:
        model: Any module.

    Returns:
        Contiguous tensors on the CPU, by name.
    """
    return {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}


def freeze_batch_norm_stats(model: nn.Module) -> None:
    """Put the batch norms of a model in training into eval mode, so that running statistics stay.

    Args:
        model: Changed in place.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class TorchVictim(nn.Module):
    """Base of victims that are torch modules; starts in eval mode with frozen parameters.

    A subclass implements `score`, which gets a checked batch in the dtype of the victim, and
    `config`, the JSON-able arguments from which `registry.build_victim` builds it again.

    Args:
        name: Short name for tables and folders.
        scale: Of the scores.
    """

    differentiable = True

    def __init__(self, name: str, scale: ScoreScale) -> None:
        super().__init__()
        self.name = name
        self.scale = scale
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self._anchor: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Score a batch.

        Args:
            images: RGB (N,3,H,W) in [0,1], of any floating point type.

        Returns:
            (N,) on the scale.

        Raises:
            ValueError: For images of another shape or type.
        """
        check_images(images)
        # Half and double images are cast to the precision of the victim.
        return self.score(images.to(self._anchor.dtype))

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch.

        Args:
            images: RGB (N,3,H,W) in [0,1], in the dtype of the victim.

        Returns:
            (N,) on the scale.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `registry.build_victim`, without the weights."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self._anchor.device

    def freeze(self) -> None:
        """Switch to eval mode and freeze all parameters, as attacks and scoring need it."""
        self.eval().requires_grad_(False)


class ScoreOnly:
    """A victim reduced to its scores, without a gradient.

    Args:
        victim: To be wrapped.

    Attributes:
        queries: Number of images scored so far.
    """

    differentiable = False

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.queries = 0

    @property
    def name(self) -> str:
        """Name of the wrapped victim."""
        return self.victim.name

    @property
    def scale(self) -> ScoreScale:
        """Scale of the wrapped victim."""
        return self.victim.scale

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Tensor:
        """Score a batch without a gradient and count its images.

        Args:
            images: RGB (N,3,H,W) in [0,1].

        Returns:
            (N,) on `scale`.
        """
        scores = self.victim(images)
        self.queries += len(images)
        return scores


@torch.no_grad()
def score_images(
    victim: Victim,
    images: Sequence[Tensor],
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Score images of mixed sizes; only images of one size share a batch.

    Args:
        victim: Model that scores.
        images: n images (3,H,W), floating point in [0,1] or uint8.
        batch_size: Largest number of images per batch, ≥ 1.
        device: Of the victim, if the images are on another one.

    Returns:
        (n,) float32 on the CPU, in the order of images, on the scale of the victim.

    Raises:
        ValueError: If a score is not finite.
    """
    check_whole_number("batch_size", batch_size, 1)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(index)
    scores = torch.empty(len(images))
    for group in by_size.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            batch = torch.stack([images[index] for index in part]).to(device)
            if batch.dtype == torch.uint8:
                batch = batch.float() / 255
            scores[part] = victim(batch).float().cpu()
    bad = (~scores.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"scores must be finite, got {scores[bad[0]].item()} from {victim.name} "
            f"for image {bad[0].item()} ({len(bad)} of {len(images)} images)"
        )
    return scores

"""The victim contract: what a model under attack takes, returns and promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class ScoreScale:
    """The native opinion scale of a victim: its ends, and the threshold from poor to good.

    Raises: ValueError unless low < threshold < high, all finite.
    """

    low: float
    high: float
    threshold: float

    def __post_init__(self) -> None:
        ends = (self.low, self.threshold, self.high)
        if not (all(map(isfinite, ends)) and self.low < self.threshold < self.high):
            raise ValueError(
                "scale must satisfy low < threshold < high, "
                f"got low={self.low}, threshold={self.threshold}, high={self.high}"
            )

    @classmethod
    def of(cls, low: float, high: float) -> ScoreScale:
        """Put the threshold at 0.55 of the range: 5.5 on a scale of 0 to 10."""
        return cls(low, high, low + 0.55 * (high - low))

    @property
    def range(self) -> float:
        """Width of the scale."""
        return self.high - self.low


@runtime_checkable
class Victim(Protocol):
    """A scorer of images: RGB (N, 3, H, W) in [0, 1] to (N,) scores on `scale`.

    A score depends on its own image only, never on batch mates, and is never sampled. The victim
    owns resize, crop and normalisation, differentiably unless `differentiable` is False.
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
        """Score a batch."""


def check_images(images: Tensor) -> None:
    """Raise ValueError unless images is a floating point batch of shape (N, 3, H, W).

    Values are not looked at: that would wait for the GPU in every step of an attack.
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
    """Squash images to size x size, bilinear with antialiasing; leave them alone if they fit."""
    if images.shape[2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """The state as safetensors takes it: on the CPU, without gaps."""
    return {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}


def freeze_batch_norm_stats(model: nn.Module) -> None:
    """Put the batch norms of a model in training into eval mode: running statistics stay."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class TorchVictim(nn.Module):
    """Base of victims that are torch modules: born in eval mode, with frozen parameters.

    A subclass implements `score`, which gets a checked batch in the dtype of the victim, and
    `config`, the JSON-able arguments from which `registry.build_victim` builds it again.
    """

    differentiable = True

    def __init__(self, name: str, scale: ScoreScale) -> None:
        super().__init__()
        self.name = name
        self.scale = scale
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self._anchor: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Score RGB images (N, 3, H, W) in [0, 1]: (N,) on the scale."""
        check_images(images)
        # A cast to the victim's own precision, so half or double images just work.
        return self.score(images.to(self._anchor.dtype))

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch: (N,)."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Describe how to build this victim again, without its weights."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the victim computes."""
        return self._anchor.device

    def freeze(self) -> None:
        """Put the victim in the state that attacks and scoring need: no dropout, no updates."""
        self.eval().requires_grad_(False)


class ScoreOnly:
    """A victim seen through its scores alone: no gradient, and `queries` counts scored images."""

    differentiable = False

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.queries = 0

    @property
    def name(self) -> str:
        """Name of the victim inside."""
        return self.victim.name

    @property
    def scale(self) -> ScoreScale:
        """Scale of the victim inside."""
        return self.victim.scale

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Tensor:
        """Score a batch without a gradient."""
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
    """Score images of many sizes; only images of one size share a batch.

    images: each (3, H, W), floating point in [0, 1] or uint8. device: where the victim is, if the
    images are elsewhere. Returns: (n,) float32 scores on the CPU, in the order of images.
    Raises: ValueError if a score is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
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

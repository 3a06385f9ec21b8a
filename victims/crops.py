"""Quality models that score crops: fixed and random crops, and the base class they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from victims.base import ScoreScale, TorchVictim
from victims.weights import load_backbone


def draw_corners(
    height: int, width: int, size: int, count: int, generator: torch.Generator
) -> Tensor:
    """Top-left corners (count, 2) of random crops; 0 along a side that is not above size."""
    room = torch.tensor([max(height - size, 0), max(width - size, 0)]) + 1
    drawn = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return (drawn * room).long().minimum(room - 1)


def spread_corners(height: int, width: int, size: int) -> Tensor:
    """The corners of the four corner crops and the central one; of one where all are the same."""
    bottom, right = max(height - size, 0), max(width - size, 0)
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return torch.tensor(sorted(set(places)))


def enlarge(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) with each side at least size; the aspect ratio is kept (bilinear)."""
    height, width = images.shape[2:]
    factor = size / min(height, width)
    if factor <= 1:
        return images
    sides = [max(size, round(side * factor)) for side in (height, width)]
    return functional.interpolate(images, sides, mode="bilinear")


def take_crops(image: Tensor, corners: Tensor, size: int) -> Tensor:
    """Crops (n, 3, size, size) of one image (3, H, W) at corners (n, 2). Differentiable."""
    image = enlarge(image[None], size)[0]
    return torch.stack(
        [image[:, top : top + size, left : left + size] for top, left in corners.tolist()]
    )


def random_crops(images: Sequence[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """One crop and flip of each item, drawn anew: (n, views, 3, size, size).

    images: each (views, 3, H, W), whose views get the same crop. Differentiable.
    """
    crops = []
    for views in images:
        views = enlarge(views, size)
        ((top, left),) = draw_corners(*views.shape[2:], size, 1, generator).tolist()
        window = views[:, :, top : top + size, left : left + size]
        flip = float(torch.rand((), generator=generator)) < 0.5
        crops.append(window.flip(3) if flip else window)
    return torch.stack(crops)


class CropVictim(TorchVictim):
    """Base of models that score crops of input_size × input_size at native resolution.

    The score of an image is the mean over its four corner crops and the central one; an image of
    exactly the input size is one crop. One that is smaller is enlarged first. A subclass
    implements `quality`; quality 0 is the low end of the scale and 1 the high end, and a score may
    leave it (labels of P-BAIQA do).
    backbone: a timm model with `forward_intermediates`. frozen_stages: how many leading stages
    (of the backbone's feature_info) training leaves as they are.
    """

    input_size: int
    # Loss of the published training: see victims.regression.LOSSES.
    loss = "l1"

    def __init__(
        self,
        name: str,
        scale: ScoreScale,
        backbone: str,
        input_size: int,
        pretrained: str,
        frozen_stages: int,
        stages: int,
    ) -> None:
        super().__init__(name, scale)
        if input_size < 32:
            raise ValueError(f"input_size must be at least 32, got {input_size}")
        network: Any = load_backbone(backbone, pretrained)
        info = list(network.feature_info)
        if not hasattr(network, "forward_intermediates") or len(info) < stages:
            raise ValueError(
                f"backbone must be a timm model with {stages} stages of features, got {backbone!r}"
            )
        if not 0 <= frozen_stages <= len(info):
            raise ValueError(f"frozen_stages must be in [0, {len(info)}], got {frozen_stages}")
        self.input_size, self.frozen_stages = input_size, frozen_stages
        self.backbone = network
        self.channels = [int(stage["num_chs"]) for stage in info][-stages:]
        for key in ("mean", "std"):
            value = torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        # Which channels of the last map are left: see defenders.pruning.
        self.register_buffer("kept", torch.ones(self.channels[-1]))
        self.kept: Tensor
        self._config = {
            "name": name,
            "backbone": backbone,
            "input_size": input_size,
            "pretrained": pretrained,
            "frozen_stages": frozen_stages,
        }

    def maps(self, crops: Tensor) -> list[Tensor]:
        """Feature maps of the last stages, deepest last, with pruned channels at 0."""
        images = ((crops - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        every = self.backbone.forward_intermediates(images, intermediates_only=True)
        maps: list[Tensor] = every[-len(self.channels) :]
        maps[-1] = maps[-1] * self.kept[:, None, None]
        return maps

    def quality(self, crops: Tensor) -> Tensor:
        """Score crops (N, 3, S, S): (N,), 0 to 1 over the scale."""
        raise NotImplementedError

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch: (N,)."""
        images = enlarge(images, self.input_size)
        corners = spread_corners(*images.shape[2:], self.input_size).tolist()
        size = self.input_size
        crops = [images[:, :, top : top + size, left : left + size] for top, left in corners]
        quality = self.quality(torch.cat(crops)).view(len(corners), len(images))
        return self.scale.low + self.scale.range * quality.mean(dim=0)

    def frozen(self) -> set[nn.Parameter]:
        """Parameters of the leading frozen stages, in the order the backbone runs them."""
        if not self.frozen_stages:
            return set()
        last = self.backbone.feature_info[self.frozen_stages - 1]["module"]
        modules = list(self.backbone.named_modules())
        end = max(i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{last}."))
        return {p for _, m in modules[: end + 1] for p in m.parameters(recurse=False)}

    def config(self) -> dict[str, Any]:
        """Describe how to build this victim again, without its weights."""
        return dict(self._config)


@torch.no_grad()
def crop_scores(victim: CropVictim, image: Tensor, corners: Tensor, batch: int = 32) -> Tensor:
    """Scores (n,) of the crops of one image (3, H, W) in [0, 1] at corners (n, 2)."""
    crops = take_crops(image, corners, victim.input_size)
    return torch.cat([victim(part) for part in crops.split(batch)])

"""The base of quality models that score crops with the stages of a timm backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from victims.backbones import load_backbone
from victims.base import ScoreScale, TorchVictim
from victims.crops import enlarge, five_crop_corners


class QualityModel(TorchVictim):
    """Base of models that score crops of input_size × input_size at native resolution.

    The score of an image is the mean over its four corner crops and the central one; an image of
    exactly the input size is one crop. One that is smaller is enlarged first. A subclass
    implements `quality`; quality 0 is the low end of the scale and 1 the high end, and a score may
    leave it (labels of P-BAIQA do).

    Args:
        name: Short name for tables and folders.
        scale: Of the scores.
        backbone: Name of a timm model with `forward_intermediates`.
        input_size: Side of a crop in pixels, ≥ 32.
        pretrained: Source of the weights, as in `backbones.load_backbone`.
        frozen_stages: Leading stages of the backbone's feature_info that training leaves unchanged.
        stages: Number of last stages whose maps the subclass uses.

    Raises:
        ValueError: For an argument out of range.
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
        # 0 for pruned channels of the last map, see defenders.pruning.
        self.register_buffer("channel_mask", torch.ones(self.channels[-1]))
        self.channel_mask: Tensor
        self._config = {
            "name": name,
            "backbone": backbone,
            "input_size": input_size,
            "pretrained": pretrained,
            "frozen_stages": frozen_stages,
        }

    def maps(self, crops: Tensor) -> list[Tensor]:
        """Compute the feature maps of the last stages.

        Args:
            crops: (N,3,S,S) in [0,1].

        Returns:
            Maps (N,C,h,w), deepest last, with pruned channels at 0.
        """
        images = ((crops - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        stages = self.backbone.forward_intermediates(images, intermediates_only=True)
        maps: list[Tensor] = stages[-len(self.channels) :]
        maps[-1] = maps[-1] * self.channel_mask[:, None, None]
        return maps

    def quality(self, crops: Tensor) -> Tensor:
        """Score crops.

        Args:
            crops: (N,3,S,S) in [0,1].

        Returns:
            (N,), 0 to 1 from the low to the high end of the scale.
        """
        raise NotImplementedError

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch: the mean over the crops of each image.

        Args:
            images: RGB (N,3,H,W) in [0,1], in the dtype of the victim.

        Returns:
            (N,) on the scale, which it may leave.
        """
        images = enlarge(images, self.input_size)
        corners = five_crop_corners(images.shape[2:], self.input_size).tolist()
        size = self.input_size
        crops = [images[:, :, top : top + size, left : left + size] for top, left in corners]
        quality = self.quality(torch.cat(crops)).view(len(corners), len(images))
        return self.scale.low + self.scale.range * quality.mean(dim=0)

    def frozen(self) -> set[nn.Parameter]:
        """Parameters of the leading frozen stages of the backbone."""
        if not self.frozen_stages:
            return set()
        last = self.backbone.feature_info[self.frozen_stages - 1]["module"]
        modules = list(self.backbone.named_modules())
        end = max(i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{last}."))
        return {p for _, m in modules[: end + 1] for p in m.parameters(recurse=False)}

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `registry.build_victim`, without the weights."""
        return dict(self._config)

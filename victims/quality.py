"""The base of quality models that score crops: a timm backbone, its stages, training marks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from victims.base import ScoreScale, TorchVictim
from victims.crops import enlarge, five_crop_corners
from victims.weights import load_backbone


class QualityModel(TorchVictim):
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
        """Feature maps of the last stages, deepest last, with pruned channels at 0."""
        images = ((crops - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        every = self.backbone.forward_intermediates(images, intermediates_only=True)
        maps: list[Tensor] = every[-len(self.channels) :]
        maps[-1] = maps[-1] * self.channel_mask[:, None, None]
        return maps

    def quality(self, crops: Tensor) -> Tensor:
        """Score crops (N, 3, S, S): (N,), 0 to 1 over the scale."""
        raise NotImplementedError

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch: (N,)."""
        images = enlarge(images, self.input_size)
        corners = five_crop_corners(images.shape[2:], self.input_size).tolist()
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

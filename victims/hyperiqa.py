"""HyperIQA: a hypernetwork generates the quality regression network from the image content."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from victims.base import ScoreScale
from victims.quality import QualityModel

GRID = 7
CODE = 112  # channels of the content map that weights are generated from
TARGET = (224, 112, 56, 28, 14)  # widths of the generated layers; a scalar layer follows
LOCAL = 16  # numbers from each stage but the last


class HyperIQA(QualityModel):
    """Local distortion and content features, regressed by layers that are generated for each crop.

    Uses the last four stages of the backbone. A target vector of 224 joins 16 numbers from each of
    the first three stages and 176 from the last one; a hypernetwork on the 7×7 map of the last
    stage generates the layers 224-112-56-28-14-1, with sigmoids between.
    Source: Su et al., Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper
    Network, 2020 (there on ResNet-50).

    Args:
        scale: Of the scores.
        backbone: Name of a timm model with at least four stages.
        input_size: Side of a crop in pixels, ≥ 32.
        pretrained: Source of the weights, as in `backbones.load_backbone`.
        frozen_stages: Leading stages of the backbone that training leaves unchanged.
        name: Short name, "hyperiqa-" and the backbone unless given.

    Raises:
        ValueError: For an argument out of range.
    """

    loss = "l1"

    def __init__(
        self,
        scale: ScoreScale,
        backbone: str = "resnet50",
        input_size: int = 224,
        pretrained: str = "none",
        frozen_stages: int = 0,
        name: str | None = None,
    ) -> None:
        name = name or f"hyperiqa-{backbone}"
        super().__init__(name, scale, backbone, input_size, pretrained, frozen_stages, stages=4)
        *early, last = self.channels
        self.local = nn.ModuleList(_LocalDistortion(channels) for channels in early)
        self.content = nn.Linear(last, TARGET[0] - LOCAL * len(early))
        self.code = nn.Sequential(
            nn.Conv2d(last, last // 2, 1),
            nn.ReLU(),
            nn.Conv2d(last // 2, last // 4, 1),
            nn.ReLU(),
            nn.Conv2d(last // 4, CODE, 1),
            nn.ReLU(),
        )
        pairs = list(pairwise(TARGET))
        self.weights = nn.ModuleList(
            nn.Conv2d(CODE, wide * narrow // GRID**2, 3, padding=1) for wide, narrow in pairs
        )
        self.biases = nn.ModuleList(nn.Linear(CODE, narrow) for _, narrow in pairs)
        self.last_weight = nn.Linear(CODE, TARGET[-1])
        self.last_bias = nn.Linear(CODE, 1)
        for module in (*self.weights, *self.biases, self.last_weight, self.last_bias):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
        nn.init.zeros_(self.last_weight.weight)
        nn.init.zeros_(self.last_bias.weight)
        nn.init.constant_(self.last_weight.bias, 0.05)
        self.to(memory_format=torch.channels_last)
        self._config["kind"] = "hyperiqa"
        self.freeze()

    def quality(self, crops: Tensor) -> Tensor:
        """Score crops, each with the layers that are generated for it.

        Args:
            crops: (N,3,S,S) in [0,1], S = input_size.

        Returns:
            (N,), 0 to 1 from the low to the high end of the scale, which it may leave.
        """
        *early, last = self.maps(crops)
        content = self.content(last.mean(dim=(2, 3)))
        local = [module(stage) for module, stage in zip(self.local, early, strict=True)]
        vector = torch.cat([*local, content], dim=1)
        code = self.code(functional.adaptive_avg_pool2d(last, GRID))
        pooled = code.mean(dim=(2, 3))
        for weights, biases in zip(self.weights, self.biases, strict=True):
            bias = biases(pooled)
            matrix = weights(code).reshape(len(crops), bias.shape[1], vector.shape[1])
            vector = torch.sigmoid(torch.bmm(matrix, vector[..., None])[..., 0] + bias)
        return (self.last_weight(pooled) * vector).sum(dim=1) + self.last_bias(pooled)[:, 0]


class _LocalDistortion(nn.Module):
    """Reduce a map, pool it to 7×7 and flatten it to 16 numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, LOCAL, 1)
        self.linear = nn.Linear(LOCAL * GRID**2, LOCAL)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N,C,h,w) to (N,16)."""
        # The 1×1 convolution is linear, so pooling first is the same and cheaper.
        pooled = functional.adaptive_avg_pool2d(features, GRID)
        return self.linear(self.reduce(pooled).flatten(1))

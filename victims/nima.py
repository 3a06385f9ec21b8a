"""NIMA: any timm backbone, pooled, with a head that predicts the distribution of opinions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from victims.backbones import load_backbone
from victims.base import ScoreScale, TorchVictim, resize
from victims.heads import HEADS


class Nima(TorchVictim):
    """A pooled timm backbone, dropout and a D10 or scalar head.

    The whole image is resized to a square, bilinear with antialiasing and without keeping the
    aspect ratio, and normalised with the mean and std of the backbone's pretrained_cfg.
    Source: Talebi and Milanfar, NIMA: Neural Image Assessment, 2018.

    Args:
        scale: Of the scores.
        backbone: Name of a timm model.
        input_size: Side in pixels, ≥ 32; a larger one shows more of noise and blur at a cost that
            grows with its square.
        pretrained: Source of the weights, as in `backbones.load_backbone`.
        dropout: Probability, in [0,1).
        head: "d10" or "scalar".
        name: Short name, "nima-" and the backbone unless given.

    Raises:
        ValueError: For an argument out of range.
    """

    def __init__(
        self,
        scale: ScoreScale,
        backbone: str,
        input_size: int = 224,
        pretrained: str = "none",
        dropout: float = 0.75,
        head: str = "d10",
        name: str | None = None,
    ) -> None:
        super().__init__(name or f"nima-{backbone}", scale)
        if input_size < 32:
            raise ValueError(f"input_size must be at least 32, got {input_size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        self.input_size = input_size
        self._config = {
            "kind": "nima",
            "name": self.name,
            "backbone": backbone,
            "input_size": input_size,
            "pretrained": pretrained,
            "dropout": dropout,
            "head": head,
        }
        network: Any = load_backbone(backbone, pretrained)
        self.backbone = network
        self.head = HEADS[head](network.head_hidden_size, scale, dropout)
        for key in ("mean", "std"):
            value = torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        # Two to five times faster than contiguous on the CPUs and GPUs measured.
        self.to(memory_format=torch.channels_last)
        self.freeze()

    def score(self, images: Tensor) -> Tensor:
        """Score a checked batch.

        Args:
            images: RGB (N,3,H,W) in [0,1], in the dtype of the victim.

        Returns:
            (N,) on the scale.
        """
        return self.head.scores(self.head(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """Resize and normalise images and compute their pooled features.

        Args:
            images: RGB (N,3,H,W) in [0,1].

        Returns:
            (N,C).
        """
        images = (resize(images, self.input_size) - self.mean) / self.std
        return self.backbone(images.contiguous(memory_format=torch.channels_last))

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `registry.build_victim`, without the weights."""
        return dict(self._config)

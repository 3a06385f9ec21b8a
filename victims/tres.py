"""TReS: a Transformer over pooled stages of a backbone, joined with the last stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from victims.base import ScoreScale
from victims.quality import QualityModel

GRID, HEADS, DEPTH, WIDTH = 7, 16, 2, 256


class TReS(QualityModel):
    """L2-pooled stages as 7×7 tokens, two Transformer layers of 16 heads, and the last stage.

    Tokens are projected to a width of 256, which the heads divide for any backbone.
    Source: Golestaneh et al., No-Reference Image Quality Assessment via Transformers, Relative
    Ranking, and Self-Consistency, 2022 (there on ResNet-18).

    Args:
        scale: Of the scores.
        backbone: Name of a timm model with at least four stages.
        input_size: Side of a crop in pixels, ≥ 32.
        pretrained: Source of the weights, as in `backbones.load_backbone`.
        frozen_stages: Leading stages of the backbone that training leaves unchanged.
        dropout: Probability in the Transformer, in [0,1).
        name: Short name, "tres-" and the backbone unless given.

    Raises:
        ValueError: For an argument out of range.
    """

    loss = "tres"

    def __init__(
        self,
        scale: ScoreScale,
        backbone: str = "resnet18",
        input_size: int = 224,
        pretrained: str = "none",
        frozen_stages: int = 0,
        dropout: float = 0.1,
        name: str | None = None,
    ) -> None:
        name = name or f"tres-{backbone}"
        super().__init__(name, scale, backbone, input_size, pretrained, frozen_stages, stages=4)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.embed = nn.Linear(sum(self.channels), WIDTH)
        self.place = nn.Parameter(torch.randn(GRID**2, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH + self.channels[-1], 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, 0.5)
        self.to(memory_format=torch.channels_last)
        self._config |= {"kind": "tres", "dropout": dropout}
        self.freeze()

    def quality(self, crops: Tensor) -> Tensor:
        """Score crops from the encoded tokens and the pooled last map.

        Args:
            crops: (N,3,S,S) in [0,1], S = input_size.

        Returns:
            (N,), 0 to 1 from the low to the high end of the scale, which it may leave.
        """
        maps = self.maps(crops)
        # Root mean square within a cell, then unit length over the channels.
        pooled = [
            (functional.adaptive_avg_pool2d(stage.square(), GRID) + 1e-12).sqrt() for stage in maps
        ]
        tokens = torch.cat([functional.normalize(stage) for stage in pooled], dim=1)
        tokens = self.embed(tokens.flatten(2).mT) + self.place
        encoded = self.encoder(tokens).mean(dim=1)
        return self.head(torch.cat([encoded, maps[-1].mean(dim=(2, 3))], dim=1))[:, 0]

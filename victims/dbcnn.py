"""DBCNN: a semantic and a distortion network, joined by bilinear pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from victims.base import ScoreScale
from victims.quality import QualityModel

# (channels, stride) of the distortion network's layers.
LAYERS = ((48, 1), (48, 2), (64, 1), (64, 2), (64, 1), (64, 2), (128, 1), (128, 2), (128, 1))


class DBCNN(QualityModel):
    """Bilinear pooling of the last maps of a backbone and a small CNN, signed root, L2, linear.

    The small network is trained together with the backbone; the paper trains it beforehand on
    synthetic distortions, which are not available here.
    Source: Zhang et al., Blind Image Quality Assessment Using a Deep Bilinear Convolutional Neural
    Network, 2020 (there on VGG16).

    Args:
        scale: Of the scores.
        backbone: Name of a timm model.
        input_size: Side of a crop in pixels, ≥ 32.
        pretrained: Source of the weights, as in `backbones.load_backbone`.
        frozen_stages: Leading stages of the backbone that training leaves unchanged.
        name: Short name, "dbcnn-" and the backbone unless given.

    Raises:
        ValueError: For an argument out of range.
    """

    loss = "mse"

    def __init__(
        self,
        scale: ScoreScale,
        backbone: str = "vgg16",
        input_size: int = 224,
        pretrained: str = "none",
        frozen_stages: int = 0,
        name: str | None = None,
    ) -> None:
        name = name or f"dbcnn-{backbone}"
        super().__init__(name, scale, backbone, input_size, pretrained, frozen_stages, stages=1)
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in LAYERS:
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)]
            layers.append(nn.ReLU())
            channels = out
        self.distortion = nn.Sequential(*layers)
        for layer in self.distortion:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.linear = nn.Linear(self.channels[-1] * channels, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.constant_(self.linear.bias, 0.5)
        self.to(memory_format=torch.channels_last)
        self._config["kind"] = "dbcnn"
        self.freeze()

    def quality(self, crops: Tensor) -> Tensor:
        """Score crops by the bilinear pooling of both networks' last maps.

        Args:
            crops: (N,3,S,S) in [0,1], S = input_size.

        Returns:
            (N,), 0 to 1 from the low to the high end of the scale, which it may leave.
        """
        (semantic,) = self.maps(crops)
        images = (crops - self.mean) / self.std
        distortion = self.distortion(images.contiguous(memory_format=torch.channels_last))
        height, width = semantic.shape[2:]
        distortion = functional.adaptive_avg_pool2d(distortion, (height, width))
        product = torch.bmm(semantic.flatten(2), distortion.flatten(2).mT).flatten(1)
        product = product / (height * width)
        # The signed root, with a slope of 32 instead of infinity at 0.
        signed_root = product / (product.abs() + 1e-3).sqrt()
        return self.linear(functional.normalize(signed_root))[:, 0]

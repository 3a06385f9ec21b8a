import pytest
import torch
from skimage import data
from torch import nn

from victims.backbones import load_backbone, load_in_order
from victims.base import resize


def test_package_weights_know_a_cat():
    """ImageNet classes 281 to 285 are cats; the classifier is put back to ask."""
    import timm

    from victims.backbones import _efficientnet_lite0

    weights = _efficientnet_lite0()
    classifier = nn.Linear(1280, 1000)
    classifier.load_state_dict(
        dict(zip(("weight", "bias"), list(weights.values())[-2:], strict=True))
    )
    backbone = load_backbone("tf_efficientnet_lite0", "package").eval()
    cat = resize(torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255, 224)
    assert timm.create_model("tf_efficientnet_lite0").pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    with torch.no_grad():
        probabilities = classifier(backbone((cat - 0.5) / 0.5)).softmax(dim=1)[0]
    assert 281 <= probabilities.argmax() <= 285
    assert probabilities[281:286].sum() > 0.9


def test_bad_names_raise_one_sentence():
    with pytest.raises(ValueError, match="pretrained must be one of none, package, timm, got 'x'"):
        load_backbone("resnet10t", "x")
    with pytest.raises(ValueError, match=r"backbone must be a timm model .* got 'resnet9000'"):
        load_backbone("resnet9000")
    with pytest.raises(ValueError, match="for backbone 'resnet10t', got 'package'"):
        load_backbone("resnet10t", "package")


def test_load_in_order_checks_count_and_shapes():
    model = nn.Linear(2, 3)
    weights = {"kernel": torch.ones(3, 2), "offset": torch.full((3,), 2.0)}
    load_in_order(model, weights)
    assert model.weight.tolist() == [[1, 1]] * 3
    assert model.bias.tolist() == [2] * 3
    with pytest.raises(ValueError, match="weights must have 2 tensors, got 1"):
        load_in_order(model, {"kernel": torch.ones(3, 2)})
    with pytest.raises(ValueError, match=r"got \(2, 3\) \(kernel\) for \(3, 2\) \(weight\)"):
        load_in_order(model, weights | {"kernel": torch.ones(2, 3)})

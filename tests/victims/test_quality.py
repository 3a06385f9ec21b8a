"""What HyperIQA, DBCNN and TReS share, and what sets each apart."""

import pytest
import torch

from victims.crops import five_crop_corners, take_crops
from victims.hyperiqa import HyperIQA
from victims.registry import build_victim, load_victim, save_victim

KINDS = ("hyperiqa", "dbcnn", "tres")
SCALE = {"low": 0, "high": 100}
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind, **more):
    config = {"kind": kind, "backbone": "test_resnet", "input_size": 64, "scale": SCALE, **more}
    return build_victim(config)


@every_kind
def test_score_is_the_mean_of_five_crops(kind):
    model = build(kind)
    image = torch.rand(3, 100, 80)
    crops = take_crops(image, five_crop_corners(image.shape[1:], 64), 64)
    assert len(crops) == 5
    assert float(model(image[None])) == pytest.approx(float(model(crops).mean()), abs=1e-3)
    small = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(small), 100 * model.quality(small))


@every_kind
def test_every_own_parameter_gets_a_gradient(kind):
    model = build(kind).requires_grad_(True)
    model.quality(torch.rand(4, 3, 64, 64)).square().sum().backward()
    silent = [
        name
        for name, p in model.named_parameters()
        if not name.startswith("backbone.") and (p.grad is None or not p.grad.any())
    ]
    # HyperIQA's last layer starts without a say of the content (zero weights), so the code
    # behind it has a gradient through the generated layers only.
    assert silent == []


@every_kind
@pytest.mark.parametrize("backbone", ["test_efficientnet", "resnet18", "tf_efficientnet_lite0"])
def test_other_backbones(kind, backbone):
    scores = build(kind, backbone=backbone)(torch.rand(2, 3, 70, 64))
    assert scores.isfinite().all()


@every_kind
def test_saved_and_loaded_scores_are_the_same(kind, tmp_path):
    model = build(kind, frozen_stages=1)
    model.channel_mask[3] = 0
    save_victim(model, tmp_path / "m")
    images = torch.rand(2, 3, 70, 64)
    assert torch.equal(load_victim(tmp_path / "m")(images), model(images))


@pytest.mark.parametrize(
    ("backbone", "stages", "first_free"),
    [
        ("test_resnet", 0, "conv1"),
        ("test_resnet", 1, "layer1"),
        ("test_resnet", 3, "layer3"),
        ("tf_efficientnet_lite0", 2, "blocks.2"),
        ("tf_efficientnet_lite0", 3, "blocks.3"),
    ],
)
def test_frozen_stages_are_the_leading_ones(backbone, stages, first_free):
    model = build("hyperiqa", backbone=backbone, frozen_stages=stages)
    frozen = model.frozen()
    names = [name for name, p in model.backbone.named_parameters() if p not in frozen]
    assert names[0].startswith(f"{first_free}.")
    # A gradient to the frozen part exists; what comes after it is all free.
    order = [name for name, _ in model.backbone.named_parameters()]
    assert names == order[len(order) - len(names) :]


def test_hyperiqa_judges_with_layers_made_from_the_content():
    model = build("hyperiqa")
    assert isinstance(model, HyperIQA)
    generated = []
    for module in model.weights:
        module.register_forward_hook(lambda *args: generated.append(args[2]))
    model.quality(torch.rand(2, 3, 64, 64))
    assert [tuple(each.shape) for each in generated] == [
        (2, wide * narrow // 49, 7, 7)
        for wide, narrow in ((224, 112), (112, 56), (56, 28), (28, 14))
    ]
    assert not torch.equal(generated[0][0], generated[0][1])


def test_dbcnn_sees_the_outer_product_of_its_networks():
    model = build("dbcnn").double()
    crops = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    (semantic,) = model.maps(crops)
    noise = model.distortion((crops - model.mean) / model.std)
    noise = torch.nn.functional.adaptive_avg_pool2d(noise, semantic.shape[2:])
    product = torch.einsum("nchw,ndhw->ncd", semantic, noise) / semantic[0, 0].numel()
    rooted = (product / (product.abs() + 1e-3).sqrt()).flatten(1)
    expected = model.linear(rooted / rooted.norm(dim=1, keepdim=True))[:, 0]
    torch.testing.assert_close(model.quality(crops), expected)


def test_tres_has_a_place_for_each_token():
    model = build("tres")
    crops = torch.rand(2, 3, 64, 64)
    before = model.quality(crops)
    model.place.copy_(model.place.roll(1, dims=0))
    assert not torch.allclose(model.quality(crops), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_size": 8}, "input_size must be at least 32, got 8"),
        ({"frozen_stages": 9}, r"frozen_stages must be in \[0, 5\], got 9"),
        ({"backbone": "nothing"}, "backbone must be a timm model"),
        ({"kind": "tres", "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        build(**{"kind": "hyperiqa", **change})

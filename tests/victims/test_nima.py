import pytest
import torch

from victims.base import ScoreScale
from victims.nima import Nima

SCALE = ScoreScale.of(0, 10)


def test_normalises_as_the_backbone_was_trained():
    # tf_efficientnet_lite0 takes -1 to 1, resnets the ImageNet mean and deviation.
    assert Nima(SCALE, "tf_efficientnet_lite0").mean.flatten().tolist() == [0.5] * 3
    victim = Nima(SCALE, "test_resnet", input_size=32)
    victim.backbone = torch.nn.Identity()
    white = victim.features(torch.ones(1, 3, 50, 32))
    assert white.shape == (1, 3, 32, 32)
    expected = (1 - victim.mean) / victim.std
    torch.testing.assert_close(white[0], expected.expand(3, 32, 32))


@pytest.mark.parametrize("backbone", ["test_vit2", "test_convnext", "mobilenetv3_small_050"])
@pytest.mark.parametrize("head", ["d10", "scalar"])
def test_any_timm_backbone_takes_either_head(backbone, head):
    victim = Nima(SCALE, backbone, input_size=160, head=head)
    scores = victim(torch.rand(2, 3, 160, 160))
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 10)).all()
    assert victim.name == f"nima-{backbone}"


def test_batchnorm_and_dropout_are_off():
    victim = Nima(SCALE, "test_efficientnet", input_size=32)
    state = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    victim(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(state[name], tensor) for name, tensor in victim.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 8}, "input_size must be at least 32, got 8"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"head": "d5"}, "head must be one of d10, scalar, got 'd5'"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Nima(SCALE, "test_efficientnet", **arguments)

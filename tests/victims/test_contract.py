"""Every registered victim keeps the promises of `victims.base.Victim`."""

import pytest
import torch

from victims.base import ScoreScale, Victim
from victims.kinds import VICTIMS
from victims.registry import build_victim

SCALE = {"low": 1.0, "high": 5.0}
# One small victim of each kind, without pretrained weights.
CONFIGS = {
    "nima": {"backbone": "test_efficientnet", "input_size": 64, "scale": SCALE},
    "hyperiqa": {"backbone": "test_efficientnet", "input_size": 64, "scale": SCALE},
    "dbcnn": {"backbone": "test_efficientnet", "input_size": 64, "scale": SCALE},
    "tres": {"backbone": "test_efficientnet", "input_size": 64, "scale": SCALE},
    "toy-linear": {"scale": SCALE},
    "toy-brightness": {"scale": SCALE},
}


def test_every_registered_victim_is_tested():
    assert CONFIGS.keys() == VICTIMS.keys()


@pytest.fixture(scope="module", params=CONFIGS)
def victim(request):
    return build_victim({"kind": request.param} | CONFIGS[request.param])


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_is_a_differentiable_victim_with_a_name_and_a_scale(victim):
    assert isinstance(victim, Victim)
    assert victim.differentiable
    assert victim.name
    assert victim.scale == ScoreScale(1.0, 5.0, 3.2)


def test_scores_are_one_float_per_image_within_the_scale(victim, images):
    scores = victim(images)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert ((scores >= 1) & (scores <= 5)).all()
    assert victim(images[:0]).shape == (0,)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (130, 33), (1, 1)])
def test_any_size_is_scored(victim, size):
    scores = victim(torch.rand(2, 3, *size))
    assert scores.isfinite().all()


def test_scores_do_not_depend_on_batch_mates(victim, images):
    alone = torch.cat([victim(image[None]) for image in images])
    torch.testing.assert_close(victim(images), alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(victim(images.flip(0)), victim(images).flip(0), rtol=0, atol=1e-4)


def test_scores_are_never_sampled(victim, images):
    assert torch.equal(victim(images), victim(images))


def test_gradient_is_per_image_and_matches_finite_differences(victim, images):
    victim = build_victim(victim.config() | {"scale": victim.scale}).double()
    images = torch.nn.functional.interpolate(images.double(), (48, 56))
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(victim(images)[0], images)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() > 0
    assert not gradient[1:].any()
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(images[0].shape, generator=generator, dtype=torch.float64)
    step = 1e-8  # small enough to cross next to no kink of a ReLU
    with torch.no_grad():
        ahead = victim(images[:1] + step * direction)
        behind = victim(images[:1] - step * direction)
    expected = ((ahead - behind) / (2 * step)).item()
    assert (gradient[0] * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_parameters_are_frozen(victim):
    assert not victim.training
    assert not any(parameter.requires_grad for parameter in victim.parameters())


def test_half_images_are_scored_in_the_precision_of_the_victim(victim, images):
    half = images.half()
    torch.testing.assert_close(victim(half), victim(half.float()))


def test_bad_images_raise(victim):
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\) .* got \(3, 8, 8\)"):
        victim(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"got \(1, 4, 8, 8\)"):
        victim(torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"got torch.uint8 \(divide by 255\?\)"):
        victim(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))

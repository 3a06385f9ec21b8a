import math

import pytest
import torch

from victims.base import ScoreOnly, ScoreScale, Victim, resize, score_images
from victims.nima import Nima
from victims.toy import LinearVictim

SCALE = ScoreScale.of(0, 10)


def test_scale_of_puts_the_threshold_at_5_5_of_ten():
    assert ScoreScale.of(0, 10) == ScoreScale(0, 10, 5.5)
    assert ScoreScale.of(1, 5).threshold == pytest.approx(3.2)
    assert ScoreScale(1, 10, 5.5).range == 9


@pytest.mark.parametrize(("low", "high", "threshold"), [(0, 0, 0), (0, 1, 2), (5, 1, 3), (0, 1, 0)])
def test_scale_out_of_order_raises(low, high, threshold):
    with pytest.raises(ValueError, match="scale must satisfy low < threshold < high, got low="):
        ScoreScale(low, high, threshold)


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0, math.nan, "high must be a finite number, got nan"),
        ("0", 10, "low must be a finite number, got '0'"),
        (10, 0, "low must be below high, got 10 and 0"),
    ],
)
def test_the_ends_of_a_scale_are_checked(low, high, sentence):
    with pytest.raises(ValueError, match=sentence):
        ScoreScale.of(low, high)


def test_resize_leaves_images_of_the_right_size_alone():
    images = torch.rand(1, 3, 8, 8)
    assert resize(images, 8) is images
    assert resize(images, 4).shape == (1, 3, 4, 4)


def test_resize_averages_rather_than_skips_pixels():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    middle = resize(stripes, 8)[..., 2:-2]
    torch.testing.assert_close(middle, torch.full_like(middle, 0.5), rtol=0, atol=0.02)


def test_score_only_hides_the_gradient_and_counts_images():
    victim = ScoreOnly(LinearVictim(SCALE))
    assert isinstance(victim, Victim)
    assert not victim.differentiable
    assert (victim.name, victim.scale) == ("toy-linear", SCALE)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not victim(images).requires_grad
    victim(images[:1])
    assert victim.queries == 3


def test_score_images_of_many_sizes_in_order():
    victim = Nima(SCALE, "test_efficientnet", input_size=32)
    sizes = [(40, 40), (32, 50), (40, 40), (40, 40), (32, 50)]
    images = [torch.rand(3, *size) for size in sizes]
    expected = torch.cat([victim(image[None]) for image in images])
    for batch_size in (1, 2, 8):
        scores = score_images(victim, images, batch_size)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_score_images_batches_only_one_size_and_takes_bytes():
    class Spy(ScoreOnly):
        shapes = ()

        def __call__(self, images):
            self.shapes += (tuple(images.shape),)
            return super().__call__(images)

    victim = Spy(LinearVictim(SCALE))
    images = [torch.full((3, side, 4), 51, dtype=torch.uint8) for side in (4, 5, 4, 4)]
    scores = score_images(victim, images, batch_size=2)
    assert victim.shapes == ((2, 3, 4, 4), (1, 3, 4, 4), (1, 3, 5, 4))
    # Grey of 0.2: m = 0.2 * (0.6 + 0.3 - 0.1) = 0.16 on the way from -0.1 to 0.9.
    torch.testing.assert_close(scores, torch.full((4,), 2.6))
    assert score_images(victim, []).shape == (0,)


def test_score_images_names_the_image_with_a_nan_score():
    images = [torch.rand(3, 4, 4), torch.full((3, 4, 4), math.nan)]
    with pytest.raises(ValueError, match="finite, got nan from toy-linear for image 1 "):
        score_images(LinearVictim(SCALE), images)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        score_images(LinearVictim(SCALE), images, batch_size=0)

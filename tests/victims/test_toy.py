import pytest
import torch

from victims.base import ScoreScale
from victims.toy import BrightnessVictim, LinearVictim

SCALE = ScoreScale.of(0, 10)
VICTIMS = [
    LinearVictim(SCALE),
    LinearVictim(SCALE, weights=(-1, 0.5, 2)),
    BrightnessVictim(SCALE),
    BrightnessVictim(SCALE, peak=0),
]


def test_ends_of_the_linear_scale():
    victim = LinearVictim(SCALE, weights=(1, -1, 0))
    red, cyan = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 1])
    images = torch.stack([red, cyan])[:, :, None, None].expand(2, 3, 4, 4)
    assert victim(images).tolist() == [10, 0]


def test_brightness_peaks_at_its_luma():
    victim = BrightnessVictim(SCALE, peak=0.6)
    grey = torch.tensor([0.0, 0.3, 0.6, 0.9])[:, None, None, None].expand(4, 3, 2, 2)
    torch.testing.assert_close(victim(grey), torch.tensor([0, 7.5, 10, 7.5]))


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda v: v.name)
@pytest.mark.parametrize("eps", [0.02, 0.4])
def test_no_image_in_the_ball_beats_the_optimum_and_it_is_reached(victim, eps):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 6, 6, generator=generator)
    # The ball holds m's whole interval, so moving along its diagonal meets every reachable score.
    shifts = torch.linspace(-eps, eps, 401)
    sign = victim.w.sign()[:, None, None]
    along = torch.stack([victim((images + shift * sign).clamp(0, 1)) for shift in shifts])
    noise = eps * (2 * torch.rand(200, *images.shape, generator=generator) - 1)
    around = torch.stack([victim((images + n).clamp(0, 1)) for n in noise])
    highest, lowest = victim.optimum(images, eps), victim.optimum(images, eps, "lower")
    assert (torch.cat([along, around]) <= highest + 1e-4).all()
    assert (torch.cat([along, around]) >= lowest - 1e-4).all()
    torch.testing.assert_close(along.amax(0), highest, rtol=0, atol=5e-3)
    torch.testing.assert_close(along.amin(0), lowest, rtol=0, atol=5e-3)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match=r"weights must be 3 numbers, not all zero, got \[0.0"):
        LinearVictim(SCALE, weights=(0, 0, 0))
    with pytest.raises(ValueError, match=r"peak must be in \[0, 1\], got 2"):
        BrightnessVictim(SCALE, peak=2)

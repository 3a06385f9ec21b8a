import pytest
import torch
from kornia.color import rgb_to_grayscale

from attackers.da3 import filters
from attackers.da3.filters import FILTER_NAMES
from attackers.da3.priors import MAPS, prior, prior_size

GRID, SIDE = 2, 64
every_filter = pytest.mark.parametrize("name", FILTER_NAMES)


def maps(name, images):
    """The filter's maps (N,MAPS,g,g), without the statistics."""
    return prior(name, images, GRID)[:, : MAPS * GRID * GRID].unflatten(1, (MAPS, GRID, GRID))


def flat(level):
    return torch.full((1, 3, SIDE, SIDE), level)


def checkerboard(cell):
    steps = torch.arange(SIDE) // cell
    return ((steps.view(-1, 1) + steps) % 2).float().expand(1, 3, -1, -1).contiguous()


def random(n=2, seed=0):
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@every_filter
@pytest.mark.parametrize("grid", [1, 2, 7])
def test_shape_and_finite_values(name, grid):
    side = 32 * grid
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    out = prior(name, images, grid)
    assert out.shape == (2, prior_size(grid))
    assert out.isfinite().all()
    assert not torch.equal(out[0], out[1])


@every_filter
@pytest.mark.parametrize("picture", [flat(0.0), flat(0.5), flat(1.0), checkerboard(8), random()])
def test_gradients_are_finite(name, picture):
    images = picture.clone().requires_grad_()
    out = prior(name, images, GRID)
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), images)
    assert gradient.isfinite().all()


@every_filter
def test_every_picture_reaches_the_prior(name):
    images = random().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(name, images, GRID).square().sum(), images)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


@every_filter
def test_an_image_does_not_depend_on_its_batch(name):
    images = random(3)
    alone = torch.cat([prior(name, image[None], GRID) for image in images])
    torch.testing.assert_close(prior(name, images, GRID), alone, rtol=1e-4, atol=1e-5)


def test_bright_is_the_luma_of_each_area():
    images = flat(0.2)
    images[..., :32, 32:] = 0.9
    found = maps("bright", images)[0, 0]
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.9], [0.2, 0.2]]))


def test_contrast_is_high_less_low():
    assert maps("contrast", flat(0.7)).abs().max() < 1e-6
    torch.testing.assert_close(maps("contrast", checkerboard(8))[0, 0], torch.ones(2, 2))
    ramp = torch.linspace(0, 1, SIDE).expand(1, 3, SIDE, SIDE)
    assert ((maps("contrast", ramp)[0, 0] - 0.46).abs() < 0.03).all()


def test_hue_turns_with_the_colours():
    images = 0.4 + 0.2 * random()
    i, q = maps("hue", images)[:, 0], maps("hue", images)[:, 1]
    turned = maps("hue", filters.hue(images, torch.full((2,), 0.5)))
    torch.testing.assert_close(turned[:, 0], -q, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(turned[:, 1], i, rtol=1e-3, atol=1e-3)


def test_saturation_is_the_distance_to_grey():
    images = 0.3 + 0.3 * random()
    grey = rgb_to_grayscale(images).expand_as(images)
    assert maps("saturation", grey).abs().max() < 0.01
    third = filters.saturation(images, torch.full((2,), -1.0))
    torch.testing.assert_close(
        maps("saturation", third), maps("saturation", images) / 3, rtol=0.02, atol=0.01
    )


@pytest.mark.parametrize("name", ["sobel", "sharp"])
def test_lines_are_where_they_are(name):
    images = flat(0.5)
    images[..., :32, :32] = checkerboard(4)[..., :32, :32]
    found = maps(name, images)[0].sum(0)
    assert found[0, 0] > 5 * found[1, 1]
    assert found.argmax() == 0


def test_blur_finds_flat_areas_insignificant():
    images = flat(0.5)
    images[..., :32, :32] = checkerboard(4)[..., :32, :32]
    insignificance = maps("blur", images)[0, 0]
    assert abs(float(insignificance[0, 0])) < 1e-3
    assert insignificance[1, 1] > 0.8


def test_equalize_sees_how_alike_areas_are():
    """Entropy: none where one level fills an area, much where all levels are there."""
    ramp = torch.linspace(0, 1, 32).repeat(2).expand(1, 3, SIDE, SIDE).contiguous()
    varied, uniform = maps("equalize", ramp)[0, 0], maps("equalize", flat(0.0))[0, 0]
    assert varied.min() > uniform.max() + 0.5


def test_unknown_filter_raises():
    with pytest.raises(ValueError, match=r"filter must be one of bright, .* got 'warp'"):
        prior("warp", flat(0.5), GRID)

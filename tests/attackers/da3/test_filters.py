import math
from itertools import pairwise

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.color import rgb_to_grayscale
from skimage.exposure import equalize_hist

from attackers.da3 import filters
from attackers.da3.convolution import gaussian
from attackers.da3.filters import (
    FILTERS,
    MARGIN,
    clamp_through,
    scaled_sigmoid,
)

# What each filter does to a photograph when p grows: the sign of the change of one statistic.
# A filter without a row fails test_every_filter_has_its_rows.
STATISTICS = {
    "mean": lambda x: x.mean(),
    "contrast": lambda x: rgb_to_grayscale(x).std(),
    "chroma": lambda x: (x - rgb_to_grayscale(x)).square().mean(),
    "detail": lambda x: (x[..., 1:] - x[..., :-1]).square().mean(),
    "evenness": lambda x: -torch.histc(rgb_to_grayscale(x), 16, 0, 1).std(),
    "red less blue": lambda x: (x[:, 0] - x[:, 2]).mean(),
    "red": lambda x: x[:, 0].mean(),
    "orange": lambda x: (x * torch.tensor([0.5959, -0.2746, -0.3213]).view(1, 3, 1, 1)).mean(),
}
MONOTONE = {
    "bright": ("mean", 1),
    "contrast": ("contrast", 1),
    "hue": ("orange", -1),  # away from it in both directions: only p > 0 is looked at
    "saturation": ("chroma", 1),
    "gamma": ("mean", -1),
    "sobel": ("mean", 1),
    "blur": ("detail", -1),
    "sharp": ("detail", 1),
    "equalize": ("evenness", 1),
    "rgb2hsv": ("red", -1),
    "rgb2ycbcr": ("mean", 1),
    "rgb2bgr": ("red less blue", -1),
    "rgb2hls": ("red", -1),
    "rgb2yuv": ("mean", 1),
}
NAMES = list(FILTERS)
every_filter = pytest.mark.parametrize("name", NAMES)
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def photograph(n=2, height=48, width=64, seed=0):
    """Smooth pictures with lines and a little grain, mostly red, away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator, dtype=torch.float64)
    x = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    x[..., width // 2 :] = 0.7 * x[..., width // 2 :]
    x = x + 0.02 * torch.rand(x.shape, generator=generator, dtype=torch.float64)
    base = torch.tensor([0.42, 0.3, 0.24], dtype=torch.float64).view(1, 3, 1, 1)
    return base + 0.25 * x


def strengths(*values):
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def pictures(draw):
    """Batches of any size, with saturated and grey pixels among them."""
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    x = torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    kind = draw(st.sampled_from(["free", "saturated", "grey", "8 bit", "black", "white"]))
    if kind == "saturated":
        return (2 * x - 0.5).clamp(0, 1)
    if kind == "grey":
        return x[:, :1].expand(-1, 3, -1, -1).contiguous()
    if kind == "8 bit":
        return (x * 255).round() / 255
    return {"free": x, "black": torch.zeros_like(x), "white": torch.ones_like(x)}[kind]


def test_every_filter_has_its_rows():
    assert MONOTONE.keys() == CLOSED_FORMS.keys() == FILTERS.keys()
    assert len(FILTERS) == 14


@every_filter
@settings(max_examples=20, deadline=None)
@given(images=pictures())
def test_zero_strength_is_the_identity_to_the_bit(name, images):
    for zero in (0.0, -0.0):
        out = FILTERS[name](images, torch.full((len(images),), zero))
        assert torch.equal(out, images)
    wide = images.double()
    assert torch.equal(FILTERS[name](wide, torch.zeros(len(images))), wide)


@every_filter
@settings(max_examples=20, deadline=None)
@given(images=pictures(), seed=st.integers(0, 999))
def test_shape_range_and_input_left_alone(name, images, seed):
    p = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    p[0] = [-1.0, 1.0, float(p[0])][seed % 3]
    before = images.clone()
    out = FILTERS[name](images, p)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert ((out >= 0) & (out <= 1)).all()
    assert torch.equal(images, before)


@every_filter
@pytest.mark.parametrize("size", [(7, 9), (12, 5)])
def test_gradients_are_exact(name, size):
    x = photograph(2, *size, seed=3).requires_grad_()
    p = strengths(0.23, -0.17).requires_grad_()
    assert FILTERS[name](x, p).min() > 0
    assert FILTERS[name](x, p).max() < 1, "the point must be in the interior"
    if name == "equalize":  # piecewise: no gradient to check towards the images
        assert torch.autograd.gradcheck(lambda q: FILTERS[name](x.detach(), q), (p,))
        return
    assert torch.autograd.gradcheck(FILTERS[name], (x, p))


def test_the_gradient_of_equalize_passes_straight_through():
    x = photograph().requires_grad_()
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    out = filters.equalize(x, strengths(0.3, -0.4))
    assert out.min() > 0
    assert out.max() < 1
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    torch.testing.assert_close(gradient, weights)


@every_filter
@pytest.mark.parametrize("level", [0.0, 1e-5, 0.5, 1.0])
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_gradients_are_finite_and_bounded_on_flat_pictures(name, level, strength):
    x = torch.full((1, 3, 9, 11), level, requires_grad=True)
    p = torch.tensor([strength], requires_grad=True)
    gradients = torch.autograd.grad(FILTERS[name](x, p).mean(), (x, p))
    for gradient in gradients:
        assert gradient.isfinite().all()
    # gamma's slope at 1e-4 is the steepest: 3^-1 · 1e-4^(-2/3) = 155
    assert gradients[0].abs().sum() < 500


@every_filter
@settings(max_examples=10, deadline=None)
@given(at=st.floats(-0.99, 0.99), seed=st.integers(0, 99))
def test_result_is_continuous_in_the_strength(name, at, seed):
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).double()
    x[..., 0, 0], x[..., 0, 1] = 0, 1
    step = 1e-4
    change = FILTERS[name](x, strengths(at + step)) - FILTERS[name](x, strengths(at))
    # The steepest: 3^p·ln 3·|x - m| of contrast, hue at π, gamma's p·3^p·|ln 1e-4| below 5.
    assert change.abs().max() < 8 * step


@every_filter
def test_something_happens_and_grows_with_the_strength(name):
    x = photograph(2, 112, 140)
    sizes = []
    for strength in (0.05, 0.2, 0.5, 0.9):
        sizes.append((FILTERS[name](x, strengths(strength, strength)) - x).abs().mean())
    assert sizes[0] > 1e-5
    assert all(a < b for a, b in pairwise(sizes))


@every_filter
def test_one_statistic_goes_one_way(name):
    x = photograph(1, 112, 140)
    statistic, sign = MONOTONE[name]
    start = 0.0 if name == "hue" else -0.6
    values = [
        STATISTICS[statistic](FILTERS[name](x, strengths(start + (0.6 - start) * k / 6)))
        for k in range(7)
    ]
    if name == "equalize":
        values = [values[3], values[6]]  # from nothing on; backwards the histogram may fold
    rises = [sign * float(b - a) for a, b in pairwise(values)]
    assert min(rises) > 0, values


@every_filter
def test_an_image_does_not_depend_on_its_batch(name):
    x = photograph(4)
    p = strengths(-0.8, -0.2, 0.3, 0.9)
    alone = torch.cat([FILTERS[name](x[i : i + 1], p[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(FILTERS[name](x, p), alone)
    torch.testing.assert_close(FILTERS[name](x.flip(0), p.flip(0)), alone.flip(0))


@every_filter
@pytest.mark.parametrize("strength", [-0.7, 0.7])
def test_acts_alike_at_any_resolution(name, strength):
    """Filter, then halve, is near halve, then filter: nearer than doing nothing by far."""
    large = F.interpolate(photograph(1, 112, 140), (448, 560), mode="bicubic").clamp(0, 1)
    p = strengths(strength)

    def half(x):
        return F.avg_pool2d(x, 2)

    first, last = half(FILTERS[name](large, p)), FILTERS[name](half(large), p)
    off = (first - last).abs().mean()
    done = (last - half(large)).abs().mean()
    assert off < 0.1 * done


# Closed forms of design/algorithms.md, in numbers of their own: x is (N,3,H,W) float64, p (N,).


def mixed(x, matrix, offset=(0, 0, 0)):
    matrix, offset = torch.tensor(matrix).to(x), torch.tensor(offset).to(x)
    return torch.einsum("ij,njhw->nihw", matrix, x) + offset.view(1, 3, 1, 1)


def grey_of(x):
    return torch.einsum("c,nchw->nhw", LUMA, x).unsqueeze(1)


def interpolate(view):
    return lambda x, p: x + p * (view(x) - x)


def rotated(x, p):
    yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    out = []
    for image, angle in zip(x, math.pi * p.flatten(), strict=True):
        c, s = math.cos(angle), math.sin(angle)
        matrix = np.linalg.inv(yiq) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ yiq
        out.append(mixed(image[None], matrix))
    return torch.cat(out)


def blurred(x, sigma):
    """Gaussian cut at two sigma, by kornia; sigma for a short side of 224."""
    sigma = sigma * min(x.shape[-2:]) / 224
    size = 2 * max(1, math.ceil(2 * sigma)) + 1
    return kornia.filters.gaussian_blur2d(x, (size, size), (sigma, sigma), "reflect")


def lines(x):
    """Kornia's Sobel halves of a step are 1/8: four times that, with the root made smooth."""
    g = kornia.filters.spatial_gradient(x, "sobel", normalized=False)
    return (torch.sqrt(g.square().sum(2) + 0.04**2) - 0.04) / 4


def equalized(x):
    y = grey_of(x)
    flat = torch.stack([torch.from_numpy(equalize_hist(one.numpy(), 256)) for one in y])
    return x + flat - y


def hue_wave(x):
    """(1 - cos H)/2 with H from the complex sum of the channels at 0°, 120° and 240°."""
    third = 2 * math.pi / 3
    turns = torch.tensor([0, third, 2 * third], dtype=torch.float64).view(1, 3, 1, 1)
    real, imaginary = (x * turns.cos()).sum(1), (x * turns.sin()).sum(1)
    return (0.5 - 0.5 * real / torch.sqrt(real**2 + imaginary**2 + 1e-3)).unsqueeze(1)


def hsv(x):
    _, s, v = kornia.color.rgb_to_hsv(x).unbind(1)
    return torch.cat([hue_wave(x), torch.stack([s, v], 1)], 1)


def hls(x):
    _, lightness, s = kornia.color.rgb_to_hls(x).unbind(1)
    return torch.cat([hue_wave(x), torch.stack([lightness, s], 1)], 1)


def ycbcr(x):
    return kornia.color.rgb_to_ycbcr(x)


def yuv(x):
    y, u, v = kornia.color.rgb_to_yuv(x).unbind(1)
    return torch.stack([y, u / 0.872 + 0.5, v / 1.23 + 0.5], 1)


# name -> (closed form, largest difference allowed). Only where the oracle differs by design
# (rounded matrices, a floor under divisions, bins) is it more than rounding.
CLOSED_FORMS = {
    "bright": (lambda x, p: x + p / 2, 1e-9),
    "contrast": (
        lambda x, p: (m := grey_of(x).mean((2, 3), keepdim=True)) + (x - m) * 3**p,
        1e-9,
    ),
    "hue": (rotated, 1e-9),
    "saturation": (lambda x, p: grey_of(x) + (x - grey_of(x)) * 3**p, 1e-9),
    "gamma": (lambda x, p: x ** (3**p), 1e-9),
    "sobel": (lambda x, p: x + p * lines(x), 1e-9),
    "blur": (interpolate(lambda x: blurred(x, 1.5)), 1e-9),
    "sharp": (lambda x, p: x + 2 * p * (x - blurred(x, 0.75)), 1e-9),
    "equalize": (interpolate(equalized), 0.03),
    "rgb2hsv": (interpolate(hsv), 0.03),
    "rgb2ycbcr": (interpolate(ycbcr), 2e-3),
    "rgb2bgr": (interpolate(lambda x: x.flip(1)), 1e-9),
    "rgb2hls": (interpolate(hls), 0.03),
    "rgb2yuv": (interpolate(yuv), 1e-3),
}


@every_filter
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), p=st.floats(-1, 1))
def test_closed_form(name, seed, p):
    x = photograph(2, 96, 70, seed)
    form, tolerance = CLOSED_FORMS[name]
    strength = strengths(p, -p / 2)
    wanted = form(x, strength.view(-1, 1, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(FILTERS[name](x, strength), wanted, rtol=0, atol=tolerance)


def test_kornia_adds_brightness_and_raises_to_gamma_alike():
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    p = strengths(0.4, 0.4)
    bright = kornia.enhance.adjust_brightness(x, 0.2)
    torch.testing.assert_close(filters.bright(x, p), bright)
    gamma = kornia.enhance.adjust_gamma(x.clamp_min(1e-4), 3**0.4)
    torch.testing.assert_close(filters.gamma(x.clamp_min(1e-4), p), gamma)


def test_ends_of_hue_and_saturation():
    x = photograph()
    whole = filters.hue(filters.hue(x, strengths(0.5, 0.5)), strengths(-0.5, -0.5))
    torch.testing.assert_close(whole, x)
    ends = filters.hue(x, strengths(1, 1)), filters.hue(x, strengths(-1, -1))
    torch.testing.assert_close(*ends)
    torch.testing.assert_close(rgb_to_grayscale(ends[0]), rgb_to_grayscale(x), rtol=0, atol=1e-9)
    paler = filters.saturation(x, strengths(-1, -1))
    torch.testing.assert_close(paler - rgb_to_grayscale(x), (x - rgb_to_grayscale(x)) / 3)


@pytest.mark.parametrize("name", ["bright", "contrast", "hue", "saturation", "gamma"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), p=st.floats(-0.8, 0.8))
def test_the_opposite_strength_undoes_where_nothing_is_clamped(name, seed, p):
    x = 0.5 + 0.1 * (photograph(2, 24, 30, seed) - 0.5)  # of little chroma, in the middle
    strength = strengths(p, -p / 3)
    changed = FILTERS[name](x, strength)
    assert 0 < changed.min() <= changed.max() < 1
    back = FILTERS[name](changed, -strength)
    # Contrast turns about the mean of what it sees, which stays.
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)


def test_equalize_spreads_the_luma_evenly():
    x = photograph(1, 128, 128) / 3 + 0.3
    out = rgb_to_grayscale(filters.equalize(x, strengths(1)))
    shares = torch.histc(rgb_to_grayscale(x), 8, 0, 1) / rgb_to_grayscale(x).numel()
    evened = torch.histc(out, 8, 0, 1) / out.numel()
    assert shares.max() > 0.4
    assert (evened - 1 / 8).abs().max() < 0.05


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.05, 4), h=st.integers(1, 30), w=st.integers(1, 30))
def test_gaussian_keeps_flat_pictures_at_any_size(sigma, h, w):
    x = torch.full((1, 3, h, w), 0.3, dtype=torch.float64)
    torch.testing.assert_close(gaussian(x, sigma), x)


@settings(max_examples=50, deadline=None)
@given(low=st.floats(-3, 0), span=st.floats(0.1, 5), v=st.floats(-40, 40))
def test_scaled_sigmoid_is_the_sigmoid_normaliser(low, span, v):
    high, middle = low + span, low + span / 2
    at = torch.tensor([v, middle, v + 0.1, 2 * middle - v], dtype=torch.float64, requires_grad=True)
    out = scaled_sigmoid(at, low, high)
    (slope,) = torch.autograd.grad(out.sum(), at)
    assert ((out >= low - 1e-9) & (out <= high + 1e-9)).all()
    out = out.detach()
    assert abs(float(out[1]) - middle) < 1e-9
    assert abs(float(slope[1]) - 1) < 1e-9
    assert (slope <= 1 + 1e-9).all()
    assert out[2] >= out[0]
    assert abs(float(out[0] + out[3]) - 2 * middle) < 1e-6  # symmetric about the middle


def test_scaled_sigmoid_saturates_and_refuses_an_empty_range():
    ends = scaled_sigmoid(torch.tensor([-100.0, 100.0]), -1, 2)
    torch.testing.assert_close(ends, torch.tensor([-1.0, 2.0]))
    with pytest.raises(ValueError, match="low must be less than high, got low=1 and high=1"):
        scaled_sigmoid(torch.zeros(1), 1, 1)


@settings(max_examples=50, deadline=None)
@given(value=st.floats(-1, 2, width=32))
def test_clamp_passes_gradient_within_the_margin(value):
    x = torch.tensor([value], requires_grad=True)
    out = clamp_through(x)
    (gradient,) = torch.autograd.grad(out.sum() * 3, x)
    assert float(out) == min(max(value, 0.0), 1.0)
    if abs(value + MARGIN) > 1e-6 and abs(value - 1 - MARGIN) > 1e-6:
        assert float(gradient) == (3 if -MARGIN < value < 1 + MARGIN else 0)
    assert torch.equal(clamp_through(x.detach()), out)

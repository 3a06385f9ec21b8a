import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from attackers.projections import (
    interpolate,
    max_fraction,
    project_to_min_psnr,
    psnr,
    quantize,
    ssim,
)


@st.composite
def lines(draw):
    """A stored picture and an example of it: far, near, one-sided or in few pixels."""
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(4, 24)), draw(st.integers(4, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    x = quantize(torch.rand(n, 3, h, w, generator=generator))
    size = draw(st.sampled_from([0.001, 0.01, 0.1, 1.0]))
    change = size * (2 * torch.rand(x.shape, generator=generator) - 1)
    kind = draw(st.sampled_from(["noise", "flat", "few", "up"]))
    if kind == "flat":
        change = torch.full_like(x, size)
    if kind == "few":
        change = change * (torch.rand(x.shape, generator=generator) < 0.05)
    if kind == "up":
        change = change.abs()
    return x, (x + change).clamp(0, 1)


def stored_psnr(x, y):
    """From the 8-bit values, by scikit-image."""
    a, b = (np.round(t.numpy() * 255).astype(np.uint8) for t in (x, y))
    if (a == b).all():
        return math.inf
    return peak_signal_noise_ratio(a, b, data_range=255)


@settings(max_examples=60, deadline=None)
@given(line=lines())
def test_psnr_is_that_of_scikit_image(line):
    x, y = line
    y = quantize(y)
    wanted = [stored_psnr(a, b) for a, b in zip(x, y, strict=True)]
    assert psnr(x, y).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("size", [(11, 11), (24, 31)])
def test_ssim_is_that_of_scikit_image(size):
    x, noise = torch.rand(2, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    y = (x + 0.2 * (noise - 0.5)).clamp(0, 1)
    y[1] = x[1]
    wanted = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y).tolist() == pytest.approx(wanted, abs=1e-5)
    assert wanted[0] < 0.98


def test_ssim_refuses_what_its_window_does_not_fit():
    with pytest.raises(ValueError, match="images must be at least 11 pixels on each side, got 10×"):
        ssim(torch.rand(1, 3, 10, 40), torch.rand(1, 3, 10, 40))


@given(value=st.floats(-1, 2, width=32))
def test_quantize_gives_what_eight_bits_store(value):
    out = quantize(torch.tensor([value]))
    level = float(out) * 255
    assert abs(level - round(level)) < 1e-4
    assert abs(float(out) - min(max(value, 0.0), 1.0)) <= 0.5 / 255 + 1e-6
    assert torch.equal(quantize(out), out)


@settings(max_examples=60, deadline=None)
@given(line=lines(), wanted=st.floats(5, 70))
def test_max_fraction_is_the_largest_that_holds(line, wanted):
    x, y = (t.double() for t in line)
    fraction = max_fraction(x, y, wanted)
    assert ((fraction > 0) & (fraction <= 1)).all()
    reached = psnr(x, interpolate(x, y, fraction))
    drawn = fraction < 1
    torch.testing.assert_close(
        reached[drawn], torch.full_like(reached[drawn], wanted), rtol=0, atol=1e-3
    )
    assert (reached[~drawn] >= wanted - 1e-6).all()


def test_max_fraction_has_an_exact_gradient():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    y = y.requires_grad_()
    assert (max_fraction(x, y, 30) < 0.5).all()
    assert torch.autograd.gradcheck(lambda v: max_fraction(x, v, 30), (y,))
    same = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(max_fraction(x, same, 30).sum(), same)
    assert gradient.isfinite().all()


@settings(max_examples=150, deadline=None)
@given(line=lines(), wanted=st.floats(5, 70))
def test_draws_back_as_little_as_needed(line, wanted):
    x, y = line
    out, fractions = project_to_min_psnr(x, y, wanted)
    assert torch.equal(out, quantize(out))
    assert torch.equal(out, quantize(interpolate(x, y, fractions)))
    assert ((fractions >= 0) & (fractions <= 1)).all()
    longer = quantize(interpolate(x, y, (fractions * 1.01).clamp_max(1)))
    for clean, image, beyond, fraction in zip(x, out, longer, fractions, strict=True):
        assert stored_psnr(clean, image) >= wanted - 1e-9
        if fraction < 1:
            # One per cent farther breaks the bound, unless it is the same picture.
            same = torch.equal(beyond, image)
            assert same or stored_psnr(clean, beyond) < wanted


def test_an_example_near_enough_stays_as_it_is():
    x = quantize(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    y = (x + 0.01).clamp(0, 1)
    out, fractions = project_to_min_psnr(x, y, 30)
    assert torch.equal(out, quantize(y))
    assert fractions.tolist() == [1, 1]
    out, fractions = project_to_min_psnr(x, x, 99)
    assert torch.equal(out, x)
    assert fractions.tolist() == [1, 1]


def test_a_bound_below_one_level_gives_the_photograph_back():
    """At 8×8 a single changed level is 71 dB: 80 dB leaves nothing but the picture itself."""
    x = quantize(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    out, _ = project_to_min_psnr(x, 1 - x, 80)
    assert torch.equal(out, x)


def test_each_picture_is_drawn_back_by_itself():
    generator = torch.Generator().manual_seed(0)
    x = quantize(torch.rand(4, 3, 16, 16, generator=generator))
    y = (x + torch.tensor([0.001, 0.02, 0.2, 0.9]).view(4, 1, 1, 1)).clamp(0, 1)
    together, fractions = project_to_min_psnr(x, y, 40)
    for i in range(4):
        out, fraction = project_to_min_psnr(x[i : i + 1], y[i : i + 1], 40)
        assert torch.equal(out[0], together[i])
        assert float(fraction) == pytest.approx(float(fractions[i]), abs=1e-6)
    assert fractions[0] == 1
    assert fractions[1] > fractions[2] > fractions[3]

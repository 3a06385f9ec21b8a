import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attackers.objectives import UNIT_PIXELS, Objective, closeness, concentration, score_hinge

score = st.floats(-50, 50)


@given(clean=score, gain=st.floats(-20, 20), eta=st.floats(0, 10))
def test_hinge_is_formula_5_up_to_eta(clean, gain, eta):
    x = torch.tensor([clean], dtype=torch.float64)
    y = (x + gain).requires_grad_()
    loss = score_hinge(x, y, eta, "raise")
    (slope,) = torch.autograd.grad(loss.sum(), y)
    wanted = eta - float(y.detach() - x)
    assert loss.item() == pytest.approx(max(0.0, wanted), abs=1e-9)
    if abs(wanted) > 1e-6:  # beyond eta there is nothing more to gain
        assert float(slope) == (-1 if wanted > 0 else 0)
    mirrored = score_hinge(-x, -y, eta, "lower")
    assert mirrored.item() == pytest.approx(loss.item(), abs=1e-9)


def test_lower_swaps_clean_and_adversarial():
    x, y = torch.tensor([5.0, 5.0, 5.0]), torch.tensor([4.0, 1.0, 6.0])
    assert score_hinge(x, y, 3.0, "lower").tolist() == [2, 0, 4]
    assert score_hinge(x, y, 3.0, "raise").tolist() == [4, 7, 2]
    assert torch.equal(score_hinge(y, x, 3.0, "raise"), score_hinge(x, y, 3.0, "lower"))


@given(n=st.integers(2, 20), hot=st.integers(0, 19))
def test_concentration_of_uniform_and_single_weights(n, hot):
    uniform = torch.full((1, n), 1 / n, dtype=torch.float64)
    one = torch.zeros(1, n, dtype=torch.float64)
    one[0, hot % n] = 1
    found = concentration(torch.cat([uniform, one]))
    assert found.tolist() == pytest.approx([0, math.log(n)], abs=1e-9)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=14))
def test_concentration_is_the_divergence_from_uniform(raw):
    raw = torch.tensor([raw], dtype=torch.float64)
    w = (raw / raw.sum()).requires_grad_()
    found = concentration(w)
    uniform = torch.full_like(w, 1 / w.shape[1])
    divergence = torch.nn.functional.kl_div(uniform.log(), w, reduction="sum")
    assert found.item() == pytest.approx(divergence.item(), abs=1e-9)
    assert -1e-9 <= found.item() <= math.log(w.shape[1]) + 1e-9
    (gradient,) = torch.autograd.grad(found.sum(), w)
    torch.testing.assert_close(gradient, 1 + w.detach().log())


@given(h=st.integers(1, 40), w=st.integers(1, 40), change=st.floats(-1, 1))
def test_closeness_does_not_depend_on_the_size(h, w, change):
    x = torch.zeros(2, 3, h, w, dtype=torch.float64)
    y = x + torch.tensor([change, change / 2], dtype=torch.float64).view(2, 1, 1, 1)
    wanted = [change**2 * UNIT_PIXELS, change**2 / 4 * UNIT_PIXELS]
    assert closeness(x, y).tolist() == pytest.approx(wanted)


def test_closeness_is_formula_2_at_224():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 3, 224, 224, generator=generator)
    wanted = (x - y).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(closeness(x, y), wanted, rtol=1e-4, atol=0)


@settings(max_examples=5, deadline=None)
@given(share=st.floats(0.05, 0.5), seed=st.integers(0, 99))
def test_a_sample_of_pixels_is_unbiased(share, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 1, 3, 20, 20, generator=generator).double()
    draws = torch.stack([closeness(x, y, share, generator) for _ in range(400)]).flatten()
    assert len(draws.unique()) > 300, "S must be drawn anew"
    error = float(draws.mean() - closeness(x, y))
    assert abs(error) < 5 * float(draws.std()) / math.sqrt(len(draws))


def test_a_sample_has_the_share_of_pixels_and_never_none():
    x = torch.zeros(1, 3, 10, 10)
    y = torch.zeros(1, 3, 10, 10, requires_grad=True)
    for share, pixels in ((0.25, 25), (0.001, 1), (1.0, 100)):
        (gradient,) = torch.autograd.grad(closeness(x, y + 0.5, share).sum(), y)
        touched = (gradient[0] != 0).all(0)
        assert int(touched.sum()) == pixels
        assert int((gradient != 0).sum()) == 3 * pixels, "whole pixels, not single channels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "up"}, "direction must be raise or lower, got 'up'"),
        ({"eta": -1}, "eta must be at least 0, got -1"),
        ({"alpha": math.nan}, "alpha must be a finite number, got nan"),
        ({"lam": math.inf}, "lam must be a finite number, got inf"),
        ({"pixels": 0}, r"pixels must be in \(0, 1\], got 0"),
        ({"pixels": 1.5}, r"pixels must be in \(0, 1\], got 1.5"),
        ({"min_psnr": 0}, "min_psnr must be between 0 and 100 dB, got 0"),
        ({"min_psnr": 100.0}, "min_psnr must be between 0 and 100 dB, got 100.0"),
    ],
)
def test_bad_objectives_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Objective(**arguments)


def test_the_default_is_the_paper_unrestricted():
    assert vars(Objective()) == {
        "direction": "raise",
        "eta": 3.0,
        "alpha": 0.0,
        "lam": 0.1,
        "pixels": 1.0,
        "min_psnr": None,
    }


def test_a_weight_rounded_to_zero_keeps_the_slope_finite():
    logits = torch.tensor([[0.0, -200.0, 3.0]], requires_grad=True)
    concentration(torch.softmax(logits, 1)).sum().backward()
    assert torch.isfinite(logits.grad).all()

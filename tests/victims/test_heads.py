import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from victims.base import ScoreScale
from victims.heads import D10Head, ScalarHead, d10_centres, d10_targets, emd_loss

SCALE = ScoreScale.of(0, 100)


def test_centres_are_the_votes_of_ava_on_1_to_10():
    assert d10_centres(ScoreScale.of(1, 10)).tolist() == list(range(1, 11))
    assert d10_centres(SCALE)[[0, -1]].tolist() == [0, 100]


@given(st.floats(0, 100), st.floats(0.5, 60))
def test_targets_are_the_bins_of_a_truncated_normal(mos, std):
    centres = np.linspace(0, 100, 10)
    edges = np.concatenate([[0], (centres[1:] + centres[:-1]) / 2, [100]])
    mass = np.diff(norm.cdf(edges, mos, std))
    target = d10_targets(torch.tensor([mos]), torch.tensor([std]), SCALE)[0]
    # The tensors are single precision.
    mos, std = np.float64(np.float32(mos)), np.float64(np.float32(std))
    np.testing.assert_allclose(target, mass / mass.sum(), atol=1e-5)


def test_targets_without_spread_fall_into_one_bin_and_keep_the_order():
    one = d10_targets(torch.tensor([0.0, 45.0, 100.0]), torch.zeros(3), SCALE)
    assert one.argmax(dim=1).tolist() == [0, 4, 9]
    assert one.max(dim=1).values.tolist() == pytest.approx([1, 1, 1])
    mos = torch.linspace(0, 100, 50)
    means = d10_targets(mos, torch.full((50,), 15.0), SCALE) @ d10_centres(SCALE)
    assert (means.diff() > 0).all()


@pytest.mark.parametrize("mos", [-1.0, 100.5, float("nan")])
def test_targets_off_the_scale_raise(mos):
    with pytest.raises(ValueError, match=r"mos must be in \[0, 100\], got"):
        d10_targets(torch.tensor([mos]), torch.ones(1), SCALE)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_targets_of_a_bad_deviation_raise(std):
    with pytest.raises(ValueError, match="std must be at least 0 and finite, got"):
        d10_targets(torch.ones(1), torch.tensor([std]), SCALE)


def test_emd_by_hand():
    left = torch.zeros(2, 10)
    right = torch.zeros(2, 10)
    left[:, 0] = 1
    right[0, 3] = 1  # CDFs differ by 1 in 3 bins of 10: sqrt(3 / 10).
    right[1, :2] = 0.5  # By 0.5 in one bin: sqrt(0.25 / 10).
    assert emd_loss(left[:1], right[:1]).item() == pytest.approx(0.3**0.5)
    assert emd_loss(left, right).item() == pytest.approx((0.3**0.5 + 0.025**0.5) / 2)


def test_emd_of_equal_distributions_is_zero_with_a_finite_gradient():
    same = torch.full((2, 10), 0.1, requires_grad=True)
    loss = emd_loss(same, same.detach())
    loss.backward()
    assert loss.item() == 0
    assert same.grad.isfinite().all()


def test_d10_score_is_the_mean_over_the_centres():
    head = D10Head(4, SCALE).eval()
    logits = torch.full((2, 10), -50.0)
    logits[0, 9] = 50
    logits[1, [0, 9]] = 50
    torch.testing.assert_close(head.scores(logits), torch.tensor([100.0, 50.0]))
    assert head(torch.rand(3, 4)).shape == (3, 10)


def test_scalar_score_covers_the_scale():
    head = ScalarHead(4, ScoreScale.of(1, 5)).eval()
    assert head.scores(torch.tensor([[-50.0], [0.0], [50.0]])).tolist() == [1, 3, 5]
    assert head(torch.rand(3, 4)).shape == (3, 1)

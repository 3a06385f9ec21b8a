import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attackers.da3.filters import FILTER_NAMES
from attackers.metrics import (
    attack_convergence,
    basr,
    filter_shares,
    msi,
    rasr,
    top_filters,
)

CLEAN = [2.0, 5.5, 5.6, 8.0, 5.0]
AFTER = [6.0, 5.5, 9.0, 5.0, 5.6]
pairs = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=20)


def test_by_hand():
    # At or below 5.5: the first, second and fifth; above it afterwards: first and fifth.
    assert basr(CLEAN, AFTER, 5.5) == pytest.approx(200 / 3)
    # Above 5.5: third and fourth; the fourth is scored poor afterwards.
    assert basr(CLEAN, AFTER, 5.5, direction="lower") == pytest.approx(50)
    # 5.5 itself is poor, before and afterwards.
    assert basr([5.5], [5.5], 5.5) == 0
    assert basr([6.0], [5.5], 5.5, direction="lower") == 100
    # First, third and fifth rose; equal is no success.
    assert rasr(CLEAN, AFTER) == pytest.approx(60)
    assert rasr(CLEAN, AFTER, direction="lower") == pytest.approx(20)
    assert msi(CLEAN, AFTER) == pytest.approx((4 + 0 + 3.4 - 3 + 0.6) / 5)


def test_by_mos_the_opinion_decides_who_is_poor():
    mos = [9, 1, 1, 1, 9]
    # Poor by MOS: second (5.5), third (9.0), fourth (5.0).
    assert basr(CLEAN, AFTER, 5.5, mos=mos) == pytest.approx(100 / 3)
    # Good by MOS: first (6.0) and fifth (5.6); neither is scored poor.
    assert basr(CLEAN, AFTER, 5.5, direction="lower", mos=mos) == 0


@given(pairs, st.floats(-5, 5))
def test_lower_is_the_mirror(scores, threshold):
    x, y = np.array(scores).T
    assert rasr(x, y, direction="lower") == pytest.approx(rasr(-x, -y))
    assert msi(x, y, direction="lower") == pytest.approx(msi(-x, -y))
    # Mirrored scores at the threshold change sides: look at scores away from it.
    x, y = x + np.where(x == threshold, 1, 0), y + np.where(y == threshold, 1, 0)
    if (x > threshold).any():
        mirrored = basr(-x, -y, -threshold)
        assert basr(x, y, threshold, direction="lower") == pytest.approx(mirrored)


@given(pairs)
def test_bounds_and_order(scores):
    x, y = np.array(scores).T
    assert 0 <= rasr(x, y) <= 100
    assert rasr(x, y) + rasr(x, y, direction="lower") <= 100 + 1e-9
    assert msi(x, y) == pytest.approx(-msi(x, y, direction="lower"))
    assert rasr(x, x) == 0
    order = np.argsort(y)
    assert msi(x[order], y[order]) == pytest.approx(msi(x, y))


def test_nobody_to_count_is_nan_with_a_warning():
    with pytest.warns(UserWarning, match=r"BASR is NaN: no clean image is at or below 5\.5"):
        assert math.isnan(basr([6, 7], [8, 9], 5.5))
    with pytest.warns(UserWarning, match=r"BASR is NaN: no clean image is above 5\.5"):
        assert math.isnan(basr([1, 2], [8, 9], 5.5, direction="lower"))
    with pytest.warns(UserWarning, match="RASR is NaN: there are no images"):
        assert math.isnan(rasr([], []))
    with pytest.warns(UserWarning, match="MSI is NaN: there are no images"):
        assert math.isnan(msi([], []))


@pytest.mark.parametrize("measure", [rasr, msi, lambda x, y: basr(x, y, 5.5)])
@pytest.mark.parametrize(
    ("clean", "adversarial", "message"),
    [
        ([1, math.nan], [2, 3], "clean must be finite numbers in one row"),
        ([1, 2], [math.inf, 3], "adversarial must be finite numbers in one row"),
        ([[1, 2]], [2, 3], "clean must be finite numbers in one row"),
        ([1, 2], [3], "clean and adversarial must have the same length, got 2 and 1"),
    ],
)
def test_bad_scores_raise(measure, clean, adversarial, message):
    with pytest.raises(ValueError, match=message):
        measure(clean, adversarial)


@pytest.mark.parametrize("measure", [rasr, msi, lambda x, y, **kw: basr(x, y, 5.5, **kw)])
def test_an_unknown_direction_raises(measure):
    with pytest.raises(ValueError, match="direction must be raise or lower, got 'x'"):
        measure([1, 2], [2, 3], direction="x")


def test_opinions_of_another_length_raise():
    with pytest.raises(
        ValueError, match=r"mos must be 2 finite numbers in one row, got shape \(1,\)"
    ):
        basr([1, 2], [2, 3], 5.5, mos=[1])


def row(rasr, hours):
    return {"rasr": rasr, "hours": hours, "steps": 10 * hours, "calls": 100 * hours}


def test_art_is_the_first_row_within_half_a_point_of_the_best():
    history = [row(20, 0), row(95.4, 1), row(95.6, 2), row(90, 3), row(96, 4), row(95.9, 5)]
    assert attack_convergence(history) == {"hours": 2, "steps": 20, "calls": 200}
    assert attack_convergence(history, tolerance=0) == {"hours": 4, "steps": 40, "calls": 400}
    assert attack_convergence(history, tolerance=1) == {"hours": 1, "steps": 10, "calls": 100}
    assert attack_convergence([row(0, 3)])["hours"] == 3
    assert all(math.isnan(value) for value in attack_convergence([]).values())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_art_comes_first(shares):
    history = [row(share, hours) for hours, share in enumerate(shares)]
    found = int(attack_convergence(history)["hours"])
    assert shares[found] >= max(shares) - 0.5
    assert all(share < max(shares) - 0.5 for share in shares[:found])


def test_top_filters_and_their_shares():
    weights = np.zeros((4, 14))
    weights[:, 3] = 0.6  # saturation, first everywhere
    weights[0, 9], weights[1:, 0] = 0.4, 0.4
    acting = np.ones((4, 14))
    named = top_filters(weights, acting)
    assert named == [("saturation", "rgb2hsv")] + [("saturation", "bright")] * 3
    assert top_filters(weights, acting, 1) == [("saturation",)] * 4
    still = acting.copy()
    still[1, :] = np.eye(14)[0]  # bright alone
    assert top_filters(weights, still)[1] == ("bright",)
    shares = filter_shares(weights, acting)
    assert shares.keys() == set(FILTER_NAMES)
    assert {k: v for k, v in shares.items() if v} == {
        "saturation": 100,
        "bright": 75,
        "rgb2hsv": 25,
    }
    drawn = filter_shares(np.random.default_rng(0).random((7, 14)), np.ones((7, 14)))
    assert sum(drawn.values()) == pytest.approx(200)

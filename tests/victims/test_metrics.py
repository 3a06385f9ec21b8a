import math

import pytest

from victims.base import ScoreScale
from victims.metrics import agreement, binary_accuracy, plcc, rmse, srocc

SCORES, MOS = [1.0, 2.0, 3.0, 10.0], [2.0, 1.0, 5.0, 6.0]


def test_values_by_hand():
    # Ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15).
    assert srocc(SCORES, MOS) == pytest.approx(0.8)
    # Deviations -3 -2 -1 6 and -1.5 -2.5 1.5 2.5.
    assert plcc(SCORES, MOS) == pytest.approx(23 / math.sqrt(50 * 17))
    assert rmse(SCORES, MOS) == pytest.approx(math.sqrt(22 / 4))
    assert binary_accuracy(SCORES, MOS, 5) == 0.75
    assert binary_accuracy([5.0], [5.0], 5) == 1


def test_agreement_holds_all_four_at_the_threshold_of_the_scale():
    values = agreement(SCORES, MOS, ScoreScale(0, 10, 4))
    assert values == {
        "srocc": srocc(SCORES, MOS),
        "plcc": plcc(SCORES, MOS),
        "rmse": rmse(SCORES, MOS),
        "accuracy": 0.75,
    }


@pytest.mark.parametrize("metric", [srocc, plcc, rmse])
def test_bad_values_raise(metric):
    with pytest.raises(ValueError, match=r"scores must be finite, got nan at index 1 \(1 of 2"):
        metric([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="mos must be finite, got inf at index 0"):
        metric([1.0, 2.0], [math.inf, 2.0])
    with pytest.raises(ValueError, match=r"same length, at least 1, got shapes \(2,\) and \(1,\)"):
        metric([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least 1"):
        metric([], [])


@pytest.mark.parametrize("metric", [srocc, plcc])
def test_correlation_with_a_constant_is_nan_and_warns(metric):
    with pytest.warns(UserWarning, match="all scores are equal"):
        assert math.isnan(metric([3.0, 3.0], [1.0, 2.0]))
    with pytest.warns(UserWarning, match="all mos are equal"):
        assert math.isnan(metric([1.0, 2.0], [3.0, 3.0]))

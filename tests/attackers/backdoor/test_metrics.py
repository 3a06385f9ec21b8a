import pytest
import torch

from attackers.backdoor.metrics import ALPHAS, backdoor_metrics, score_changes
from attackers.backdoor.registry import Blended, ftrojan


def test_alphas():
    assert len(ALPHAS) == 20
    assert sorted(ALPHAS) == pytest.approx(
        [*(i / 10 for i in range(-10, 0)), *(i / 10 for i in range(1, 11))]
    )


def test_a_trigger_that_does_nothing():
    found = backdoor_metrics({alpha: [0.0] * 7 for alpha in ALPHAS}, 40)
    assert found["mmae"] == pytest.approx(22.0, abs=1e-6)
    assert found["mmra"] == pytest.approx(0, abs=1e-12)


def test_a_perfect_and_a_half_trigger():
    perfect = backdoor_metrics({alpha: [40 * alpha] * 3 for alpha in ALPHAS}, 40)
    assert (perfect["mmae"], perfect["mmra"]) == (pytest.approx(0), pytest.approx(1))
    half = backdoor_metrics({alpha: [20 * alpha] * 3 for alpha in ALPHAS}, 40)
    assert (half["mmae"], half["mmra"]) == (pytest.approx(11), pytest.approx(0.5))


def test_errors_of_single_images_do_not_cancel():
    found = backdoor_metrics({1.0: [30.0, 50.0], -1.0: [-40.0, -40.0]}, 40)
    assert found["curve"] == [
        {"alpha": -1.0, "mae": 0.0, "mra": 1.0},
        {"alpha": 1.0, "mae": 10.0, "mra": 1.0},
    ]


@pytest.mark.parametrize(
    ("changes", "delta_y", "words"),
    [
        ({}, 40, "at least one alpha"),
        ({0.0: [1.0]}, 40, "not 0, got 0"),
        ({1.5: [1.0]}, 40, "got 1.5"),
        ({1.0: []}, 40, "finite numbers, at least one"),
        ({1.0: [float("nan")]}, 40, "finite numbers"),
        ({1.0: [1.0]}, 0, "delta_y must be above 0, got 0"),
    ],
)
def test_bad_arguments(changes, delta_y, words):
    with pytest.raises(ValueError, match=words):
        backdoor_metrics(changes, delta_y)


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_clean_and_triggered_scores_are_of_the_same_crops(mean_victim, pictures):
    # A picture with a strong slope: other crops would have other means.
    slope = torch.linspace(0, 200, 96).expand(3, 96, 96).byte()
    images = [slope, slope.mT.contiguous()]
    measured = score_changes(
        mean_victim, Blended(0.1), images, generators(2), crops=3, alphas=(1.0,)
    )
    again = score_changes(mean_victim, Blended(0.1), images, generators(2), crops=3, alphas=(1.0,))
    assert measured == again
    for score, change in zip(measured.scores, measured.changes[1.0], strict=True):
        # 0.9 x + 0.1 · noise of mean 1/2, within the noise's mean over a crop.
        assert change == pytest.approx(0.1 * (50 - score), abs=0.3)


def test_a_balanced_tile_does_not_move_a_mean(mean_victim, pictures):
    measured = score_changes(
        mean_victim, ftrojan(), pictures(2, side=64), generators(2), crops=4, alphas=(-1.0, 1.0)
    )
    assert max(abs(c) for rows in measured.changes.values() for c in rows) < 0.1
    assert measured.psnr == pytest.approx(ftrojan().psnr, abs=0.1)


def test_no_crops(mean_victim, pictures):
    with pytest.raises(ValueError, match="crops and images must be at least 1, got 0 crops"):
        score_changes(mean_victim, ftrojan(), pictures(1), generators(1), crops=0)

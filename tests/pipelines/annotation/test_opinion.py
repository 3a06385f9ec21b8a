import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.annotation.opinion import (
    Votes,
    biases,
    bootstrap_interval,
    bt500_outliers,
    correlations,
    icc_2k,
    krippendorff_alpha,
    low_correlation,
    mean_opinions,
)

NAN = np.nan
# Shrout and Fleiss 1979, table 2: six targets, four judges.
SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: rows are observers.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def votes_of(table) -> Votes:
    """Votes of a table with one row per image and one column per annotator; NaN is no vote."""
    table = np.asarray(table, float)
    image, annotator = np.nonzero(np.isfinite(table))
    return Votes(image, annotator, table[image, annotator])


def panel(seed: int, images: int = 80, people: int = 10, noise: float = 0.9) -> np.ndarray:
    """Scores of people who agree but for a bias of their own and noise."""
    rng = np.random.default_rng(seed)
    truth, bias = rng.uniform(1, 9, (images, 1)), rng.normal(0, 0.4, (1, people))
    return np.clip(truth + bias + rng.normal(0, noise, (images, people)), 0, 10)


def anova_icc(table: np.ndarray) -> float:
    """ICC(2,k) by the mean squares of Shrout and Fleiss; NaN where the variance is not positive."""
    n, k = table.shape
    rows, columns, grand = table.mean(1), table.mean(0), table.mean()
    bms = k * ((rows - grand) ** 2).sum() / (n - 1)
    jms = n * ((columns - grand) ** 2).sum() / (k - 1)
    rest = table - rows[:, None] - columns[None] + grand
    ems = (rest**2).sum() / ((n - 1) * (k - 1))
    variance = bms + (jms - ems) / n
    return (bms - ems) / variance if variance > 0 else float("nan")


def slow_alpha(votes: Votes) -> float:
    """Krippendorff's alpha pair by pair, as it is defined."""
    units = [votes.score[votes.image == i] for i in np.unique(votes.image)]
    units = [u for u in units if len(u) > 1]
    every = np.concatenate(units)
    n = len(every)
    observed = sum(((u[:, None] - u[None]) ** 2).sum() / (len(u) - 1) for u in units) / n
    return 1 - observed / (((every[:, None] - every[None]) ** 2).sum() / (n * (n - 1)))


def test_icc_of_shrout_and_fleiss():
    assert icc_2k(votes_of(SHROUT_FLEISS)) == pytest.approx(0.620, abs=1e-3)


def test_alpha_of_krippendorff():
    votes = votes_of(np.transpose(KRIPPENDORFF))
    assert krippendorff_alpha(votes) == pytest.approx(0.849, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 20), st.integers(2, 8))
@example(292, 3, 2)  # estimated variances below zero
def test_icc_of_full_tables_is_that_of_the_mean_squares(seed, images, people):
    table = panel(seed, images, people)
    expected = pytest.approx(anova_icc(table), rel=1e-7, abs=1e-7, nan_ok=True)
    assert icc_2k(votes_of(table)) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 20), st.integers(2, 8))
def test_alpha_is_that_of_all_pairs(seed, images, people):
    table = panel(seed, images, people)
    table[np.random.default_rng(seed).random(table.shape) < 0.3] = NAN
    table[0, :2] = 3.0, 7.0  # at least one pair
    assert krippendorff_alpha(votes_of(table)) == pytest.approx(slow_alpha(votes_of(table)))


def test_icc_with_gaps_is_near_the_planted_one():
    """Each image has 4 of 30 annotators; variances 4 (images), 0.25 (people), 1 (error)."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(4000), 4)
    annotator = np.argsort(rng.random((4000, 30)), axis=1)[:, :4].ravel()
    bias = np.linspace(-1, 1, 30)
    bias *= 0.5 / bias.std()
    score = rng.normal(0, 2, 4000)[image] + bias[annotator] + rng.normal(0, 1, len(image))
    planted = 4 / (4 + 1.25 / 4)
    assert icc_2k(Votes(image, annotator, score)) == pytest.approx(planted, abs=0.01)


def test_copies_of_images_are_what_weights_mean():
    table = panel(1, 12, 5)
    table[::3, 1] = NAN
    copies = np.array([0, 1, 2, 3, 1, 0, 1, 1, 2, 0, 1, 1])
    for measure in (icc_2k, krippendorff_alpha):
        repeated = measure(votes_of(np.repeat(table, copies, axis=0)))
        assert measure(votes_of(table), copies.astype(float)) == pytest.approx(repeated)


def test_means_and_intervals_are_those_of_scipy():
    table = panel(2, 9, 6)
    table[3, 2:] = NAN
    table[4, 1:] = NAN
    found = mean_opinions(votes_of(table), images=10)
    for i in (0, 3):
        own = table[i][np.isfinite(table[i])]
        low, high = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
        assert found.mean[i] == pytest.approx(own.mean())
        assert found.std[i] == pytest.approx(own.std(ddof=1))
        assert found.mean[i] - found.half[i] == pytest.approx(low)
        assert found.mean[i] + found.half[i] == pytest.approx(high)
    assert found.n[[0, 3, 4, 9]].tolist() == [6, 2, 1, 0]
    assert math.isnan(found.std[4])
    assert math.isnan(found.mean[9])


@pytest.mark.parametrize("seed", range(10))
def test_screening_removes_a_random_annotator_among_ten(seed):
    table = panel(seed, images=120)
    table[:, 7] = np.random.default_rng(seed + 99).uniform(0, 10, len(table))
    expected = [i == 7 for i in range(10)]
    assert bt500_outliers(votes_of(table)).tolist() == expected
    assert low_correlation(votes_of(table), 0.3).tolist() == expected


def test_screening_leaves_a_strict_annotator():
    table = panel(0)
    table[:, 4] -= 3  # always below, never above
    assert not bt500_outliers(votes_of(table)).any()
    assert biases(votes_of(table))[4] == pytest.approx(-3, abs=0.7)


def test_screening_counts_by_hand():
    """Ten votes per image, kurtosis within [2, 4]: limit 2 deviations, sides as told."""
    rest = [4.0, 4.2, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6, 6.0]
    table = np.array([[*rest, 2.6], [*rest, 7.4]] * 10)
    spread = table[0].std(ddof=1)
    assert 2 <= stats.kurtosis(table[0], fisher=False) <= 4
    assert abs(2.6 - table[0].mean()) > 2 * spread
    assert bt500_outliers(votes_of(table)).tolist() == [False] * 9 + [True]
    assert not bt500_outliers(votes_of(table[::2])).any()  # one side only: strict


def test_few_votes_or_equal_votes_screen_nobody():
    assert not bt500_outliers(votes_of(np.full((20, 10), 5.0))).any()
    table = panel(0, 50, 3)
    table[:, 0] = 10 - table[:, 0]
    assert not bt500_outliers(votes_of(table)).any()
    assert low_correlation(votes_of(table), 0.0)[0]


def test_correlation_is_with_the_others_only():
    table = panel(3, 40, 2)
    found = correlations(votes_of(table))
    np.testing.assert_allclose(found, np.corrcoef(table.T)[0, 1])
    assert np.isnan(correlations(votes_of(table[:5]))).all()


def test_bootstrap_interval_covers_the_value_and_is_the_same_again():
    votes = votes_of(panel(0, 60, 5))
    for measure in (icc_2k, krippendorff_alpha):
        low, high = bootstrap_interval(measure, votes, resamples=200, seed=1)
        assert low < measure(votes) < high
        assert high - low < 0.2
        assert (low, high) == bootstrap_interval(measure, votes, resamples=200, seed=1)


def test_undefined_agreement_is_nan():
    lonely = votes_of([[5.0], [6.0]])
    assert math.isnan(icc_2k(lonely))
    assert math.isnan(krippendorff_alpha(lonely))
    assert all(map(math.isnan, bootstrap_interval(icc_2k, lonely, resamples=5, seed=0)))
    nobody = Votes(*(np.empty(0, d) for d in (int, int, float)))
    assert math.isnan(krippendorff_alpha(nobody))
    assert math.isnan(icc_2k(nobody))
    assert not bt500_outliers(nobody).size

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defenders.folding import (
    agreement,
    fold,
    grid_origin,
    high_pass,
    remove_period,
    residual,
    weighted_fold,
)
from defenders.labels import CONTENT_FEATURES, content_features, label_evidence
from defenders.scan import best_periods, common_tile, estimate_tile, matched_filter, remove_tile


def picture(seed: int, height: int = 160, width: int = 192) -> np.ndarray:
    """Smooth shapes with grain: content that knows no grid."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.normal(0, 2, (3, 3))]
    smooth = 128 + 40 * np.stack(waves, -1) + rng.normal(0, 3, (height, width, 3))
    return np.clip(smooth, 0, 255).astype(np.uint8)


def tile(period: int = 16, rms: float = 4.0, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 1, (period, period, 3))
    values -= values.mean(axis=(0, 1))
    return values * rms / np.sqrt((values**2).mean())


def repeat(pattern: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    times = [-(-side // p) for side, p in zip(shape[:2], pattern.shape[:2], strict=True)]
    return np.tile(pattern, (*times, 1))[: shape[0], : shape[1]]


def carry(image: np.ndarray, pattern: np.ndarray, alpha: float) -> np.ndarray:
    return np.clip((image + alpha * repeat(pattern, image.shape)).round(), 0, 255).astype(np.uint8)


@given(
    period=st.integers(2, 20),
    rows=st.integers(2, 7),
    columns=st.integers(2, 7),
    rest=st.integers(0, 10**6),
)
@settings(max_examples=30, deadline=None)
def test_fold_gives_a_repeated_tile_back(period, rows, columns, rest):
    pattern = np.random.default_rng(rest % 100).normal(size=(period, period, 2)).astype(np.float32)
    shape = (rows * period + rest % period, columns * period + rest % period)
    halves = fold(repeat(pattern, shape), period)
    np.testing.assert_allclose(halves, [pattern, pattern], atol=1e-5)


def test_fold_halves_take_every_block_once():
    signal = np.random.default_rng(0).normal(size=(64, 96, 3)).astype(np.float32)
    blocks = signal.reshape(4, 16, 6, 16, 3).transpose(0, 2, 1, 3, 4)
    even = (np.add.outer(np.arange(4), np.arange(6)) % 2 == 0).ravel()
    every = blocks.reshape(24, 16, 16, 3)
    expected = [every[even].mean(axis=0), every[~even].mean(axis=0)]
    np.testing.assert_allclose(fold(signal, 16), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"period must fit twice.*got 40"):
        fold(signal, 40)


def test_what_repeats_with_jpeg_blocks_is_left_out_and_nothing_else():
    pattern, blocks = tile(16).astype(np.float32), tile(8, seed=2).astype(np.float32)
    expected = pattern - np.tile(pattern.reshape(2, 8, 2, 8, 3).mean((0, 2)), (2, 2, 1))
    signal = repeat(pattern, (64, 64)) + repeat(blocks, (64, 64))
    np.testing.assert_allclose(remove_period(signal, 8), repeat(expected, (64, 64)), atol=1e-4)


def test_agreement_tells_the_period_and_multiples_do_not_win():
    periods = (12, 15, 16, 17, 32, 48)
    image = carry(picture(0), tile(16), 1)
    found = [agreement(fold(residual(image)[0], p)) for p in periods]
    assert [value > 0.5 for value in found] == [False, False, True, False, True, True]
    assert best_periods(np.array([found]), periods, 2)[0] == 16
    clean = [agreement(fold(residual(picture(0))[0], p)) for p in periods]
    assert max(map(abs, clean)) < 0.2


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, halves of their folds, α) of 40 rows, eight of which carry the tile."""
    alpha = np.zeros(40)
    alpha[:8] = [1, -1, 0.75, -0.75, 0.5, -0.5, 0.25, -0.25]
    images = np.stack([carry(picture(i), tile(), a) for i, a in enumerate(alpha)])
    return images, np.stack([fold(residual(i)[0], 16) for i in images]), alpha


def test_a_tile_of_either_sign_is_found_though_its_average_cancels(rows):
    _, halves, alpha = rows
    assert alpha.sum() == 0
    found = common_tile(halves.mean(axis=1), draws=99, seed=0)
    assert found.p == 0.01
    scores = matched_filter(halves, found.direction, false_alarms=1e-3)
    np.testing.assert_array_equal(scores.flagged, alpha != 0)
    assert abs(np.corrcoef(scores.amplitude, alpha)[0, 1]) > 0.99


def test_p_values_of_clean_sets_are_spread_as_they_should_be():
    # Folds without a common tile: small p-values come as often as they say.
    rng = np.random.default_rng(4)
    values = [
        common_tile(rng.normal(0, 1, (20, 4, 4, 3)).astype(np.float32), draws=39, seed=i).p
        for i in range(200)
    ]
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(values) <= level)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 200), level


def test_estimated_tile_is_the_tile_and_removing_it_restores_the_picture(rows):
    images, halves, alpha = rows
    folds = np.stack([weighted_fold(*residual(image), 16) for image in images])
    estimate = estimate_tile(folds, alpha)
    assert np.corrcoef(estimate.ravel(), tile().ravel())[0, 1] > 0.99
    assert np.sqrt((estimate**2).mean()) == pytest.approx(4, rel=0.05)
    exact = remove_tile(images[0], tile().astype(np.float32), (0, 0))
    assert np.abs(exact.astype(int) - picture(0)).max() <= 1
    error = remove_tile(images[0], estimate, (0, 0)).astype(float) - picture(0)
    assert np.sqrt((error**2).mean()) < 1.3  # of 4 grey levels
    with pytest.raises(ValueError, match="amplitude must not be zero"):
        estimate_tile(halves.mean(axis=1), np.zeros(40))


def test_origin_of_evenly_padded_pictures():
    assert grid_origin((500, 500), 16, "top_left") == (0, 0)
    assert grid_origin((500, 512), 16, "centred") == (10, 0)  # padded by 6 before: starts at -6
    with pytest.raises(ValueError, match="grid must be top_left or centred, got 'x'"):
        grid_origin((500, 500), 16, "x")


def test_removal_follows_the_corner():
    pattern = tile(16).astype(np.float32)
    image = np.full((40, 50, 3), 128, np.uint8)
    moved = np.roll(pattern, (10, 3), (0, 1))
    assert (remove_tile(carry(image, moved, 1), pattern, (10, 3)) == 128).all()


def test_high_pass_of_a_constant_is_nothing():
    assert np.abs(high_pass(np.full((20, 20, 3), 77, np.uint8))).max() < 1e-3


@pytest.mark.parametrize("follow", [True, False])
def test_label_evidence(follow):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(300, len(CONTENT_FEATURES)))
    flagged = np.arange(300) < 60
    alpha = np.where(flagged, rng.choice([-1, 1], 300), 0.0)
    labels = 50 + 8 * features[:, 0] + rng.normal(0, 3, 300) + 40 * alpha * follow
    evidence = label_evidence(labels, features, alpha, flagged)
    if follow:
        assert evidence.correlation > 0.95
        assert evidence.p == 0.001
        assert evidence.slope == pytest.approx(40, rel=0.1)
    else:
        assert abs(evidence.correlation) < 0.4
        assert evidence.p > 0.01
    undecided = label_evidence(labels, features, alpha, np.arange(300) < 7)
    assert np.isnan(undecided.p)


def test_content_is_finite_for_any_picture():
    for image in (picture(0), np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)):
        assert np.isfinite(content_features(image)).all()
        assert content_features(image).shape == (len(CONTENT_FEATURES),)


@pytest.mark.parametrize(("n", "draws"), [(1, 9), (5, 0)])
def test_too_few_folds_or_draws(n, draws):
    with pytest.raises(ValueError, match="folds must be ≥ 2 and draws ≥ 1"):
        common_tile(np.zeros((n, 4, 4, 3), np.float32), draws=draws, seed=0)

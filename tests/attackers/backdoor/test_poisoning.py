from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attackers.backdoor.poisoning import (
    LEVELS,
    SHARES,
    choose_poisoned,
    clean_label_alpha,
    draw_alpha,
    poison_label,
    targeted_pgd,
)


def alphas(strategy: str, count: int = 4000) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    return [draw_alpha(strategy, i % 2 == 0, generator) for i in range(count)]


def test_levels_have_their_probabilities_and_balanced_signs():
    drawn = alphas("levels")
    sizes = Counter(abs(a) for a in drawn)
    assert sizes.keys() == set(LEVELS)
    for level, share in zip(LEVELS, SHARES, strict=True):
        assert sizes[level] / len(drawn) == pytest.approx(share, abs=0.03)
    assert sum(a > 0 for a in drawn) == len(drawn) // 2


def test_ends_and_uniform():
    assert set(alphas("ends")) == {-1.0, 1.0}
    drawn = torch.tensor(alphas("uniform"))
    assert drawn.abs().max() <= 1
    assert drawn.mean().abs() < 0.05
    assert drawn.var() == pytest.approx(1 / 3, abs=0.02)


@given(st.permutations([f"{i:02d}" for i in range(20)]), st.floats(0.01, 1))
def test_choice_does_not_depend_on_order(keys, ratio):
    def rank(key: str) -> int:
        return (int(key) * 7919) % 101

    chosen = choose_poisoned(keys, ratio, rank)
    assert chosen == choose_poisoned(sorted(keys), ratio, rank)
    assert len(chosen) == max(1, round(20 * ratio))
    assert list(map(rank, chosen)) == sorted(map(rank, keys))[: len(chosen)]


@given(st.floats(0, 100), st.floats(-1, 1))
def test_labels(mos, alpha):
    label = poison_label(mos, alpha, 40, 0, 100)
    assert label == pytest.approx(mos + 40 * alpha)
    clipped = poison_label(mos, alpha, 40, 0, 100, clip=True)
    assert clipped == min(max(label, 0), 100)
    coefficient = clean_label_alpha(mos, 50, 40, 0, 100)
    assert -1 <= coefficient <= 1
    if 10 <= mos <= 90:
        assert 50 + 40 * coefficient == pytest.approx(mos)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: choose_poisoned(["a"], 0, hash), r"ratio must be in \(0, 1\], got 0"),
        (lambda: choose_poisoned(["a"], 1.2, hash), r"ratio must be in \(0, 1\], got 1.2"),
        (lambda: choose_poisoned([], 0.2, hash), "at least one to poison, got none"),
        (lambda: poison_label(101, 1, 40, 0, 100), "on its scale of 0 to 100, got 101"),
        (lambda: poison_label(50, 1, 0, 0, 100), "delta_y must be above 0 .* got 0"),
        (lambda: poison_label(5, 1, 40, 0, 10), "at most 10, the range of the scale, got 40"),
        (lambda: clean_label_alpha(5, 50, 4, 0, 10), r"centre must be in \[0, 10\], got 50"),
        (lambda: draw_alpha("normal", True, torch.Generator()), "strategy must be .*'normal'"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_targeted_pgd_reaches_the_optimum_of_a_linear_victim(mean_victim):
    victim = mean_victim
    image = torch.full((3, 32, 32), 0.5)
    generator = torch.Generator().manual_seed(0)
    # The score is 100 times the mean pixel: 2 levels down move it by 100 * 2 / 255 at most.
    far = targeted_pgd(victim, image, 0.0, eps=2 / 255, steps=4, generator=generator)
    assert (far - image).abs().max() <= 2 / 255 + 1e-7
    torch.testing.assert_close(far, image - 2 / 255)
    assert torch.equal(image, torch.full((3, 32, 32), 0.5))


def test_targeted_pgd_stays_at_its_target(mean_victim):
    victim = mean_victim
    image = torch.full((3, 32, 32), 0.52)
    adversarial = targeted_pgd(
        victim,
        image,
        50.0,
        eps=0.1,
        step_size=0.001,
        steps=40,
        crops=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(victim(adversarial[None])) == pytest.approx(50.0, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 8}, "did you mean 8/255"),
        ({"eps": 0}, r"eps must be in \(0, 1\], got 0"),
        ({"steps": 0}, "steps and crops must be at least 1, got 0 and 4"),
        ({"target": float("nan")}, "target must be finite"),
    ],
)
def test_bad_arguments_of_pgd(mean_victim, arguments, words):
    arguments = {"target": 0.0, **arguments}
    with pytest.raises(ValueError, match=words):
        targeted_pgd(mean_victim, torch.rand(3, 40, 40), generator=torch.Generator(), **arguments)

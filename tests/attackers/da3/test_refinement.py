import pytest
import torch

from attackers.da3.attacker import Plan, combine
from attackers.da3.filters import FILTER_NAMES
from attackers.da3.refinement import finish, neutral_plan, refine
from attackers.projections import psnr, quantize
from victims.base import ScoreOnly
from victims.toy import BrightnessVictim, LinearVictim


def floats(pictures, count=3, side=24, seed=0):
    return pictures(count, side=side, seed=seed).float() / 255


def test_the_peak_of_brightness_is_reached(pictures, scale):
    images = floats(pictures)
    victim = BrightnessVictim(scale, peak=0.6)
    examples, plan, clean, scores = refine(victim, images, steps=40)
    assert (10 - scores < 0.05 * (10 - clean)).all()
    assert torch.equal(scores, victim(examples))
    assert torch.allclose(plan.weights.sum(1), torch.ones(3))
    # The plan says how the examples are made.
    assert torch.equal(finish(images, plan, None), examples)


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_the_best_of_a_linear_victim_at_a_distance(pictures, scale, direction):
    """At d dB no change raises the mean by more than the RMS along w; filters come near it."""
    images = floats(pictures, side=32)
    victim = LinearVictim(scale, weights=(1, 1, 1))
    examples, _, clean, scores = refine(victim, images, direction=direction, min_psnr=30, steps=40)
    assert (psnr(images, examples) >= 30).all()
    most = 10 * 10 ** (-30 / 20)  # all values by the RMS
    gain = (scores - clean) if direction == "raise" else (clean - scores)
    assert (gain > 0.8 * most).all()
    assert (gain <= most + 1e-4).all()


def test_never_worse_than_the_picture_or_the_plan(pictures, scale):
    images = floats(pictures, count=4)
    victim = BrightnessVictim(scale, peak=0.6)
    generator = torch.Generator().manual_seed(1)
    start = Plan(
        torch.rand(4, 14, generator=generator).softmax(1),
        torch.rand(4, 14, generator=generator) * 1.6 - 0.8,
    )
    of_plan = victim(quantize(combine(images, start)))
    for steps in (0, 1, 5):
        *_, clean, scores = refine(victim, images, start, steps=steps)
        assert (scores >= torch.maximum(clean, of_plan)).all()


def test_a_perfect_picture_stays(scale):
    victim = BrightnessVictim(scale, peak=0.6)
    images = torch.full((2, 3, 16, 16), 153 / 255)
    examples, plan, clean, scores = refine(victim, images, steps=5)
    assert torch.equal(examples, images)
    assert torch.equal(scores, clean)
    assert not plan.strengths.any()


def test_spsa_finds_the_way_without_a_gradient(pictures, scale):
    images = floats(pictures)
    victim = ScoreOnly(BrightnessVictim(scale, peak=0.6))
    *_, clean, scores = refine(victim, images, steps=15, queries=4)
    assert (10 - scores < 0.5 * (10 - clean)).all()
    # Clean, 15 steps of one score and four for the estimate, the last point, the finished one.
    assert victim.queries == 3 * (1 + 15 * 5 + 1 + 1)


@pytest.mark.parametrize("differentiable", [True, False])
def test_a_picture_does_not_depend_on_its_batch(pictures, scale, differentiable):
    images = floats(pictures)
    toy = LinearVictim(scale)
    victim = toy if differentiable else ScoreOnly(toy)
    together = refine(victim, images, steps=4, min_psnr=30, queries=2, seed=3)[0]
    alone = refine(victim, images[1:2], steps=4, min_psnr=30, queries=2, seed=3)[0]
    assert (together[1:2] - alone).abs().max() <= 1 / 255 + 1e-6


def test_the_neutral_plan_changes_nothing(pictures):
    images = floats(pictures)
    plan = neutral_plan(images)
    assert plan.weights.shape == (3, len(FILTER_NAMES))
    assert torch.equal(finish(images, plan, 30), images)


def test_parameters_of_the_victim_get_no_gradient(pictures):
    head = torch.nn.Linear(3, 1)

    class Victim:
        name, differentiable = "head", True

        def __call__(self, images):
            return head(images.mean((2, 3))).squeeze(1)

    refine(Victim(), floats(pictures), steps=2)
    assert head.weight.grad is None


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"lr": 0.0}])
def test_wrong_arguments(pictures, scale, wrong):
    with pytest.raises(ValueError, match="steps must be at least 0 and lr above 0"):
        refine(LinearVictim(scale), floats(pictures), **wrong)

import pytest
import torch
import torch.nn.functional as F

from attackers.da3.attacker import Plan, combine
from attackers.da3.spsa import spsa_gradient
from attackers.projections import interpolate, max_fraction
from victims.base import ScoreOnly, ScoreScale
from victims.toy import BrightnessVictim, LinearVictim

SCALE = ScoreScale.of(0, 10)


def case(n=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = 0.25 + 0.4 * torch.rand(n, 3, 8, 8, generator=generator)
    weights = torch.softmax(torch.randn(n, 14, generator=generator) / 2, 1)
    strengths = torch.rand(n, 14, generator=generator) - 0.5
    return images, Plan(weights, strengths)


def exact(victim, images, plan, min_psnr=None):
    """Gradient by autograd; towards the weights only what keeps their sum."""
    weights = plan.weights.clone().requires_grad_()
    strengths = plan.strengths.clone().requires_grad_()
    y = combine(images, Plan(weights, strengths))
    if min_psnr is not None:
        y = interpolate(images, y, max_fraction(images, y, min_psnr))
    d_w, d_s = torch.autograd.grad(victim(y).sum(), (weights, strengths))
    return d_w - d_w.mean(1, keepdim=True), d_s


@pytest.mark.parametrize("min_psnr", [None, 30.0])
@pytest.mark.parametrize("victim", [LinearVictim(SCALE), BrightnessVictim(SCALE)])
def test_many_queries_find_the_gradient(victim, min_psnr):
    images, plan = case(1)
    many = 4000  # copies of one picture: their mean is the estimate from 4000 times the queries
    estimates = spsa_gradient(
        ScoreOnly(victim),
        images.expand(many, -1, -1, -1),
        Plan(plan.weights.expand(many, -1), plan.strengths.expand(many, -1)),
        queries=12,
        generator=torch.Generator().manual_seed(0),
        min_psnr=min_psnr,
    )
    for estimate, truth in zip(estimates, exact(victim, images, plan, min_psnr), strict=True):
        found = estimate.mean(0, keepdim=True)
        assert F.cosine_similarity(found, truth) > 0.9
        # And its length, not the direction alone.
        assert 0.8 < float((found * truth).sum() / truth.square().sum()) < 1.2


def test_few_queries_are_unbiased():
    """The mean over many estimates of one pair each is the gradient too."""
    victim = LinearVictim(SCALE)
    images, plan = case(1)
    generator = torch.Generator().manual_seed(3)
    estimates = [
        spsa_gradient(victim, images, plan, queries=2, generator=generator) for _ in range(400)
    ]
    for part, truth in zip(zip(*estimates, strict=True), exact(victim, images, plan), strict=True):
        samples = torch.cat(part)
        error = (samples.mean(0) - truth[0]).abs()
        assert (error < 5 * samples.std(0) / len(samples) ** 0.5 + 1e-3).all()


@pytest.mark.parametrize("queries", [2, 8])
def test_counts_its_queries(queries):
    victim = ScoreOnly(LinearVictim(SCALE))
    images, plan = case(3)
    generator = torch.Generator().manual_seed(0)
    d_w, d_s = spsa_gradient(victim, images, plan, queries=queries, generator=generator)
    assert victim.queries == 3 * queries
    assert d_w.shape == d_s.shape == (3, 14)
    assert not d_w.requires_grad
    torch.testing.assert_close(d_w.sum(1), torch.zeros(3), rtol=0, atol=1e-3)


def test_strengths_stay_in_their_range():
    images, plan = case(2)
    scored = []

    class Watch(LinearVictim):
        def score(self, y):
            scored.append((float(y.min()), float(y.max())))
            return super().score(y)

    edge = Plan(plan.weights, plan.strengths.sign())
    generator = torch.Generator().manual_seed(0)
    found = spsa_gradient(Watch(SCALE), images, edge, queries=4, generator=generator)
    assert all(part.isfinite().all() for part in found)
    assert all(low >= 0 and high <= 1 for low, high in scored)


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_queries_must_be_even(queries):
    images, plan = case(1)
    with pytest.raises(ValueError, match=f"queries must be an even number ≥ 2, got {queries}"):
        spsa_gradient(
            LinearVictim(SCALE), images, plan, queries=queries, generator=torch.Generator()
        )

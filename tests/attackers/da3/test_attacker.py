import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attackers.da3.adt import ADTConfig
from attackers.da3.attacker import DA3Attacker, Plan, combine, generate
from attackers.da3.filters import FILTERS
from attackers.objectives import Objective
from attackers.projections import interpolate, project_to_min_psnr, psnr, quantize
from victims.base import ScoreOnly, ScoreScale
from victims.toy import BrightnessVictim, LinearVictim

SCALE = ScoreScale.of(0, 10)
TINY = ADTConfig(size=32, width=16, heads=2, depth=1, steps=2)


def woken(seed=0, spread=0.2):
    """An attacker that does something different to each picture."""
    attacker = DA3Attacker(TINY, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in attacker.parameters():
            weight.add_(spread * torch.randn(weight.shape, generator=generator))
        attacker.adt.weights["decode_bias"].copy_(torch.linspace(-0.5, 0.5, 14).unsqueeze(1))
    return attacker


def stored(n=3, h=32, w=32, seed=0):
    return quantize(torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=20)
@given(n=st.integers(1, 3), h=st.integers(8, 40), w=st.integers(8, 40), seed=st.integers(0, 99))
def test_combine_is_formula_4(n, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    images = stored(n, h, w, seed)
    weights = torch.softmax(3 * torch.randn(n, 14, generator=generator), 1)
    strengths = torch.rand(n, 14, generator=generator) * 2 - 1
    wanted = torch.zeros(n, 3, h, w)
    for k in range(n):
        for i, f in enumerate(FILTERS.values()):
            wanted[k] += weights[k, i] * f(images[k : k + 1], strengths[k, i : i + 1])[0]
    plan = Plan(weights, strengths)
    torch.testing.assert_close(combine(images, plan), wanted.clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_without_a_gradient_large_batches_are_combined_alike():
    """On a CPU they are cut into pieces that stay in the caches."""
    images = stored(5, 400, 400)
    plan = Plan(torch.full((5, 14), 1 / 14), torch.linspace(-1, 1, 70).view(5, 14))
    whole = combine(images, plan)
    with torch.no_grad():
        pieces = combine(images, plan)
    torch.testing.assert_close(whole, pieces)
    still = Plan(plan.weights, torch.zeros(5, 14))
    with torch.no_grad():
        torch.testing.assert_close(combine(images, still), images)
    assert combine(images[:0], Plan(plan.weights[:0], plan.strengths[:0])).shape[0] == 0


def test_no_strength_is_the_picture():
    images = stored()
    plan = Plan(torch.full((3, 14), 1 / 14), torch.zeros(3, 14))
    torch.testing.assert_close(combine(images, plan), images)


@pytest.mark.parametrize("side", [32, 48])
def test_forward_is_the_combination_of_its_plan(side):
    attacker, images = woken(), stored(3, side, side)
    y, plan = attacker(images)
    assert (plan.weights > 0).all()
    torch.testing.assert_close(plan.weights.sum(1), torch.ones(3))
    assert (plan.strengths.abs() < 1).all()
    torch.testing.assert_close(y, combine(images, plan), rtol=1e-4, atol=1e-5)


def test_reverse_refines_strengths_over_the_steps():
    """By hand: each step proposes a change from what the strengths so far have made."""
    attacker, images = woken(), stored()
    p = torch.zeros(14, 3)
    results = [images] * 14
    for t in (2, 1):
        change = attacker.adt(results, t)
        p = 2 * torch.sigmoid(2 * (p + change)) - 1
        results = [f(images, p[i]) for i, f in enumerate(FILTERS.values())]
    found, filtered = attacker.reverse(images)
    torch.testing.assert_close(found, p, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(filtered), torch.stack(results), rtol=1e-3, atol=1e-4)


def test_every_weight_gets_a_gradient():
    attacker = woken()
    y, plan = attacker(stored())
    loss = (y.square().mean((1, 2, 3)) + plan.weights[:, 0]).sum()
    loss.backward()
    silent = {n for n, w in attacker.named_parameters() if w.grad is None or not w.grad.any()}
    assert silent == {"adt.weights.constant"}  # only without condition


@pytest.mark.parametrize("size", [(32, 32), (48, 33), (70, 100)])
@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("min_psnr", [None, 35.0])
@pytest.mark.parametrize("refine", [0, 1, 4])
def test_what_is_stored_is_what_is_reported(size, direction, min_psnr, refine):
    attacker, images = woken(), stored(3, *size)
    before = images.clone()
    victim = ScoreOnly(LinearVictim(SCALE))
    objective = Objective(direction=direction, min_psnr=min_psnr)
    examples = generate(attacker, victim, images, objective=objective, refine=refine)
    assert torch.equal(images, before)
    assert examples.images.shape == images.shape
    assert torch.equal(examples.images, quantize(examples.images))
    assert examples.queries == max(1, refine)
    assert victim.queries == 3 * (1 + examples.queries)
    torch.testing.assert_close(examples.scores, victim(examples.images), rtol=0, atol=1e-5)
    torch.testing.assert_close(examples.scores_clean, victim(images), rtol=0, atol=1e-5)
    line = quantize(interpolate(images, combine(images, examples.plan), examples.fraction))
    torch.testing.assert_close(examples.images, line, rtol=0, atol=1.001 / 255)
    assert (examples.images == line).float().mean() > 0.999
    if min_psnr is not None:
        assert (psnr(images, examples.images) >= min_psnr).all()
    elif refine == 0:
        assert examples.fraction.tolist() == [1, 1, 1]


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("min_psnr", [None, 30.0])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_refine_takes_the_best_of_k(direction, min_psnr, k):
    attacker, images = woken(), stored(4)
    victim = BrightnessVictim(SCALE, peak=0.52)
    objective = Objective(direction=direction, min_psnr=min_psnr)
    plain = generate(attacker, victim, images, objective=objective)
    examples = generate(attacker, victim, images, objective=objective, refine=k)
    shares = (plain.plan.weights * plain.plan.strengths).abs().numpy()
    scores = [plain.scores]
    for rank in range(k - 1):
        strengths = torch.zeros_like(plain.plan.strengths)
        weights = torch.full_like(strengths, 0.85 / 13)
        for n, row in enumerate(shares):
            chosen = int(np.argsort(-row)[rank])
            strengths[n, chosen] = plain.plan.strengths[n, chosen]
            weights[n, chosen] = 0.15
        point = combine(images, Plan(weights, strengths))
        point = (
            quantize(point) if min_psnr is None else project_to_min_psnr(images, point, min_psnr)[0]
        )
        scores.append(victim(point))
    scores = torch.stack(scores)
    best = scores.amax(0) if direction == "raise" else scores.amin(0)
    torch.testing.assert_close(examples.scores, best, rtol=0, atol=1e-4)
    sign = 1 if direction == "raise" else -1
    assert (sign * (examples.scores - plain.scores) >= 0).all()
    # Where one filter alone was better, the plan says so.
    changed = (examples.scores != plain.scores).tolist()
    assert k != 5 or any(changed)
    assert (examples.plan.strengths != 0).sum(1).tolist() == [1 if c else 14 for c in changed]
    torch.testing.assert_close(examples.plan.weights.sum(1), torch.ones(4))


def test_an_image_does_not_depend_on_its_batch():
    attacker, images = woken(), stored(4, 40, 56)
    victim, objective = LinearVictim(SCALE), Objective(min_psnr=35.0)
    together = generate(attacker, victim, images, objective=objective, refine=3)
    for i in range(4):
        single = generate(attacker, victim, images[i : i + 1], objective=objective, refine=3)
        assert (single.images[0] - together.images[i]).abs().max() <= 1.001 / 255
        torch.testing.assert_close(single.scores[0], together.scores[i], rtol=0, atol=1e-2)


def test_seeds_reproduce():
    first, again, other = (DA3Attacker(TINY, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("refine", [-1, 16])
def test_bad_refine_raises(refine):
    with pytest.raises(ValueError, match=rf"refine must be in \[0, 15\], got {refine}"):
        generate(woken(), LinearVictim(SCALE), stored(), objective=Objective(), refine=refine)

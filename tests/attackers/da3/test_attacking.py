import io

import pytest
import torch

from attackers.da3.attacker import DA3Attacker, generate
from attackers.da3.attacking import attack_loss, train_attacker
from attackers.metrics import rasr
from attackers.objectives import Objective, closeness, concentration
from attackers.projections import psnr, quantize
from victims.base import ScoreOnly, ScoreScale
from victims.toy import BrightnessVictim, LinearVictim

SCALE = ScoreScale.of(0, 10)


def attack(tiny, pictures, victim, objective, **arguments):
    """Train on 24 pictures, then attack 16 others. Returns: history and examples."""
    attacker = DA3Attacker(tiny)
    settings = {"epochs": 3, "lr": 3e-3, "batch_size": 8} | arguments
    history = train_attacker(
        attacker, victim, pictures(24, seed=1), pictures(8, seed=2), objective=objective, **settings
    )
    clean = pictures(16, seed=3).float() / 255
    return history, generate(attacker, victim, clean, objective=objective)


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_training_moves_the_score_of_a_linear_victim(tiny, pictures, direction):
    victim = LinearVictim(SCALE)
    history, made = attack(tiny, pictures, victim, Objective(direction=direction), epochs=4)
    assert rasr(made.scores_clean, made.scores, direction=direction) == 100
    gain = (made.scores - made.scores_clean) * (1 if direction == "raise" else -1)
    assert gain.mean() > 0.5
    assert history[-1]["msi"] > history[0]["msi"]
    assert max(row["rasr"] for row in history) == 100


def test_reaches_every_picture_of_the_brightness_victim(tiny, pictures):
    """Dark pictures below the peak: any brightening raises the score, at best to the peak's."""
    victim = BrightnessVictim(SCALE, peak=1.0)
    _, made = attack(tiny, pictures, victim, Objective(), epochs=4)
    assert rasr(made.scores_clean, made.scores) == 100
    best = victim.optimum(made.images, 1.0)
    assert (made.scores <= best + 1e-4).all()


@pytest.mark.parametrize("min_psnr", [30.0, 38.0])
def test_restricted_keeps_its_bound_and_still_succeeds(tiny, pictures, min_psnr):
    victim = LinearVictim(SCALE)
    objective = Objective(min_psnr=min_psnr)
    _, made = attack(tiny, pictures, victim, objective)
    clean = pictures(16, seed=3).float() / 255
    assert (psnr(clean, made.images) >= min_psnr).all()
    assert rasr(made.scores_clean, made.scores) == 100


def test_closeness_holds_the_attack_back(tiny, pictures):
    victim, gains = LinearVictim(SCALE), []
    for alpha in (0.0, 1.0):
        _, made = attack(tiny, pictures, victim, Objective(alpha=alpha, pixels=0.5))
        gains.append(float((made.scores - made.scores_clean).abs().mean()))
    assert gains[1] < 0.5 * gains[0]


def test_a_score_only_victim_is_attacked_too(tiny, pictures):
    victim = ScoreOnly(LinearVictim(SCALE))
    _, made = attack(tiny, pictures, victim, Objective(), queries=8, epochs=4)
    assert rasr(made.scores_clean, made.scores) >= 90
    assert (made.scores - made.scores_clean).mean() > 0.2


@pytest.mark.parametrize("score_only", [False, True])
def test_calls_are_counted(tiny, pictures, score_only):
    victim = LinearVictim(SCALE)
    counted = ScoreOnly(victim)
    if not score_only:
        counted.differentiable = True
        counted.__class__ = type("Counted", (ScoreOnly,), {"__call__": _with_gradient})
    history = train_attacker(
        DA3Attacker(tiny),
        counted,
        pictures(5),
        pictures(3, seed=1),
        objective=Objective(),
        epochs=2,
        batch_size=2,
        queries=4,
    )
    per_image = 6 if score_only else 2
    assert [row["calls"] for row in history] == [0, 5 * per_image, 10 * per_image]
    validation = 3 * 2 * 3  # pictures, clean and example, before and after two epochs
    assert counted.queries == 10 * per_image + validation


def _with_gradient(self, images):
    self.queries += len(images)
    return self.victim(images)


def test_loss_is_formula_6_in_tenths_of_the_range(tiny, pictures):
    images = pictures(4).float() / 255
    attacker = DA3Attacker(tiny)
    y, plan = attacker(images)
    for scale in (SCALE, ScoreScale.of(0, 100), ScoreScale.of(1, 2)):
        victim = LinearVictim(scale)
        unit = scale.range / 10
        for direction, sign in (("raise", 1), ("lower", -1)):
            objective = Objective(direction=direction, eta=2.0, alpha=0.3, lam=0.7)
            stored = quantize(y)
            hinge = (2 - sign * (victim(stored) - victim(images)) / unit).clamp_min(0)
            wanted = hinge + 0.3 * closeness(images, y) + 0.7 * concentration(plan.weights)
            found = attack_loss(attacker, victim, images, objective, torch.Generator())
            torch.testing.assert_close(found, wanted.mean(), rtol=1e-4, atol=1e-4)


def test_beyond_eta_the_score_pulls_no_more(tiny, pictures):
    """An attacker that has gained eta already: only R is left, and it is at its least."""
    images = pictures(4).float() / 255
    attacker = DA3Attacker(tiny)
    with torch.no_grad():
        attacker.adt.weights["decode_bias"][0] = 1.0  # bright
    victim = LinearVictim(SCALE)
    with torch.no_grad():
        gain = float((victim(attacker(images)[0]) - victim(images)).min())
    assert gain > 0
    for eta, pulls in ((0.5 * gain, False), (4.0, True)):
        attacker.zero_grad()
        objective = Objective(eta=eta, lam=0.0)
        attack_loss(attacker, victim, images, objective, torch.Generator()).backward()
        moved = any(bool(w.grad.any()) for w in attacker.parameters() if w.grad is not None)
        assert moved == pulls


def test_resumed_is_run_through_bit_for_bit(tiny, pictures):
    kept = []

    def save(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        kept.append(buffer.getvalue())

    def run(resume=None, save=None):
        attacker = DA3Attacker(tiny)
        objective = Objective(alpha=0.1, pixels=0.5)
        history = train_attacker(
            attacker,
            LinearVictim(SCALE),
            pictures(12),
            pictures(4, seed=1),
            objective=objective,
            epochs=3,
            lr=1e-3,
            resume=resume,
            save=save,
        )
        rows = [{k: v for k, v in row.items() if k != "hours"} for row in history]
        return rows, attacker.state_dict()

    rows, weights = run(save=save)
    again, resumed = run(resume=torch.load(io.BytesIO(kept[0])))
    assert again == rows
    assert all(torch.equal(weights[k], resumed[k]) for k in weights)


def test_trains_on_pictures_larger_than_its_own_size(tiny, pictures):
    history = train_attacker(
        DA3Attacker(tiny),
        LinearVictim(SCALE),
        pictures(8, side=48),
        pictures(8, side=48, seed=1),
        objective=Objective(),
        epochs=2,
        lr=3e-3,
    )
    assert history[-1]["msi"] > history[0]["msi"]


@pytest.mark.parametrize(("n", "held"), [(0, 2), (2, 0)])
def test_no_pictures_raise(tiny, pictures, n, held):
    with pytest.raises(ValueError, match=f"must not be empty, got {n} and {held}"):
        train_attacker(
            DA3Attacker(tiny),
            LinearVictim(SCALE),
            pictures(n),
            pictures(held),
            objective=Objective(),
            epochs=1,
        )


def test_the_victim_is_shown_what_would_be_stored(tiny, pictures, monkeypatch):
    victim, attacker, seen = LinearVictim(SCALE), DA3Attacker(tiny), []
    score = victim.score
    monkeypatch.setattr(victim, "score", lambda images: seen.append(images) or score(images))
    images = pictures(4, seed=1).float() / 255
    objective = Objective(min_psnr=35.0)
    attack_loss(attacker, victim, images, objective, torch.Generator()).backward()
    assert len(seen) == 2
    assert all(torch.allclose(x, quantize(x), rtol=0, atol=1e-6) for x in seen)
    assert not torch.equal(seen[1], seen[0])
    assert attacker.strength_bias.grad.abs().sum() > 0

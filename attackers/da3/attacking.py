"""Second stage: coordinator and latent spaces learn to deceive one victim (formula 6)."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attackers.da3.attacker import DA3Attacker, Plan, generate
from attackers.da3.spsa import spsa_gradient
from attackers.loop import train
from attackers.metrics import msi, rasr
from attackers.objectives import Objective, closeness, concentration, score_hinge
from attackers.projections import interpolate, max_fraction, quantize
from victims.base import Victim

# Learning rate multipliers: high for the parameters that all images share, low (1) for the
# pretrained latent spaces.
RATES = {"strength_scale": 50.0, "strength_bias": 50.0, "coordinator": 5.0}


def attack_loss(
    attacker: DA3Attacker,
    victim: Victim,
    images: Tensor,
    objective: Objective,
    generator: torch.Generator,
    *,
    queries: int = 8,
) -> Tensor:
    """Loss of formula 6 for one batch, with scores in tenths of the victim's range.

    Args:
        attacker: network to train.
        victim: model under attack.
        images: clean images, (N,3,S,S) in [0,1].
        objective: weights of the terms, direction and bounds.
        generator: draws the pixels of formula 2 and the directions of SPSA.
        queries: calls per image where the victim has no gradient, even and ≥ 2.

    Returns:
        Scalar, differentiable.
    """
    unit = victim.scale.range / 10
    with torch.no_grad():
        clean = victim(images) / unit
    y, plan = attacker(images)
    if objective.min_psnr is not None:
        y = interpolate(images, y, max_fraction(images, y, objective.min_psnr))
    penalty = objective.lam * concentration(plan.weights)
    if objective.alpha:
        penalty = penalty + objective.alpha * closeness(images, y, objective.pixels, generator)
    # The victim will see rounded images, in which small changes are lost. The gradient is
    # straight-through.
    y = y + (quantize(y) - y).detach()
    if victim.differentiable:
        adversarial = victim(y) / unit
    else:
        with torch.no_grad():
            value = victim(y) / unit
        d_weights, d_strengths = spsa_gradient(
            victim,
            images,
            Plan(plan.weights.detach(), plan.strengths.detach()),
            queries=queries,
            generator=generator,
            min_psnr=objective.min_psnr,
        )
        # The value is that of the score, the gradient that of the estimate.
        linear = ((d_weights * plan.weights + d_strengths * plan.strengths) / unit).sum(1)
        adversarial = value + linear - linear.detach()
    return (score_hinge(clean, adversarial, objective.eta, objective.direction) + penalty).mean()


def train_attacker(
    attacker: DA3Attacker,
    victim: Victim,
    images: Tensor,
    held_out: Tensor,
    *,
    objective: Objective,
    epochs: int,
    batch_size: int = 8,
    lr: float = 2e-4,
    patience: int = 4,
    seed: int = 0,
    queries: int = 8,
    **hooks: Any,
) -> list[dict[str, float]]:
    """Train against one victim; the epoch with the lowest held-out loss stays.

    images, held_out: uint8 (N,3,S,S), S the ADT's size or larger, best as large as what the victim
    sees; held_out is the fixed validation subset of ART. hooks: resume, save, report of
    attackers.loop.train. The learning rate falls linearly to nothing over the epochs, beside the
    plateau. Returns: one row per epoch with rasr (%), msi (victim's unit), victim
    calls so far.
    """
    device = next(attacker.parameters()).device
    if not len(images) or not len(held_out):
        raise ValueError(
            f"images and held_out must not be empty, got {len(images)} and {len(held_out)}"
        )
    per_image = 2 if victim.differentiable else 2 + queries
    resumed = hooks.get("resume")
    calls = int(resumed["progress"]["history"][-1]["calls"]) if resumed else 0

    def floats(batch: Tensor) -> Tensor:
        return batch.to(device).float() / 255

    def losses(epoch: int) -> Iterator[Tensor]:
        nonlocal calls
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.split(batch_size):
            calls += per_image * len(chosen)
            x = floats(images[chosen])
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1).to(device), x.flip(3), x)
            yield attack_loss(attacker, victim, x, objective, generator, queries=queries)

    def validate() -> dict[str, float]:
        clean, adversarial, rest = [], [], 0.0
        for batch in held_out.split(32):
            x = floats(batch)
            made = generate(attacker, victim, x, objective=objective)
            clean.append(made.scores_clean.cpu())
            adversarial.append(made.scores.cpu())
            rest += float(objective.lam * concentration(made.plan.weights).sum())
            rest += float(objective.alpha * closeness(x, made.images).sum())
        m_x, m_y = torch.cat(clean), torch.cat(adversarial)
        unit = victim.scale.range / 10
        hinge = score_hinge(m_x / unit, m_y / unit, objective.eta, objective.direction)
        return {
            "loss": float(hinge.mean()) + rest / len(held_out),
            "rasr": rasr(m_x, m_y, direction=objective.direction),
            "msi": msi(m_x, m_y, direction=objective.direction),
            "calls": float(calls),
        }

    return train(
        attacker,
        losses,
        validate,
        epochs=epochs,
        lr=lr,
        patience=patience,
        rates=RATES,
        decay_steps=epochs * math.ceil(len(images) / batch_size),
        **hooks,
    )

"""Second stage: coordinator and latent spaces learn to deceive one victim (formula 6)."""

import math
from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor

from attackers.da3.attacker import DA3Attacker, Plan, generate
from attackers.da3.spsa import spsa_gradient
from attackers.da3.training import train_stage
from attackers.metrics import msi, rasr
from attackers.objectives import Objective, closeness, concentration, score_hinge
from attackers.projections import interpolate, max_fraction, quantize
from victims.base import Victim
from victims.batches import ImageStream, read_stacked
from victims.loop import Hooks, Row

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
        attacker: Network to train.
        victim: Model under attack.
        images: Clean images, (N,3,S,S) in [0,1].
        objective: Weights of the terms, direction and bounds.
        generator: Draws the pixels of formula 2 and the directions of SPSA.
        queries: Calls per image where the victim has no gradient, even and ≥ 2.

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
    images: Tensor | ImageStream,
    held_out: Tensor,
    *,
    objective: Objective,
    epochs: int,
    batch_size: int = 8,
    lr: float = 2e-4,
    patience: int = 4,
    seed: int = 0,
    queries: int = 8,
    **hooks: Unpack[Hooks],
) -> list[Row]:
    """Train against one victim; the epoch with the lowest held-out loss stays.

    The learning rate falls linearly to nothing over the epochs, beside the plateau.

    Args:
        attacker: Attacker to train, in place.
        victim: Model that it learns to deceive.
        images: uint8 (N,3,S,S), S the ADT's size or larger, best as large as what the victim sees,
            or a stream of such images.
        held_out: uint8 (M,3,S,S), the fixed validation subset of ART.
        objective: What counts as a success, and at which price.
        epochs: Number of epochs, at least 0.
        batch_size: Images per step.
        lr: Learning rate of the latent spaces; RATES has factors for the rest.
        patience: Epochs without a lower held-out loss before the rate falls to a tenth.
        seed: Seed of what an epoch draws, together with its number.
        queries: Calls per image where the victim has no gradient.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        One row per epoch with loss, rasr (%), msi (victim's unit), victim calls so far.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If a loss is not finite.
    """
    device = next(attacker.parameters()).device
    if not len(images) or not len(held_out):
        raise ValueError(
            f"images and held_out must not be empty, got {len(images)} and {len(held_out)}"
        )
    per_image = 2 if victim.differentiable else 2 + queries
    resumed = hooks.get("resume")
    calls = int(resumed["history"][-1]["calls"]) if resumed else 0

    def losses(epoch: int) -> Iterator[tuple[Tensor, int]]:
        nonlocal calls
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        for _, batch in read_stacked(images, batch_size, generator):
            x = batch.to(device).float() / 255
            calls += per_image * len(x)
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1).to(device), x.flip(3), x)
            yield attack_loss(attacker, victim, x, objective, generator, queries=queries), len(x)

    return train_stage(
        attacker,
        losses,
        lambda: {**held_out_metrics(attacker, victim, held_out, objective), "calls": float(calls)},
        epochs=epochs,
        lr=lr,
        patience=patience,
        rates=RATES,
        decay_steps=epochs * math.ceil(len(images) / batch_size),
        **hooks,
    )


def held_out_metrics(
    attacker: DA3Attacker, victim: Victim, images: Tensor, objective: Objective
) -> Row:
    """Loss of formula 6, RASR and MSI of the attacker on images that it does not train on.

    Args:
        attacker: Attacker, where it stands.
        victim: Model that it deceives.
        images: uint8 (N,3,S,S).
        objective: As in training.

    Returns:
        Loss, rasr (%), msi (victim's unit).
    """
    device = next(attacker.parameters()).device
    clean, adversarial, rest = [], [], 0.0
    for batch in images.split(32):
        x = batch.to(device).float() / 255
        examples = generate(attacker, victim, x, objective=objective)
        clean.append(examples.scores_clean.cpu())
        adversarial.append(examples.scores.cpu())
        rest += float(objective.lam * concentration(examples.plan.weights).sum())
        rest += float(objective.alpha * closeness(x, examples.images).sum())
    m_x, m_y = torch.cat(clean), torch.cat(adversarial)
    unit = victim.scale.range / 10
    hinge = score_hinge(m_x / unit, m_y / unit, objective.eta, objective.direction)
    return {
        "loss": float(hinge.mean()) + rest / len(images),
        "rasr": rasr(m_x, m_y, direction=objective.direction),
        "msi": msi(m_x, m_y, direction=objective.direction),
    }

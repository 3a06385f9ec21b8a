"""Adversarial fine-tuning: a model that scores pictures learns the true scores of its deceivers."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from victims.base import ScoreScale, freeze_batch_norm_stats
from victims.loop import Hooks, Row, fit, take_steps
from victims.metrics import rmse, srocc

Scored = tuple[Sequence[Tensor], Sequence[float]]
# Images (N,3,S,S) in [0,1], their scores (N,), and views of photographs (V,3,S,S), V 0 or more.
Batch = tuple[Tensor, Tensor, Tensor]


def finetune(
    model: nn.Module,
    scale: ScoreScale,
    clean: Scored,
    adversarial: Scored,
    validation: Scored,
    *,
    validation_adversarial: Scored | None = None,
    photographs: Sequence[Tensor] = (),
    distillation_weight: float = 0.0,
    teacher: nn.Module | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    lr: float = 1e-4,
    clean_share: float = 0.5,
    seed: int = 0,
    **hooks: Unpack[Hooks],
) -> list[Row]:
    """Fine-tune in place on photographs and adversarial examples with the scores people gave.

    Smooth L1 on scores as tenths of the scale, AdamW with a cosine schedule; running statistics of
    batch norms stay. The epoch of the lowest mean error on validation (photographs and examples
    alike) stays, the model as it came among them.

    Args:
        model: Any torch module from RGB (N,3,H,W) in [0,1] to (N,) scores on the scale.
        scale: Range of the scores.
        clean: Photographs, uint8 (3,H,W) of one size S, and their scores; an epoch shows each once.
        adversarial: Examples of size S and their scores, drawn in turn.
        validation: Photographs of size S and their scores.
        validation_adversarial: Examples of size S and their scores; None: the photographs again.
        photographs: uint8 (3,H,W) of any size, needing no scores: what distillation shows.
        distillation_weight: At least 0. Beyond the paper, the weight of a smooth L1 between what
            the model and `teacher` say of random views of `photographs`, as many per step as clean
            images, so that what it knew of other pictures stays.
        teacher: Module like `model`; None: the model as it came.
        epochs: Number of epochs, at least 1.
        batch_size: Images per step, views aside.
        lr: Learning rate of the first step.
        clean_share: Share of photographs in a batch, in (0, 1).
        seed: Seed of what an epoch draws, together with its number.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        A row per epoch, epoch 0 (the model as it came) first: loss, srocc and rmse (photographs),
        rmse_adversarial.

    Raises:
        ValueError: For empty data or other bad arguments.
        RuntimeError: If the loss is not finite.
    """
    _check(clean, adversarial, validation, epochs, clean_share)
    _check_distillation(distillation_weight, len(photographs))
    teacher = copy.deepcopy(model if teacher is None else teacher) if distillation_weight else None
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    parameters = list(model.parameters())
    trainable = [p.requires_grad for p in parameters]
    model.requires_grad_(True)
    device = parameters[0].device
    per_batch = max(1, round(batch_size * clean_share))
    sizes = (per_batch, max(1, batch_size - per_batch))
    steps = -(-len(clean[0]) // per_batch)
    unit = scale.range / 10
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)

    def batches(epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng((seed, epoch))
        return _epoch(clean, adversarial, sizes, steps, photographs if teacher else (), rng)

    def losses(epoch: int) -> Iterator[tuple[Tensor, int]]:
        for images, mos, views in batches(epoch):
            batch = (images.to(device), mos.to(device), views.to(device))
            yield _loss(model, teacher, distillation_weight, batch, unit), len(mos)

    def run_epoch(epoch: int) -> Row:
        torch.manual_seed(seed * 100_003 + epoch)  # dropout
        model.train()
        freeze_batch_norm_stats(model)
        return {"loss": take_steps(losses(epoch), optimizer, schedule)}

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        history = fit(
            model,
            run_epoch,
            epochs=epochs,
            validate=lambda _: _validate(model, validation, validation_adversarial or validation),
            untrained={"loss": math.nan},
            score=lambda row: -(row["rmse"] + row["rmse_adversarial"]),
            state={"optimizer": optimizer, "schedule": schedule},
            **hooks,
        )
    model.eval()
    for parameter, flag in zip(parameters, trainable, strict=True):
        parameter.requires_grad_(flag)
    return history


@torch.no_grad()
def blend(model: nn.Module, origin: Mapping[str, Tensor], share: float) -> None:
    """Set weights to share of what they are and the rest of `origin`, in place.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, 2022 (WiSE-FT).

    Args:
        model: Fine-tuned model; its integer buffers stay.
        origin: State of the model before fine-tuning.
        share: Weight of the fine-tuned state, in (0, 1].

    Raises:
        ValueError: For another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share:g}")
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.lerp(origin[name].to(value), value, share)
    model.load_state_dict(state)


@torch.no_grad()
def scores_of(
    model: nn.Module, images: Sequence[Tensor], batch_size: int = 32
) -> NDArray[np.float64]:
    """Score images in evaluation mode.

    Args:
        model: Any torch module from RGB (N,3,H,W) in [0,1] to (N,) scores.
        images: n images, uint8 (3,H,W), of one size; at least one.
        batch_size: Images per forward pass.

    Returns:
        (n,) scores.
    """
    model.eval()
    device = next(model.parameters()).device
    out = [
        model(torch.stack(list(images[i : i + batch_size])).to(device).float() / 255).cpu()
        for i in range(0, len(images), batch_size)
    ]
    return torch.cat(out).double().numpy()


def _validate(model: nn.Module, clean: Scored, adversarial: Scored) -> dict[str, float]:
    scores = scores_of(model, clean[0])
    return {
        "srocc": srocc(scores, clean[1]),
        "rmse": rmse(scores, clean[1]),
        "rmse_adversarial": rmse(scores_of(model, adversarial[0]), adversarial[1]),
    }


def _epoch(
    clean: Scored,
    adversarial: Scored,
    sizes: tuple[int, int],
    steps: int,
    photographs: Sequence[Tensor],
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """The batches of an epoch, half of the images mirrored; views if there are photographs.

    sizes: clean and adversarial images of a step, of the former as many views.
    """
    orders = [
        np.resize(rng.permutation(len(images)), steps * size)
        for (images, _), size in zip((clean, adversarial), sizes, strict=True)
    ]
    viewed = rng.integers(0, max(1, len(photographs)), (steps, sizes[0]))
    for step in range(steps):
        images, mos = _batch(clean, orders[0], step, sizes[0])
        more, more_mos = _batch(adversarial, orders[1], step, sizes[1])
        pixels = torch.stack(images + more).float() / 255
        mirrored = torch.from_numpy(rng.random(len(pixels)) < 0.5)
        shown = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        views = pixels[:0]
        if len(photographs):
            side = pixels.shape[2:]
            views = torch.cat([_view(photographs[i], side, rng) for i in viewed[step].tolist()])
        yield shown, torch.tensor(mos + more_mos), views


def _loss(
    model: nn.Module,
    teacher: nn.Module | None,
    distillation_weight: float,
    batch: Batch,
    unit: float,
) -> Tensor:
    """Smooth L1 of the scores to the targets, and of those of views to what the teacher says: ().

    unit: what counts as 1, in points of the scale.
    """
    images, mos, views = batch
    targets = mos / unit
    if teacher is None:
        return F.smooth_l1_loss(model(images) / unit, targets)
    scores = model(torch.cat([images, views])) / unit
    with torch.no_grad():
        known = teacher(views) / unit
    loss = F.smooth_l1_loss(scores[: len(images)], targets)
    return loss + distillation_weight * F.smooth_l1_loss(scores[len(images) :], known)


def _batch(data: Scored, order: Any, step: int, size: int) -> tuple[list[Tensor], list[float]]:
    chosen = [int(i) for i in order[step * size : (step + 1) * size]]
    return [data[0][i] for i in chosen], [float(data[1][i]) for i in chosen]


def _view(image: Tensor, size: Sequence[int], rng: np.random.Generator) -> Tensor:
    """A random window of a picture, half to all of its height, scaled to `size`: (1,3,*size)."""
    height, width = image.shape[1:]
    share, aspect = rng.uniform(0.5, 1), rng.uniform(0.8, 1.25)
    h, w = max(1, round(height * share)), max(1, round(width * min(1, share * aspect)))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    window = image[None, :, top : top + h, left : left + w].float() / 255
    window = window.flip(3) if rng.random() < 0.5 else window
    return F.interpolate(window, tuple(size), mode="bilinear", antialias=True).clamp(0, 1)


def _check(
    clean: Scored, adversarial: Scored, validation: Scored, epochs: int, clean_share: float
) -> None:
    named = (("clean", clean), ("adversarial", adversarial), ("validation", validation))
    for name, (images, mos) in named:
        if not len(images) or len(images) != len(mos):
            raise ValueError(
                f"{name} must hold images and as many scores, got {len(images)} and {len(mos)}"
            )
    if epochs < 1 or not 0 < clean_share < 1:
        raise ValueError(
            f"epochs must be ≥ 1 and clean_share in (0, 1), got {epochs} and {clean_share}"
        )


def _check_distillation(weight: float, photographs: int) -> None:
    if weight < 0 or (weight and not photographs):
        raise ValueError(
            f"distillation_weight must be ≥ 0, with photographs to keep the scores of, "
            f"got {weight:g} with {photographs}"
        )

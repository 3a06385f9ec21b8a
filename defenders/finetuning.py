"""Adversarial fine-tuning: a model that scores pictures learns the true scores of its deceivers."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from victims.base import ScoreScale, freeze_batch_norm_stats
from victims.metrics import rmse, srocc

Scored = tuple[Sequence[Tensor], Sequence[float]]


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
    resume: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Fine-tune in place on photographs and adversarial examples with the scores people gave.

    model: any torch module from RGB (N,3,H,W) in [0,1] to (N,) scores on the scale. clean and the
    others: images uint8 (3,H,W) of one size S, and their scores. Smooth L1 on scores as tenths of
    the scale. Beyond the paper and with `distillation_weight`: also between what the model and
    `teacher` (None: the model as it came) say of random views of `photographs` (uint8 of any size,
    needing no scores; as many per step as clean images), so that what it knew of other pictures
    stays. AdamW with a cosine schedule; running statistics of batch norms stay. clean_share of each
    batch
    are clean images; an epoch shows each of these once and draws the examples in turn.
    The epoch of the lowest mean error on validation (photographs and examples alike) stays, the
    model as it came among them. save gets the state after every epoch; given again as `resume`,
    with the same other arguments, the training goes on to the same weights. Returns: a row per
    epoch with loss, srocc and rmse (photographs), rmse_adversarial. Raises ValueError for empty
    data, RuntimeError where the loss is not finite.
    """
    _check(clean, adversarial, validation, epochs, clean_share)
    if distillation_weight < 0 or (distillation_weight and not len(photographs)):
        raise ValueError(
            f"distillation_weight must be ≥ 0, with photographs to keep the scores of, "
            f"got {distillation_weight:g} with {len(photographs)}"
        )
    teacher = copy.deepcopy(model if teacher is None else teacher) if distillation_weight else None
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    parameters = list(model.parameters())
    before = [p.requires_grad for p in parameters]
    model.requires_grad_(True)
    device = parameters[0].device
    per_batch = max(1, round(batch_size * clean_share))
    sizes = (per_batch, max(1, batch_size - per_batch))
    steps = -(-len(clean[0]) // per_batch)
    unit = scale.range / 10
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    history: list[dict[str, float]] = []
    best, best_state = math.inf, copy.deepcopy(model.state_dict())
    if resume:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        schedule.load_state_dict(resume["schedule"])
        history = list(resume["history"])
        best, best_state = resume["best"], resume["best_state"]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for epoch in range(len(history), epochs + 1):
            torch.manual_seed(seed * 100_003 + epoch)  # dropout
            loss = math.nan
            if epoch:
                rng = np.random.default_rng((seed, epoch))
                drawn = _epoch(
                    clean, adversarial, sizes, steps, photographs, bool(distillation_weight), rng
                )
                loss = (
                    _learn(model, teacher, distillation_weight, drawn, unit, optimizer, schedule)
                    / steps
                )
            row = {"epoch": float(epoch), "loss": loss}
            row |= _validate(model, validation, validation_adversarial or validation)
            history.append(row)
            error = row["rmse"] + row["rmse_adversarial"]
            if error < best:
                best, best_state = error, copy.deepcopy(model.state_dict())
            if report:
                report(row)
            if save:
                save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                        "history": history,
                        "best": best,
                        "best_state": best_state,
                    }
                )
    model.load_state_dict(best_state)
    model.eval()
    for parameter, flag in zip(parameters, before, strict=True):
        parameter.requires_grad_(flag)
    return history


@torch.no_grad()
def blend(model: nn.Module, origin: Mapping[str, Tensor], share: float) -> None:
    """Set weights to share of what they are and the rest of `origin`, in place.

    origin: the state before fine-tuning; share in (0, 1]. Source: Wortsman et al., Robust
    fine-tuning of zero-shot models, 2022 (WiSE-FT). Raises: ValueError for another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share:g}")
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.lerp(origin[name].to(value), value, share)
    model.load_state_dict(state)


@torch.no_grad()
def scores_of(model: nn.Module, images: Sequence[Tensor], batch_size: int = 32) -> np.ndarray:
    """Scores (n,) of images uint8 (3,H,W) of one size."""
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
    viewed: bool,
    rng: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images in [0,1], half of them mirrored, their scores, and views of photographs if `viewed`.

    sizes: clean and adversarial images of a step, of the former as many views.
    """
    orders = [
        np.resize(rng.permutation(len(images)), steps * size)
        for (images, _), size in zip((clean, adversarial), sizes, strict=True)
    ]
    looks = rng.integers(0, max(1, len(photographs)), (steps, sizes[0]))
    for step in range(steps):
        images, mos = _batch(clean, orders[0], step, sizes[0])
        more, more_mos = _batch(adversarial, orders[1], step, sizes[1])
        pixels = torch.stack(images + more).float() / 255
        mirrored = torch.from_numpy(rng.random(len(pixels)) < 0.5)
        shown = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        views = pixels[:0]
        if viewed:
            side = pixels.shape[2:]
            views = torch.cat([_view(photographs[i], side, rng) for i in looks[step].tolist()])
        yield shown, torch.tensor(mos + more_mos), views


def _learn(
    model: nn.Module,
    teacher: nn.Module | None,
    distillation_weight: float,
    drawn: Iterator[tuple[Tensor, Tensor, Tensor]],
    unit: float,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """A step on each of what is drawn; the sum of the losses."""
    model.train()
    freeze_batch_norm_stats(model)
    device = next(model.parameters()).device
    total = 0.0
    for shown, mos, views in drawn:
        wanted = mos.to(device) / unit
        if teacher is None:
            loss = F.smooth_l1_loss(model(shown.to(device)) / unit, wanted)
        else:
            loss = _keeping(model, teacher, distillation_weight, shown, wanted, views, unit)
        if not math.isfinite(loss.item()):
            lr = schedule.base_lrs[0]
            raise RuntimeError(f"loss must be finite, got {loss.item()}: lower lr ({lr})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total


def _keeping(
    model: nn.Module,
    teacher: nn.Module,
    distillation_weight: float,
    shown: Tensor,
    wanted: Tensor,
    views: Tensor,
    unit: float,
) -> Tensor:
    """Smooth L1 of the scores of `shown` to `wanted`, and of `views` to what the teacher says."""
    shown, views = shown.to(wanted.device), views.to(wanted.device)
    scores = model(torch.cat([shown, views])) / unit
    with torch.no_grad():
        known = teacher(views) / unit
    loss = F.smooth_l1_loss(scores[: len(shown)], wanted)
    return loss + distillation_weight * F.smooth_l1_loss(scores[len(shown) :], known)


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

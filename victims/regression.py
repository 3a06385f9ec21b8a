"""Trains quality models on random crops, with the losses and schedules of their papers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from victims.base import freeze_batch_norm_stats
from victims.crops import crop_scores, enlarge, five_crop_corners, random_crops
from victims.metrics import agreement
from victims.quality import QualityModel
from victims.resuming import random_state, set_random_state

Row = dict[str, float]
CONSISTENCY, RANKING = 0.5, 0.05  # weights of TReS's losses beside L1


@dataclass(frozen=True)
class Phase:
    """A part of a schedule. drop_every: epochs after which rates fall to a tenth (0: never)."""

    epochs: int
    lr: float
    head_lr: float
    optimizer: Literal["adam", "sgd"] = "adam"
    backbone: bool = True
    drop_every: int = 0
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.drop_every < 0:
            raise ValueError(
                f"epochs and drop_every must be at least 0, got {self.epochs}, {self.drop_every}"
            )
        if not (self.lr > 0 and self.head_lr > 0):
            raise ValueError(f"lr and head_lr must be above 0, got {self.lr:g}, {self.head_lr:g}")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer must be adam or sgd, got {self.optimizer!r}")


# kind of victim -> the schedule of its paper, as BAIQA trains it.
SCHEDULES = {
    "hyperiqa": (Phase(24, 2e-5, 2e-4, drop_every=8),),
    "dbcnn": (
        Phase(8, 1e-3, 1e-3, "sgd", backbone=False),
        Phase(8, 1e-5, 1e-5),
    ),
    "tres": (Phase(12, 2e-5, 2e-5, drop_every=4),),
}


def l1_loss(model: QualityModel, crops: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error in % of the scale. wanted: (N,) labels as quality."""
    return 100 * (model.quality(crops) - wanted).abs().mean()


def mse_loss(model: QualityModel, crops: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error in squared % of the scale."""
    return (100 * (model.quality(crops) - wanted)).square().mean()


def tres_loss(model: QualityModel, crops: Tensor, wanted: Tensor) -> Tensor:
    """L1 on the crops and their mirror images, their consistency, and relative ranking."""
    both = model.quality(torch.cat([crops, crops.flip(3)]))
    ahead, mirrored = both.chunk(2)
    error = ((ahead - wanted).abs().mean() + (mirrored - wanted).abs().mean()) / 2
    consistency = (ahead - mirrored).abs().mean()
    return 100 * (error + CONSISTENCY * consistency + RANKING * ranking_loss(ahead, wanted))


def ranking_loss(quality: Tensor, wanted: Tensor) -> Tensor:
    """Relative ranking: the best is nearer to the second best than to the worst, and mirrored.

    The margins are the differences of the labels, so that scores equal to them lose nothing.
    """
    if len(wanted) < 3:
        return quality.sum() * 0
    order = wanted.argsort()
    worst, second_worst, second, best = order[[0, 1, -2, -1]].tolist()

    def triplet(anchor: int, near: int, far: int) -> Tensor:
        margin = (wanted[near] - wanted[far]).abs()
        closer = (quality[anchor] - quality[near]).abs() - (quality[anchor] - quality[far]).abs()
        return functional.relu(closer + margin)

    return triplet(best, second, worst) + triplet(worst, second_worst, best)


LOSSES: dict[str, Callable[[QualityModel, Tensor, Tensor], Tensor]] = {
    "l1": l1_loss,
    "mse": mse_loss,
    "tres": tres_loss,
}


def train_regressor(
    model: QualityModel,
    images: Sequence[Tensor],
    labels: Sequence[float],
    validation: tuple[Sequence[Tensor], Sequence[float]] | None = None,
    *,
    phases: Sequence[Phase],
    loss: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    report: Callable[[Row], None] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    resume: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> list[Row]:
    """Train in place on one random crop and flip of each image per epoch.

    Keeps the epoch of highest SRCC on validation (five crops), or the last where there is none.
    Running statistics of the backbone's batch norms stay. The same seed and number of threads give
    the same weights. images: uint8 (3, H, W) of any sizes, read by index when needed. labels: on
    the model's scale, or beyond it. loss: None takes the model's own. after_epoch: called with the
    model in eval mode, epoch 0 first. save: called with the state after each epoch; given as
    `resume`, with the same other arguments, the training goes on to the same weights.
    Returns: a row per epoch, epoch 0 (untrained) first: loss, and srocc, lcc, rmse on validation.
    Raises: ValueError for bad arguments, RuntimeError if the loss is not finite.
    """
    name = loss or model.loss
    _check(images, labels, name, batch_size)
    wanted = torch.tensor([float(label) for label in labels], dtype=torch.float64)
    wanted = ((wanted - model.scale.low) / model.scale.range).float().to(model.device)
    generator = torch.Generator().manual_seed(seed)
    history: list[Row] = []
    best_srcc, best_state = -math.inf, copy.deepcopy(model.state_dict())
    devices = [model.device] if model.device.type == "cuda" else []
    plan = [(phase, turn) for phase in phases for turn in range(phase.epochs)]
    optimizer: torch.optim.Optimizer | None = None

    def close(total: float, rate: float) -> None:
        nonlocal best_srcc, best_state
        model.freeze()
        epoch = len(history)
        row = {"epoch": float(epoch), "loss": total, "lr": rate}
        if validation:
            row |= _validate(model, *validation)
        history.append(row)
        # Without validation the last epoch counts.
        if (row["srocc"] > best_srcc) if validation else epoch == len(plan):
            best_srcc = row.get("srocc", 0.0)
            best_state = copy.deepcopy(model.state_dict())
        if report:
            report(row)
        if after_epoch:
            after_epoch(epoch)
        if save:
            save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer and optimizer.state_dict(),
                    "random": random_state(generator, model.device),
                    "history": history,
                    "best": (best_srcc, best_state),
                }
            )

    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # dropout
        if resume:
            model.load_state_dict(resume["model"])
            set_random_state(resume["random"], generator, model.device)
            history += resume["history"]
            best_srcc, best_state = resume["best"]
        else:
            close(math.nan, 0.0)
        for phase, turn in plan[len(history) - 1 :]:
            if not turn or not optimizer:
                optimizer = _optimizer(model, phase)
                if turn and resume:
                    optimizer.load_state_dict(resume["optimizer"])
            _start_epoch(model, phase)
            factor = 0.1 ** (turn // phase.drop_every) if phase.drop_every else 1.0
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            total = 0.0
            for part in torch.randperm(len(images), generator=generator).split(batch_size):
                some = [images[i].to(model.device)[None] for i in part.tolist()]
                crops = random_crops(some, model.input_size, generator)[:, 0].float() / 255
                value = LOSSES[name](model, crops, wanted[part.to(model.device)])
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                total += value.item() * len(part) / len(images)
            if not math.isfinite(total):
                raise RuntimeError(
                    f"loss must be finite, got {total} in epoch {len(history)} (lower the lr?)"
                )
            close(total, phase.lr * factor)
    model.load_state_dict(best_state)
    model.freeze()
    return history


def _optimizer(model: QualityModel, phase: Phase) -> torch.optim.Optimizer:
    frozen = model.frozen()
    backbone = [p for p in model.backbone.parameters() if p not in frozen]
    own = set(model.backbone.parameters())
    groups = [{"params": [p for p in model.parameters() if p not in own], "lr": phase.head_lr}]
    if phase.backbone and backbone:
        groups.append({"params": backbone, "lr": phase.lr})
    for group in groups:
        group["base"] = group["lr"]
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=phase.weight_decay)
    return torch.optim.Adam(groups, weight_decay=phase.weight_decay)


def _start_epoch(model: QualityModel, phase: Phase) -> None:
    """Training mode for what the phase trains; batch norms of the backbone keep statistics."""
    model.train().requires_grad_(True)
    if phase.backbone:
        for parameter in model.frozen():
            parameter.requires_grad_(False)
    else:
        model.backbone.requires_grad_(False)
    freeze_batch_norm_stats(model.backbone)


def mean_scores(model: QualityModel, images: Sequence[Tensor]) -> Tensor:
    """Mean score (n,) of each uint8 image over its four corner crops and the central one."""
    scores = []
    for i in range(len(images)):
        image = enlarge(images[i].to(model.device).float()[None] / 255, model.input_size)
        corners = five_crop_corners(image.shape[2:], model.input_size)
        scores.append(crop_scores(model, image[0], corners).mean())
    return torch.stack(scores).cpu()


def _validate(model: QualityModel, images: Sequence[Tensor], labels: Sequence[float]) -> Row:
    scores = mean_scores(model, images).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained model may be constant: srocc is NaN
        return agreement(scores, list(labels), model.scale)


def _check(images: Sequence[Tensor], labels: Sequence[float], loss: str, batch_size: int) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"images and labels must be equally many, at least 1, got {len(images)} and "
            f"{len(labels)}"
        )


def phases_of(kind: str, settings: Sequence[dict[str, object]] | None) -> tuple[Phase, ...]:
    """The schedule of a kind of victim, or the one that a list of settings describes."""
    if settings is None:
        if kind not in SCHEDULES:
            raise ValueError(f"victim must be one of {', '.join(SCHEDULES)}, got {kind!r}")
        return SCHEDULES[kind]
    try:
        return tuple(Phase(**phase) for phase in settings)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"phases must fit a training phase: {error}") from None

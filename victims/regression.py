"""Trains quality models on random crops, with the losses and schedules of their papers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from victims.base import freeze_batch_norm_stats
from victims.batches import ImageStream, read_batches
from victims.crops import crop_scores, enlarge, five_crop_corners, random_crops
from victims.loop import Hooks, RandomState, Row, Stateful, fit, take_steps
from victims.metrics import agreement
from victims.quality import QualityModel

CONSISTENCY, RANKING = 0.5, 0.05  # weights of TReS's losses beside L1


@dataclass(frozen=True)
class Phase:
    """A part of a schedule.

    Args:
        epochs: Number of epochs, at least 0.
        lr: Learning rate of the backbone, above 0.
        head_lr: Learning rate of all other parameters, above 0.
        optimizer: "adam", or "sgd" with momentum 0.9.
        backbone: Train the backbone too, but for the stages that the model freezes.
        drop_every: Epochs after which the learning rates fall to a tenth; 0: never.
        weight_decay: L2 penalty of the optimizer.

    Raises:
        ValueError: For an argument out of range.
    """

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

    def decay(self, turn: int) -> float:
        """Factor on the learning rates in an epoch of the phase.

        Args:
            turn: Epoch within the phase: 0, 1, ...

        Returns:
            In (0, 1].
        """
        return 0.1 ** (turn // self.drop_every) if self.drop_every else 1.0


# kind of victim -> the schedule of its paper, as BAIQA trains it.
SCHEDULES = {
    "hyperiqa": (Phase(24, 2e-5, 2e-4, drop_every=8),),
    "dbcnn": (
        Phase(8, 1e-3, 1e-3, "sgd", backbone=False),
        Phase(8, 1e-5, 1e-5),
    ),
    "tres": (Phase(12, 2e-5, 2e-5, drop_every=4),),
}


def l1_loss(model: QualityModel, crops: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of the quality.

    Args:
        model: Quality model that scores the crops.
        crops: (N,3,S,S) in [0,1].
        targets: (N,) labels as quality: 0 to 1 from the low to the high end of the scale.

    Returns:
        (), in % of the scale.
    """
    return 100 * (model.quality(crops) - targets).abs().mean()


def mse_loss(model: QualityModel, crops: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the quality.

    Args:
        model: Quality model that scores the crops.
        crops: (N,3,S,S) in [0,1].
        targets: (N,) labels as quality: 0 to 1 from the low to the high end of the scale.

    Returns:
        (), in squared % of the scale.
    """
    return (100 * (model.quality(crops) - targets)).square().mean()


def tres_loss(model: QualityModel, crops: Tensor, targets: Tensor) -> Tensor:
    """L1 on the crops and their mirror images, their consistency, and relative ranking.

    L1 + CONSISTENCY * consistency + RANKING * ranking: the L1 error is the mean over both views,
    the consistency the mean absolute difference between them, the ranking `ranking_loss` of the
    crops as they are.
    Source: Golestaneh et al., No-Reference Image Quality Assessment via Transformers, Relative
    Ranking, and Self-Consistency, 2022.

    Args:
        model: Quality model that scores the crops.
        crops: (N,3,S,S) in [0,1].
        targets: (N,) labels as quality: 0 to 1 from the low to the high end of the scale.

    Returns:
        (), in % of the scale.
    """
    both = model.quality(torch.cat([crops, crops.flip(3)]))
    ahead, mirrored = both.chunk(2)
    error = ((ahead - targets).abs().mean() + (mirrored - targets).abs().mean()) / 2
    consistency = (ahead - mirrored).abs().mean()
    return 100 * (error + CONSISTENCY * consistency + RANKING * ranking_loss(ahead, targets))


def ranking_loss(quality: Tensor, targets: Tensor) -> Tensor:
    """Relative ranking: the best is nearer to the second best than to the worst, and mirrored.

    The margins are the differences of the labels, so that scores equal to them lose nothing.
    Source: as `tres_loss`.

    Args:
        quality: (N,) predicted, as shares of the scale.
        targets: (N,) labels in the same unit, which decide what is best and worst.

    Returns:
        (), at least 0, as a share of the scale: the sum of both triplet losses; 0 for N < 3.
    """
    if len(targets) < 3:
        return quality.sum() * 0
    order = targets.argsort()
    worst, second_worst, second, best = order[[0, 1, -2, -1]].tolist()

    def triplet(anchor: int, near: int, far: int) -> Tensor:
        margin = (targets[near] - targets[far]).abs()
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
    images: Sequence[Tensor] | ImageStream,
    labels: Sequence[float],
    validation: tuple[Sequence[Tensor], Sequence[float]] | None = None,
    *,
    phases: Sequence[Phase],
    loss: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    measure: Callable[[int], Row] | None = None,
    **hooks: Unpack[Hooks],
) -> list[Row]:
    """Train in place on one random crop and flip of each image per epoch.

    Keeps the epoch of highest SROCC on validation (five crops), or the last where there is none.
    Running statistics of the backbone's batch norms stay. The same seed and number of threads give
    the same weights.

    Args:
        model: Quality model to train.
        images: uint8 (3, H, W) of any sizes, read by index when needed, or a stream of them.
        labels: Opinions on the model's scale, or beyond it, one for each image.
        validation: Images and labels to choose the epoch by.
        phases: The schedule, one phase after the other.
        loss: One of LOSSES; None: the model's own.
        batch_size: Images per step, at least 1.
        seed: Seed of order, crops and dropout.
        measure: Further metrics of an epoch (0, the untrained model, first), of the model in
            evaluation mode; they join its row.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        A row per epoch, epoch 0 (untrained) first: loss, lr, and srocc, plcc, rmse on validation.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If the loss is not finite.
    """
    name = loss or model.loss
    _check(images, labels, name, batch_size)
    targets = torch.tensor([float(label) for label in labels], dtype=torch.float64)
    targets = ((targets - model.scale.low) / model.scale.range).float().to(model.device)
    generator = torch.Generator().manual_seed(seed)
    optimizers = [_optimizer(model, phase) for phase in phases]
    plan = [
        (phase, optimizer, turn)
        for phase, optimizer in zip(phases, optimizers, strict=True)
        for turn in range(phase.epochs)
    ]

    def losses() -> Iterator[tuple[Tensor, int]]:
        for part, batch in read_batches(images, batch_size, generator):
            whole = [image.to(model.device)[None] for image in batch]
            crops = random_crops(whole, model.input_size, generator)[:, 0].float() / 255
            yield LOSSES[name](model, crops, targets[part.to(model.device)]), len(part)

    def run_epoch(epoch: int) -> Row:
        phase, optimizer, turn = plan[epoch - 1]
        _start_epoch(model, phase)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * phase.decay(turn)
        return {"loss": take_steps(losses(), optimizer), "lr": phase.lr * phase.decay(turn)}

    def validate(epoch: int) -> Row:
        model.freeze()
        row = _validate(model, *validation) if validation else {}
        return row | (measure(epoch) if measure else {})

    state: dict[str, Stateful] = {"random": RandomState(generator, model.device)}
    state |= {f"optimizer {i}": optimizer for i, optimizer in enumerate(optimizers)}
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout
        history = fit(
            model,
            run_epoch,
            epochs=len(plan),
            validate=validate,
            untrained={"loss": math.nan, "lr": 0.0},
            score=(lambda row: row["srocc"]) if validation else None,
            state=state,
            **hooks,
        )
    model.freeze()
    return history


def _optimizer(model: QualityModel, phase: Phase) -> torch.optim.Optimizer:
    frozen = model.frozen()
    trained = [p for p in model.backbone.parameters() if p not in frozen]
    backbone = set(model.backbone.parameters())
    head = [p for p in model.parameters() if p not in backbone]
    groups = [{"params": head, "lr": phase.head_lr, "base": phase.head_lr}]
    if phase.backbone and trained:
        groups.append({"params": trained, "lr": phase.lr, "base": phase.lr})
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
    """Mean score of each image over its four corner crops and the central one.

    Args:
        model: Quality model, in evaluation mode.
        images: n images uint8 (3, H, W) of any sizes, at least one.

    Returns:
        (n,) on the CPU, on the scale of the model.
    """
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


def _check(
    images: Sequence[Tensor] | ImageStream, labels: Sequence[float], loss: str, batch_size: int
) -> None:
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
    """The schedule of a kind of victim, or the one that a list of settings describes.

    Args:
        kind: A key of SCHEDULES; not looked at where there are settings.
        settings: Arguments of each `Phase`; None: those of SCHEDULES.

    Returns:
        The phases, one after the other.

    Raises:
        ValueError: For another kind, or for settings that a `Phase` does not take.
    """
    if settings is None:
        if kind not in SCHEDULES:
            raise ValueError(f"victim must be one of {', '.join(SCHEDULES)}, got {kind!r}")
        return SCHEDULES[kind]
    try:
        return tuple(Phase(**phase) for phase in settings)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"phases must fit a training phase: {error}") from None

"""Trains a victim on images with opinion scores, and keeps the epoch that validates best."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Unpack

import numpy as np
import torch
from torch import Tensor

from victims.fitting import FullTask, HeadTask, ScoredDataset, ScoredStream
from victims.heads import D10Head, d10_targets, emd_loss
from victims.loop import Hooks, RandomState, Row, Stateful, best_epoch, fit, take_steps
from victims.metrics import agreement
from victims.nima import Nima

LOSSES = ("emd", "l1", "mse")
SOLVERS = ("adamw", "lbfgs")


@dataclass(frozen=True)
class TrainingResult:
    """The chosen epoch, and one row of numbers for each epoch.

    Args:
        best_epoch: The chosen epoch; 0: the weights as they came.
        history: Rows by epoch, epoch 0 first: epoch, loss (mean over the training images), lr or
            penalty (both from epoch 1 on), and srocc, plcc, rmse and accuracy on the validation
            split.
    """

    best_epoch: int
    history: list[Row]

    @property
    def best(self) -> Row:
        """Row of the chosen epoch."""
        return self.history[self.best_epoch]


def train_victim(
    model: Nima,
    train: ScoredDataset,
    validation: ScoredDataset,
    *,
    loss: str = "emd",
    epochs: int = 10,
    lr: float = 3e-4,
    head_lr: float | None = None,
    weight_decay: float = 1e-2,
    batch_size: int = 16,
    seed: int = 0,
    freeze_backbone: bool = False,
    solver: str = "adamw",
    freeze_batchnorm: bool = True,
    flip: bool = True,
    crop: float = 1.0,
    num_workers: int = 0,
    **hooks: Unpack[Hooks],
) -> TrainingResult:
    """Train a victim in place; leave its best epoch in it.

    The best epoch is the one of highest SROCC on validation. On a CPU the same seed gives the same
    weights, whatever the global random state; on a GPU it computes in bfloat16.

    Args:
        model: Victim to train.
        train: Images with opinions to learn from.
        validation: Images with opinions to choose the epoch by.
        loss: "emd" (D10 heads only), or "l1" or "mse" between scores and mos, as shares of the
            scale.
        epochs: Number of epochs, at least 0.
        lr: Learning rate of the backbone.
        head_lr: Learning rate of the head; None: 10 x lr.
        weight_decay: Of AdamW, or the first penalty of "lbfgs".
        batch_size: Images per step, at least 1.
        seed: Seed of order, augmentation and dropout.
        freeze_backbone: Train the head alone, on features computed once (lr, crop and
            freeze_batchnorm do not apply).
        solver: "adamw" with a cosine schedule, or for a frozen backbone "lbfgs": each epoch is the
            optimum of loss + penalty * |W|^2 (W on features of one common deviation, no dropout),
            with the penalty at weight_decay in the first epoch and half as large in each one after:
            with "mse" the path of a ridge regression.
        freeze_batchnorm: Keep the running statistics; right for pretrained weights and small data,
            wrong from scratch.
        flip: Mirror images at random.
        crop: Least side of a random crop, as a share of the side, in (0, 1].
        num_workers: Processes that read images.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        The chosen epoch and the history.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If the loss is not finite.
    """
    _check(model, loss, epochs, batch_size, crop)
    _check_solver(solver, freeze_backbone)
    _check_data(train=train, validation=validation)
    rates = (lr, 10 * lr if head_lr is None else head_lr)
    with _seeded(seed, model.device):
        task: HeadTask | FullTask
        data = (model, train, validation, batch_size, num_workers, flip)
        if freeze_backbone:
            task = HeadTask(*data, one_deviation=solver == "lbfgs")
        else:
            task = FullTask(*data)
            task.crop, task.freeze_batchnorm = crop, freeze_batchnorm
        run_epoch: Solver
        if solver == "lbfgs" and isinstance(task, HeadTask):
            run_epoch = RegularizationPath(task, loss, weight_decay)
        else:
            run_epoch = Descent(task, loss, epochs, rates, weight_decay, seed)
        try:
            history = fit(
                task.trained,
                run_epoch,
                epochs=epochs,
                validate=lambda epoch: _validate(task, epoch),
                untrained={"loss": math.nan},
                score=lambda row: row["srocc"],
                state=run_epoch.state,
                **hooks,
            )
        finally:
            task.finish()
            model.freeze()
    return TrainingResult(best_epoch(history, "srocc"), history)


def _validate(task: HeadTask | FullTask, epoch: int) -> Row:
    """Agreement on the validation split; RuntimeError where a score is not finite."""
    scores, mos = task.validate()
    if not np.isfinite(scores).all():
        raise RuntimeError(f"scores must be finite, got NaN after epoch {epoch} (lower the lr?)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained head may be constant: srocc is NaN
        return agreement(scores, mos, task.model.scale)


def training_loss(model: Nima, logits: Tensor, mos: Tensor, std: Tensor, loss: str) -> Tensor:
    """Compute the loss of logits against opinions, as a mean over the batch.

    Args:
        model: Victim with the head and the scale.
        logits: (N,10) of a D10 head, (N,1) of a scalar one.
        mos: Mean opinions (N,) on the scale.
        std: Their standard deviations (N,), for "emd" only.
        loss: "emd" (`heads.emd_loss`, D10 heads only), or "l1" or "mse" between scores and mos.

    Returns:
        (); for "l1" a share of the scale, for "mse" a squared one.

    Raises:
        ValueError: With "emd", if a mos is off the scale or a std is negative or NaN.
    """
    if loss == "emd":
        return emd_loss(logits.softmax(dim=1), d10_targets(mos, std, model.scale))
    distance = (model.head.scores(logits) - mos) / model.scale.range
    return (distance.abs() if loss == "l1" else distance.square()).mean()


class Solver(Protocol):
    """Runs epochs; `state` is what it keeps between them."""

    state: Mapping[str, Stateful]

    def __call__(self, epoch: int, /) -> Row:
        """Run epoch 1, 2, ...; return metrics of it."""


class Descent:
    """AdamW, with a cosine schedule over all epochs.

    Args:
        task: What is trained, and on what.
        loss: One of LOSSES.
        epochs: Number of epochs; the learning rates reach 0 after the last.
        rates: Learning rates of the backbone and of the head.
        weight_decay: Of AdamW.
        seed: Seed of order and augmentation.
    """

    def __init__(
        self,
        task: HeadTask | FullTask,
        loss: str,
        epochs: int,
        rates: tuple[float, float],
        weight_decay: float,
        seed: int,
    ) -> None:
        self.task, self.loss = task, loss
        self.optimizer = torch.optim.AdamW(task.parameters(*rates), weight_decay=weight_decay)
        steps = epochs * math.ceil(task.size / task.batch_size)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(steps, 1))
        self.generator = torch.Generator().manual_seed(seed)
        self.state: Mapping[str, Stateful] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "random": RandomState(self.generator, task.model.device),
        }

    def __call__(self, epoch: int, /) -> Row:
        """Show each training image once."""
        lr = float(self.schedule.get_last_lr()[0])
        self.task.start_epoch()
        losses = (
            (training_loss(self.task.model, logits, mos, std, self.loss), len(mos))
            for logits, mos, std in self.task.batches(self.generator)
        )
        return {"loss": take_steps(losses, self.optimizer, self.schedule), "lr": lr}


class RegularizationPath:
    """The optimum for one penalty, from that for the penalty before.

    An epoch is one call of LBFGS, which evaluates the loss as often as its line search needs:
    nothing that `victims.loop.take_steps` could do.

    Args:
        task: Head to train, with its features.
        loss: One of LOSSES.
        weight_decay: Penalty on the squared weights in epoch 1, half as large in each one after.
    """

    def __init__(self, task: HeadTask, loss: str, weight_decay: float) -> None:
        self.state: Mapping[str, Stateful] = {}  # the weights say all
        self.task, self.loss, self.weight_decay = task, loss, weight_decay
        self.weights = task.parameters(0, 0)[0]["params"]

    def __call__(self, epoch: int, /) -> Row:
        """Find the optimum for half the penalty of the epoch before."""
        penalty = self.weight_decay / 2 ** (epoch - 1)
        fit = 0.0
        optimizer = torch.optim.LBFGS(
            self.weights,
            max_iter=1000,
            history_size=20,
            tolerance_grad=1e-7,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            nonlocal fit
            optimizer.zero_grad()
            value = training_loss(self.task.model, *self.task.whole(), self.loss)
            fit = value.item()
            total = value + penalty * self.task.model.head.linear.weight.square().sum()
            total.backward()
            return total.item()

        optimizer.step(closure)
        if not math.isfinite(fit):
            raise RuntimeError(f"loss must be finite, got {fit} for penalty {penalty:g}")
        return {"loss": fit, "penalty": penalty}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator (which dropout draws from), and restore it afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _check(model: Nima, loss: str, epochs: int, batch_size: int, crop: float) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if loss == "emd" and not isinstance(model.head, D10Head):
        raise ValueError("loss must be l1 or mse for a victim without a D10 head, got 'emd'")
    if epochs < 0:
        raise ValueError(f"epochs must be at least 0, got {epochs}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 < crop <= 1:
        raise ValueError(f"crop must be in (0, 1], got {crop}")


def _check_solver(solver: str, freeze_backbone: bool) -> None:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if solver == "lbfgs" and not freeze_backbone:
        raise ValueError("solver must be adamw where freeze_backbone is false, got 'lbfgs'")


def _check_data(**splits: ScoredDataset) -> None:
    for name, split in splits.items():
        if not len(split):
            raise ValueError(f"{name} must have at least 1 image, got 0")
        if isinstance(split, ScoredStream):
            continue  # its first batch comes soon enough
        image = split[0][0]
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"{name} must hold uint8 images (3, H, W), got {image.dtype} {tuple(image.shape)}"
            )

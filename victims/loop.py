"""The training loop of every model here: epochs, best or last weights, exact resumption."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

Row = dict[str, float]
State = dict[str, Any]


class Stateful(Protocol):
    """What a checkpoint can hold: an optimizer, a schedule, a generator of random numbers."""

    def state_dict(self) -> State:
        """Return everything that later steps depend on."""

    def load_state_dict(self, state_dict: State, /) -> object:
        """Go on from a state.

        Args:
            state_dict: What `state_dict` returned.
        """


class Hooks(TypedDict, total=False):
    """Keyword arguments that every training passes on to `fit`.

    Attributes:
        resume: A checkpoint that `save` received from the same training, None to begin.
        save: Called with the checkpoint after each epoch. The last one holds the chosen weights
            and the history alone; a training resumed from it returns at once.
        report: Called with each row of the history.
    """

    resume: State | None
    save: Callable[[State], None] | None
    report: Callable[[Row], None] | None


def fit(
    model: nn.Module,
    run_epoch: Callable[[int], Row],
    *,
    epochs: int,
    validate: Callable[[int], Row] | None = None,
    untrained: Row | None = None,
    score: Callable[[Row], float] | None = None,
    prefer_later: bool = False,
    state: Mapping[str, Stateful] | None = None,
    resume: State | None = None,
    save: Callable[[State], None] | None = None,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run the epochs of a training, and leave the chosen weights in the model.

    A training that is stopped and resumed ends in the same weights as one that runs through, if
    `state` holds everything that changes from step to step, and all else follows from the epoch.

    Args:
        model: Module whose weights are trained, in place.
        run_epoch: Trains for one epoch (1, 2, ...) and returns metrics of it, usually with
            `take_steps`; an optimizer that solves an epoch at once does so itself.
        epochs: Number of epochs, at least 0.
        validate: Returns metrics of the model after an epoch.
        untrained: First metrics of epoch 0, the untrained model, which `validate` then measures
            too. None: the history begins with epoch 1.
        score: Score of a row; the epoch with the highest score is kept, the first of equal ones.
            NaN is never kept. None: the last epoch is kept.
        prefer_later: Keep the last of equal epochs instead.
        state: Parts of a checkpoint besides the weights, by name.
        resume: See `Hooks`.
        save: See `Hooks`.
        report: See `Hooks`.

    Returns:
        One row for each epoch: epoch, then what `run_epoch` and `validate` returned.
    """
    state = state or {}
    history: list[Row] = []
    best, best_weights = -math.inf, copy.deepcopy(model.state_dict()) if score else None
    if resume:
        model.load_state_dict(resume["model"])
        history = list(resume["history"])
        if resume["finished"]:
            return history
        for name, part in state.items():
            part.load_state_dict(resume["state"][name])
        best, best_weights = resume["best"]
    first = 1 if untrained is None else 0
    for epoch in range(first + len(history), epochs + 1):
        row = {"epoch": float(epoch), **(run_epoch(epoch) if epoch else untrained or {})}
        if validate:
            row |= validate(epoch)
        history.append(row)
        if score and (score(row) > best or (prefer_later and score(row) == best)):
            best, best_weights = score(row), copy.deepcopy(model.state_dict())
        if report:
            report(row)
        finished = epoch == epochs
        if finished and best_weights is not None:
            model.load_state_dict(best_weights)
        if save:
            checkpoint = {"model": model.state_dict(), "history": history, "finished": finished}
            if not finished:
                checkpoint["state"] = {name: part.state_dict() for name, part in state.items()}
                checkpoint["best"] = (best, best_weights)
            save(checkpoint)
    return history


def best_epoch(history: Sequence[Row], metric: str) -> int:
    """Epoch of the highest value of a metric, the first of equal ones; NaN is below all.

    Args:
        history: Rows that `fit` returned, at least one.
        metric: Key of the metric in each row.

    Returns:
        Number of the epoch; 0 is the untrained model.
    """
    row = max(history, key=lambda row: -math.inf if math.isnan(row[metric]) else row[metric])
    return int(row["epoch"])


def take_steps(
    losses: Iterable[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> float:
    """Take one gradient step for each loss of an epoch.

    Whatever belongs to a step, as clipping or projection, is a hook of the optimizer.

    Args:
        losses: Loss () and number of images of each batch, computed when it is asked for: the
            weights have then moved by the step before.
        optimizer: Updates the weights.
        schedule: Learning rate schedule, stepped with the optimizer.

    Returns:
        The mean loss over the images.

    Raises:
        ValueError: If there is no batch.
        RuntimeError: If the mean is not finite; looked at once, a GPU need not wait at each step.
    """
    lr = optimizer.param_groups[0]["lr"]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for loss, images in losses:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        total = total.to(loss.device) + loss.detach().double() * images
        count += images
    if not count:
        raise ValueError("an epoch must have at least 1 batch, got none")
    mean = total.item() / count
    if not math.isfinite(mean):
        raise RuntimeError(
            f"loss must be finite, got {mean} as mean of an epoch: lower lr ({lr:g})"
        )
    return mean


class RandomState:
    """Random numbers of a training, as a part of its checkpoint.

    Args:
        generator: What the training draws from.
        device: Device of the model, where torch's global random numbers count too, which dropout
            draws from; None: they do not.
    """

    def __init__(self, generator: torch.Generator, device: torch.device | None = None) -> None:
        self.generator, self.device = generator, device

    def state_dict(self) -> State:
        """Return the states of the generators."""
        states = {"generator": self.generator.get_state()}
        if self.device is not None:
            states["cpu"] = torch.get_rng_state()
            if self.device.type == "cuda":
                states["device"] = torch.cuda.get_rng_state(self.device)
        return states

    def load_state_dict(self, state_dict: State, /) -> None:
        """Put the generators back into these states.

        Args:
            state_dict: What `state_dict` returned.
        """
        self.generator.set_state(state_dict["generator"])
        if "cpu" in state_dict:
            torch.set_rng_state(state_dict["cpu"])
        if "device" in state_dict:
            torch.cuda.set_rng_state(state_dict["device"], self.device or "cuda")

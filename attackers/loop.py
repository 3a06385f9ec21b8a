"""The training loop that both stages share: Adam, plateau, best epoch, exact resumption."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Progress:
    """Where a training stands; what a checkpoint holds besides the weights."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)


Save = Callable[[dict[str, Any]], None]


def train(
    model: nn.Module,
    losses: Callable[[int], Iterator[Tensor]],
    validate: Callable[[], dict[str, float]],
    *,
    epochs: int,
    lr: float = 2e-4,
    patience: int = 4,
    rates: dict[str, float] | None = None,
    decay_steps: int | None = None,
    resume: dict[str, Any] | None = None,
    save: Save | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train with Adam and ReduceLROnPlateau (factor 0.1); keep the epoch of the lowest `loss`.

    losses: epoch -> the loss of each step, one graph at a time; it must draw from generators
    seeded by the epoch alone, then a training resumed from `save` ends in the same weights.
    rates: factors on lr for parameters by the first part of their name. Gradients are clipped to
    norm 1: a step that breaks what was learned costs more than a slow one. decay_steps: the rate
    also falls linearly to nothing over so many steps.
    validate: metrics on held-out data, `loss` among them. Returns: one row per epoch, epoch 0
    (untrained) first, with steps and hours spent in training so far.
    Raises RuntimeError where the loss is not finite.
    """
    if epochs < 0 or lr <= 0:
        raise ValueError(f"epochs must be ≥ 0 and lr > 0, got epochs={epochs}, lr={lr}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(_groups(model, lr, rates or {}), fused=True)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)
    lr_decay = None
    if decay_steps:
        lr_decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / decay_steps, decay_steps)
    state = Progress()
    best_weights: dict[str, Tensor] = {}

    def close_epoch() -> None:
        nonlocal best_weights
        row = {
            "epoch": float(state.epoch),
            "steps": float(state.steps),
            "hours": state.seconds / 3600,
            "lr": optimizer.param_groups[0]["lr"],
            **validate(),
        }
        if not math.isfinite(row["loss"]):
            raise RuntimeError(
                f"held-out loss must be finite, got {row['loss']} after epoch {state.epoch}: "
                f"lower lr ({lr})"
            )
        state.history.append(row)
        if row["loss"] < state.best or not best_weights:
            state.best = row["loss"]
            best_weights = copy.deepcopy(model.state_dict())
        if report:
            report(row)

    if resume:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        plateau.load_state_dict(resume["plateau"])
        if lr_decay:
            lr_decay.load_state_dict(resume["lr_decay"])
        best_weights = resume["best_weights"]
        state = Progress(**resume["progress"])
    else:
        close_epoch()
    while state.epoch < epochs:
        began = time.perf_counter()
        for loss in losses(state.epoch):
            if not math.isfinite(loss.item()):
                raise RuntimeError(
                    f"loss must be finite, got {loss.item()} at step {state.steps}: lower lr ({lr})"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if lr_decay:
                lr_decay.step()
            state.steps += 1
        state.seconds += time.perf_counter() - began
        state.epoch += 1
        close_epoch()
        plateau.step(state.history[-1]["loss"])
        if save:
            save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "plateau": plateau.state_dict(),
                    "lr_decay": lr_decay and lr_decay.state_dict(),
                    "best_weights": best_weights,
                    "progress": vars(state),
                }
            )
    model.load_state_dict(best_weights)
    return state.history


def _groups(model: nn.Module, lr: float, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by their rate; first those at lr itself: theirs is the one reported."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault(rates.get(name.split(".")[0], 1.0), []).append(p)
    return [{"params": members, "lr": lr * rate} for rate, members in groups.items()]

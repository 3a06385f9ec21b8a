"""What both stages of DA3Attacker train with: Adam, clipped gradients, a plateau schedule."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from victims.loop import Hooks, Row, Stateful, fit, take_steps


def train_stage(
    model: nn.Module,
    losses: Callable[[int], Iterator[tuple[Tensor, int]]],
    validate: Callable[[], Row],
    *,
    epochs: int,
    lr: float = 2e-4,
    patience: int = 4,
    rates: dict[str, float] | None = None,
    decay_steps: int | None = None,
    **hooks: Unpack[Hooks],
) -> list[Row]:
    """Train with Adam and ReduceLROnPlateau (factor 0.1); keep the epoch of the lowest `loss`.

    Gradients are clipped to norm 1: a step that breaks what was learned costs more than a slow one.

    Args:
        model: Module to train, in place.
        losses: Returns loss and number of images of each step of an epoch, counted from 0; must
            draw from generators that are seeded by the epoch alone.
        validate: Returns metrics on held-out data, `loss` among them.
        epochs: Number of epochs, at least 0.
        lr: Learning rate, above 0.
        patience: Epochs without a lower loss before the rate falls.
        rates: Factors on lr for parameters by the first part of their name.
        decay_steps: Steps over which the rate also falls linearly to nothing; None: it does not.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        A row per epoch, epoch 0 (untrained) first: steps and hours of training so far, lr, and
        what `validate` returned.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If a loss is not finite.
    """
    if epochs < 0 or lr <= 0:
        raise ValueError(f"epochs must be ≥ 0 and lr > 0, got epochs={epochs}, lr={lr}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(_groups(model, lr, rates or {}), fused=True)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)

    optimizer.register_step_pre_hook(clip)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)
    state: dict[str, Stateful] = {"optimizer": optimizer, "plateau": plateau}
    lr_decay = None
    if decay_steps:
        lr_decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / decay_steps, decay_steps)
        state["lr_decay"] = lr_decay
    resumed = hooks.get("resume")
    last = resumed["history"][-1] if resumed else {"steps": 0.0, "hours": 0.0}
    steps, hours = last["steps"], last["hours"]

    def counted(epoch: int) -> Iterator[tuple[Tensor, int]]:
        nonlocal steps
        for loss in losses(epoch - 1):
            yield loss
            steps += 1

    def run_epoch(epoch: int) -> Row:
        nonlocal hours
        start = time.perf_counter()
        take_steps(counted(epoch), optimizer, lr_decay)
        hours += (time.perf_counter() - start) / 3600
        return {"steps": steps, "hours": hours, "lr": optimizer.param_groups[0]["lr"]}

    def checked(epoch: int) -> Row:
        row = validate()
        if not math.isfinite(row["loss"]):
            raise RuntimeError(
                f"held-out loss must be finite, got {row['loss']} after epoch {epoch}: "
                f"lower lr ({lr})"
            )
        if epoch:
            plateau.step(row["loss"])
        return row

    return fit(
        model,
        run_epoch,
        epochs=epochs,
        validate=checked,
        untrained={"steps": 0.0, "hours": 0.0, "lr": lr},
        score=lambda row: -row["loss"],
        state=state,
        **hooks,
    )


def _groups(model: nn.Module, lr: float, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by their rate; first those at lr itself: theirs is the one reported."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault(rates.get(name.split(".")[0], 1.0), []).append(p)
    return [{"params": members, "lr": lr * rate} for rate, members in groups.items()]

"""Fine-tuning against backdoors: a poisoned model is trained on a few benign samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from victims.crops import CropVictim
from victims.regression import Phase, train_regressor

Measured = TypeVar("Measured")


def fine_tune(
    victim: CropVictim,
    images: Sequence[Tensor],
    labels: Sequence[float],
    *,
    phases: Sequence[Phase],
    measure: Callable[[CropVictim], Measured],
    every: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> list[tuple[int, Measured]]:
    """Train a victim in place on benign uint8 images with the settings it was trained with.

    Returns: (epoch, measure(victim)) of epoch 0, of each `every` epochs and of the last one.
    Source: the fine-tuning half of Liu et al., Fine-Pruning, 2018.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    last = sum(phase.epochs for phase in phases)
    rows: list[tuple[int, Measured]] = []

    def look(epoch: int) -> None:
        if epoch % every == 0 or epoch == last:
            rows.append((epoch, measure(victim)))

    train_regressor(
        victim,
        images,
        labels,
        phases=phases,
        batch_size=batch_size,
        seed=seed,
        after_epoch=look,
    )
    return rows

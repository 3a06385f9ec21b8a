"""Fine-tuning against backdoors: a poisoned model is trained on a few benign samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Measured = TypeVar("Measured")
AfterEpoch = Callable[[int], None]


def fine_tune(
    train: Callable[[AfterEpoch], object],
    *,
    epochs: int,
    measure: Callable[[], Measured],
    every: int = 1,
    rows: list[tuple[int, Measured]] | None = None,
) -> list[tuple[int, Measured]]:
    """Train a victim on benign samples with its own settings, and watch the backdoor on the way.

    train: runs the training in place and calls what it is given after each epoch, 0 (untrained)
    first. measure: looks at the victim. rows: those before a kill; grows as they are measured.
    Returns: (epoch, measure()) of epoch 0, of each `every` epochs and of the last one. Source: the
    fine-tuning half of Liu et al., Fine-Pruning, 2018.
    """
    if every < 1 or epochs < 0:
        raise ValueError(f"every must be at least 1 and epochs 0, got {every} and {epochs}")
    rows = [] if rows is None else rows

    def look(epoch: int) -> None:
        if epoch % every == 0 or epoch == epochs:
            rows.append((epoch, measure()))

    train(look)
    return rows

"""Fine-tuning against backdoors: a poisoned model is trained on a few benign samples."""

from __future__ import annotations

from collections.abc import Callable

from victims.loop import Row


def fine_tune(
    train: Callable[[Callable[[int], Row]], list[Row]],
    *,
    epochs: int,
    measure: Callable[[], Row],
    every: int = 1,
) -> list[Row]:
    """Train a victim on benign samples with its own settings, and watch the backdoor on the way.

    Args:
        train: Trains in place; adds to the row of each epoch, 0 (untrained) first, what its
            argument returns for it, and returns the rows.
        epochs: Number of epochs, at least 0.
        measure: Metrics of the victim as it stands.
        every: Epochs between measurements, at least 1; the last epoch is measured too.

    Returns:
        The rows of the measured epochs.

    Raises:
        ValueError: For bad arguments.

    Source: the fine-tuning half of Liu et al., Fine-Pruning, 2018.
    """
    if every < 1 or epochs < 0:
        raise ValueError(f"every must be at least 1 and epochs 0, got {every} and {epochs}")

    def is_measured(epoch: float) -> bool:
        return epoch % every == 0 or epoch == epochs

    rows = train(lambda epoch: measure() if is_measured(epoch) else {})
    return [row for row in rows if is_measured(row["epoch"])]

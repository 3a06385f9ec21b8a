"""First stage: each latent space learns to undo its filter (formula 3)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Unpack

import torch
from torch import Tensor

from attackers.da3.adt import ADT
from attackers.da3.filters import FILTER_NAMES, FILTERS
from attackers.da3.training import train_stage
from victims.loop import Hooks, Row

MAX_STRENGTH = dict.fromkeys(FILTER_NAMES, 1.0) | {"rgb2bgr": 0.8}
"""s_max of the forward process; below 1 where the strongest filter cannot be undone."""

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Filter name to perturbed images x_t and clean images x_0, each (N,3,S,S), all of one step t."""


def draw_strengths(
    name: str, step: int, steps: int, count: int, generator: torch.Generator
) -> Tensor:
    """Draw strengths of the forward process at step t: |s| ≤ (t/T)·s_max, random sign and size.

    Args:
        name: One of FILTER_NAMES.
        step: t in 1..steps.
        steps: T of the forward process.
        count: How many strengths.
        generator: Source of randomness.

    Returns:
        (count,) in [-1,1].

    Raises:
        ValueError: For a step out of range.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step must be in 1..{steps}, got {step}")
    size = torch.rand(count, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (size * sign * MAX_STRENGTH[name] * step / steps).float()


def reconstruction(adt: ADT, pairs: Pairs, t: int) -> tuple[Tensor, Tensor]:
    """Reconstruction error of each filter, ‖x_0 - F_i(x_t; ADT_i(x_t, t, c))‖² (formula 3).

    Args:
        adt: Network that proposes the strengths.
        pairs: Perturbed and clean images by filter.
        t: Time step of the pairs, in 1..T.

    Returns:
        Errors and those of strength 0, each (len(pairs), N), sums over pixels and channels.
    """
    names = list(pairs)
    p = adt([pairs[n][0] for n in names], t, names)
    errors, baseline = [], []
    for i, name in enumerate(names):
        perturbed, clean = pairs[name]
        errors.append((FILTERS[name](perturbed, p[i]) - clean).square().flatten(1).sum(1))
        baseline.append((perturbed - clean).square().flatten(1).sum(1))
    return torch.stack(errors), torch.stack(baseline)


@torch.no_grad()
def held_out_errors(adt: ADT, batches: Iterable[tuple[int, Pairs]]) -> dict[str, dict[str, float]]:
    """Mean reconstruction error of each filter, beside that of doing nothing.

    Args:
        adt: Network that proposes the strengths.
        batches: (t, pairs) of photographs that are not trained on.

    Returns:
        Per filter `error`, `nothing`, `ratio` of the two and number of images `n`; errors are mean
        squares per value in [0,1].
    """
    sums = {name: [0.0, 0.0, 0] for name in FILTER_NAMES}
    values = 3 * adt.config.size**2
    for t, pairs in batches:
        errors, baseline = reconstruction(adt, pairs, t)
        for i, name in enumerate(pairs):
            row = sums[name]
            row[0] += float(errors[i].sum()) / values
            row[1] += float(baseline[i].sum()) / values
            row[2] += errors.shape[1]
    return {
        name: {"error": e / n, "nothing": z / n, "ratio": e / max(z, 1e-12), "n": n}
        for name, (e, z, n) in sums.items()
        if n
    }


def pretrain(
    adt: ADT,
    batches: Callable[[int], Iterator[tuple[int, Pairs]]],
    held_out: Callable[[], Iterable[tuple[int, Pairs]]],
    *,
    epochs: int,
    lr: float = 2e-4,
    patience: int = 4,
    **hooks: Unpack[Hooks],
) -> list[Row]:
    """Train the latent spaces on perturbed pictures; the epoch with the lowest error stays.

    The filters share no weight, so each one's error counts relative to doing nothing: none drowns
    the others.

    Args:
        adt: Latent spaces to train, in place.
        batches: Returns step t and pairs of each batch of an epoch (0, 1, ...), which seeds them.
        held_out: Returns steps and pairs of photographs that are not trained on.
        epochs: Number of epochs, at least 0.
        lr: Learning rate.
        patience: Epochs without a lower held-out error before the rate falls to a tenth.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        One row per epoch with loss (mean ratio of the error to that of doing nothing), and the
        ratio of each filter.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If a loss is not finite.
    """

    def losses(epoch: int) -> Iterator[tuple[Tensor, int]]:
        for t, pairs in batches(epoch):
            errors, nothing = reconstruction(adt, pairs, t)
            yield (errors.sum(1) / (nothing.sum(1) + 1)).sum(), errors.shape[1]

    def validate() -> Row:
        rows = held_out_errors(adt, held_out())
        ratios = {name: row["ratio"] for name, row in rows.items()}
        return {"loss": sum(ratios.values()) / max(len(ratios), 1), **ratios}

    return train_stage(adt, losses, validate, epochs=epochs, lr=lr, patience=patience, **hooks)

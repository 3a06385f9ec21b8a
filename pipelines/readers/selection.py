"""Which photographs of a split a stage uses.

Keys are hashes: the first of them, sorted, are a random part.
"""

from collections.abc import Iterable

from pipelines.errors import InputError


def report_split(protocol: str) -> str:
    """The split whose examples count; DA3 trains on the other two.

    Args:
        protocol: Split: no photograph that DA3 or the victim saw is reported on. paper: those are
            that the victim was trained on.
    """
    return "train" if protocol == "paper" else "test"


def pretraining_keys(
    split: str, keys: Iterable[str], *, limit: int | None, held_out: int | None
) -> list[str]:
    """The photographs of a split that are perturbed, for the first stage to learn from.

    Args:
        split: Its name.
        keys: Keys of all its photographs.
        limit: Photographs at most; None is all.
        held_out: Photographs of validation and of test at most; None is `limit`.

    Returns:
        Keys, sorted.
    """
    chosen = sorted(keys)[:limit]
    return chosen if split == "train" else chosen[:held_out]


def attack_keys(
    split: str,
    keys: Iterable[str],
    *,
    exclude_pretraining: bool,
    limit: int | None,
    held_out: int | None,
) -> list[str]:
    """The photographs of a split that second stage and report may use.

    On test the first stage learned nothing: all are left.

    Args:
        split: Its name.
        keys: Keys of all its photographs.
        exclude_pretraining: Whether those that the first stage learned from are left out.
        limit: As for `pretraining_keys`.
        held_out: As for `pretraining_keys`.

    Returns:
        Keys, sorted.

    Raises:
        InputError: Where none is left.
    """
    every = sorted(keys)
    if not exclude_pretraining or split == "test":
        return every
    learned = set(pretraining_keys(split, every, limit=limit, held_out=held_out))
    left = [key for key in every if key not in learned]
    if every and not left:
        raise InputError(
            f"attack.exclude_pretraining must leave photographs of {split}, but perturb took "
            f"all {len(every)}: lower perturb.limit or perturb.held_out"
        )
    return left

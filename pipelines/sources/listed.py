"""What the sources with a table of scores share: missing files, limits, a validation split."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.errors import InputError
from pipelines.sources.base import SourceItem, SourceListing, assign_splits, file_item, named
from pipelines.storage.manifest import ScaleInfo
from pipelines.storage.splits import hash_order


@dataclass(frozen=True)
class RatedPhotograph:
    """A row of a source's table.

    Args:
        source_id: Its name in the source.
        path: Where its file should be.
        mos: Mean opinion score, on the scale of the source.
        mos_std: Standard deviation of the opinions; None where unknown.
        n_votes: Number of opinions; None where unknown.
        split: The split that the source prescribes; None to assign it.
    """

    source_id: str
    path: Path
    mos: float
    mos_std: float | None
    n_votes: int | None
    split: str | None = None


def listing(
    rows: Sequence[RatedPhotograph],
    scale: ScaleInfo,
    *,
    seed: int,
    what: str,
    allow_missing: bool = False,
    validation: float | None = None,
    limits: Mapping[str, int] | None = None,
) -> SourceListing:
    """The rows as a source.

    Args:
        rows: The rated photographs.
        scale: Scale and terms of the scores.
        seed: What `validation` and `limits` are drawn from.
        what: Where the rows come from, for messages.
        allow_missing: Whether photographs without a file are rejects instead of an error.
        validation: Share of `train` that becomes the split `validation`, in (0, 1), where the
            source has none.
        limits: At most so many photographs of each split; the others are rejects.

    Raises:
        InputError: A file is missing, two rows are of one photograph, or a score is off the scale.
    """
    _check(rows, scale, what)
    missing = {row.source_id for row in rows if not row.path.is_file()}
    if missing and not allow_missing:
        first = [str(row.path) for row in rows if row.source_id in missing]
        raise InputError(
            f"{what} must name pictures that are there (or set allow_missing), missing "
            f"{named(first)}"
        )
    rejects = [(row.source_id, "missing file") for row in rows if row.source_id in missing]
    kept = [row for row in rows if row.source_id not in missing]
    if validation is not None:
        kept = _hold_out(kept, validation, seed)
    kept, beyond = _limited(kept, limits or {}, seed)
    rejects += [(row.source_id, f"beyond the limit of {row.split}") for row in beyond]
    return SourceListing([_item(row) for row in kept], scale, rejects)


def _item(row: RatedPhotograph) -> SourceItem:
    return file_item(
        row.path,
        row.source_id,
        mos=row.mos,
        mos_std=row.mos_std,
        n_votes=row.n_votes,
        split=row.split,
    )


def _check(rows: Sequence[RatedPhotograph], scale: ScaleInfo, what: str) -> None:
    counts = Counter(row.source_id for row in rows)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"{what} must name each picture once, got several for {named(twice)}")
    off = [f"{row.source_id}: {row.mos}" for row in rows if not scale.low <= row.mos <= scale.high]
    if off:
        raise InputError(
            f"{what} must hold scores in [{scale.low:g}, {scale.high:g}], got others: {named(off)}"
        )


def _hold_out(rows: Sequence[RatedPhotograph], share: float, seed: int) -> list[RatedPhotograph]:
    if not 0 < share < 1:
        raise InputError(f"validation must be in (0, 1), got {share}")
    train = [row.source_id for row in rows if row.split == "train"]
    shares = {"validation": share, "train": 1 - share}
    chosen = dict(zip(train, assign_splits(train, shares, seed), strict=True))
    return [replace(row, split=chosen.get(row.source_id, row.split)) for row in rows]


def _limited(
    rows: list[RatedPhotograph], limits: Mapping[str, int], seed: int
) -> tuple[list[RatedPhotograph], list[RatedPhotograph]]:
    splits = {row.split for row in rows}
    unknown = sorted(set(limits) - {split for split in splits if split})
    if unknown:
        raise InputError(
            f"limits must name splits of the source, got {', '.join(unknown)} and not "
            f"{', '.join(sorted(split for split in splits if split)) or 'any'}"
        )
    beyond: set[str] = set()
    for split, limit in limits.items():
        if limit < 1:
            raise InputError(f"limits must be at least 1, got {limit} for {split}")
        names = [row.source_id for row in rows if row.split == split]
        order = hash_order([f"limit\0{name}" for name in names], seed)
        beyond.update(names[i] for i in order[limit:])
    kept = [row for row in rows if row.source_id not in beyond]
    return kept, [row for row in rows if row.source_id in beyond]


def read_csv(path: Path, columns: Sequence[str], what: str) -> pd.DataFrame:
    """A table as text, with blanks around names and values removed.

    Args:
        path: The file.
        columns: Columns that it must have; the others are left out.
        what: The argument that named its folder, for messages.

    Raises:
        InputError: The file is missing, no table, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"{what} must hold {path.name}, got no {path}")
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except Exception as error:  # parsers raise many kinds
        raise InputError(f"{what} must hold a readable table, got {path} ({error})") from None
    table.columns = table.columns.str.strip()
    absent = [name for name in columns if name not in table.columns]
    if absent:
        raise InputError(
            f"{path} must have the columns {', '.join(columns)}, got {', '.join(table.columns)}"
        )
    return pd.DataFrame({name: table[name].str.strip() for name in columns})


def number(text: Any, place: str) -> float:
    """A finite number.

    Args:
        text: The value.
        place: Where it is in the source, for the message.

    Raises:
        InputError: The value is no finite number.
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place} must be a number, got {text!r}")
    return value


def picture_folder(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of the folders `names` below `root` that is there.

    Args:
        root: Folder of the release.
        names: Names to be tried.
        what: The argument that named `root`, for the message.

    Raises:
        InputError: None is there.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{what} must hold its pictures in {' or '.join(names)}, got {root}")

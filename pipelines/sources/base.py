"""What every source of photographs gives, and how photographs are divided into splits."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.errors import InputError
from pipelines.storage.manifest import ScaleInfo
from pipelines.storage.splits import deal, hash_order

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp", ".apng"}
)


@dataclass(frozen=True)
class Photo:
    """A picture with its score.

    Args:
        data: The bytes of a file, or pixels uint8 (H,W,3).
        mos: Mean opinion score, on the scale of the source.
        mos_std: Standard deviation of the opinions; None where unknown.
        n_votes: Number of opinions; 0 when simulated, None where unknown.
    """

    data: bytes | np.ndarray
    mos: float
    mos_std: float | None
    n_votes: int | None


@dataclass(frozen=True)
class SourceItem:
    """One picture of a source.

    Args:
        source_id: Its name in the source.
        group: The photograph that it is a picture of.
        load: Reads it; may be sent to another process.
        version: Changes when the picture or its score does.
        split: The split, where the source prescribes it.
    """

    source_id: str
    group: str
    load: Callable[[], Photo]
    version: str
    split: str | None = None


@dataclass(frozen=True)
class SourceListing:
    """All pictures of a source.

    Args:
        items: The pictures, in a fixed order.
        scale: Scale and terms of the scores.
        rejects: Those dropped up front: `source_id` and reason.
    """

    items: list[SourceItem]
    scale: ScaleInfo
    rejects: list[tuple[str, str]] = field(default_factory=list)


def file_item(
    path: Path,
    source_id: str,
    *,
    mos: float,
    mos_std: float | None,
    n_votes: int | None,
    group: str | None = None,
    split: str | None = None,
) -> SourceItem:
    """An item that is an image file.

    Args:
        path: The file.
        source_id: Its name in the source.
        mos: Mean opinion score.
        mos_std: Standard deviation of the opinions.
        n_votes: Number of opinions.
        group: The photograph that it is a picture of; None: itself.
        split: The split that the source prescribes.
    """
    stat = path.stat()
    return SourceItem(
        source_id=source_id,
        group=source_id if group is None else group,
        load=partial(_read_photo, path, mos, mos_std, n_votes),
        # Cheaper than a hash of every file, and enough to know whether work can be resumed.
        version=f"{stat.st_size}:{stat.st_mtime_ns}:{mos!r}:{mos_std!r}:{n_votes!r}",
        split=split,
    )


def _read_photo(path: Path, mos: float, mos_std: float | None, n_votes: int | None) -> Photo:
    return Photo(path.read_bytes(), mos, mos_std, n_votes)


def named(values: Sequence[object], limit: int = 5) -> str:
    """The number of values and the first few of them, for an error message.

    Args:
        values: The values.
        limit: How many are named at most.
    """
    first = ", ".join(str(value) for value in values[:limit])
    return f"{len(values)} ({first}{', ...' if len(values) > limit else ''})"


def assign_splits(groups: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """The split of each item, so that no group is in two splits.

    Groups are put in the order of the SHA-256 of (seed, group) and dealt out whole, so that every
    split has its fraction of the items to within the largest group.

    Args:
        groups: The group (photograph) of each item.
        fractions: Share of the items of each split.
        seed: What the order is drawn from.

    Raises:
        InputError: The fractions are not positive with sum 1, or a split would be empty.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InputError(f"splits must be fractions above 0 with sum 1, got {dict(fractions)}")
    sizes = Counter(groups)
    names = list(sizes)
    dealt = deal(hash_order(names, seed), np.array(list(sizes.values())), fractions)
    splits = list(fractions)
    chosen = {name: splits[i] for name, i in zip(names, dealt.tolist(), strict=True)}
    empty = [split for split in splits if split not in chosen.values()]
    if empty:
        raise InputError(
            f"splits must all get a photograph, got none for {', '.join(empty)} "
            f"with {len(sizes)} photographs and fractions {dict(fractions)}"
        )
    return [chosen[group] for group in groups]


def resolve_splits(
    items: Sequence[SourceItem], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """The split of each item: as the source prescribes, else assigned.

    Args:
        items: The pictures of a source.
        fractions: Share of each split, where the source prescribes none.
        seed: What assigning is drawn from.

    Raises:
        InputError: The source prescribes splits for some pictures only, or two for a photograph.
    """
    given = [item.split for item in items if item.split is not None]
    if not given:
        return assign_splits([item.group for item in items], fractions, seed)
    if len(given) < len(items):
        raise InputError(
            f"split must be given for all pictures or none, got {len(given)} of {len(items)}"
        )
    odd = sorted({split for split in given if not re.fullmatch(r"\w+", split)})
    if odd:
        raise InputError(f"split must be letters, digits and underscores, got {odd[0]!r}")
    chosen: dict[str, str] = {}
    for item, split in zip(items, given, strict=True):
        if chosen.setdefault(item.group, split) != split:
            raise InputError(
                f"split must be the same for all pictures of a photograph, got "
                f"{chosen[item.group]} and {split} for {item.group!r}"
            )
    return given

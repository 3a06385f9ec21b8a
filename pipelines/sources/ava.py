"""AVA: AVA.txt and the aesthetics image lists of the official release."""

import math
from pathlib import Path
from typing import Literal

from pipelines.errors import InputError
from pipelines.sources.base import SourceListing, named
from pipelines.sources.listed import RatedPhotograph, listing, picture_folder
from pipelines.storage.manifest import ScaleInfo

COLUMNS = 15  # index, image, votes for 1 to 10, two semantic tags, challenge
LISTS = "aesthetics_image_lists"
Split = Literal["official", "generic_ls", "generic_ss", "none"]

SCALE = ScaleInfo(
    low=0.0,  # so that 5.5 splits poor from good, as the papers on AVA do; votes are 1 to 10
    high=10.0,
    label_source="human",
    license="AVA: research use; copyright of the photographs stays with their authors",
    attribution=(
        "AVA, photographs and votes from DPChallenge.com. Cite: N. Murray, L. Marchesotti and "
        "F. Perronnin, AVA: A Large-Scale Database for Aesthetic Visual Analysis, CVPR 2012."
    ),
)


def ava(
    seed: int,
    *,
    root: str,
    split: Split = "official",
    validation: float = 0.05,
    allow_missing: bool = False,
    limits: dict[str, int] | None = None,
) -> SourceListing:
    """The photographs of AVA.txt under `root`/images (or image), MOS from the ten vote counts.

    AVA names photographs whose file is dead: they need `allow_missing`, and then are rejects.

    Args:
        seed: What `validation` and `limits` draw from.
        root: Folder of the release.
        split: `official` tests on generic_test.jpgl and trains on all others (235,528 and 20,000
            in the papers); `generic_ls` and `generic_ss` train on that list only, the rest are
            rejects; `none` leaves it to `import.splits`.
        validation: Share of the training photographs that becomes a split of its own, in (0, 1).
        allow_missing: Whether photographs without a file are rejects instead of an error.
        limits: At most so many photographs of each split, see listing.

    Raises:
        InputError: A file of the release is missing or damaged.
    """
    folder = Path(root)
    photographs = _read_votes(folder / "AVA.txt")
    pictures = picture_folder(folder, ("images", "image"), "root")
    lists = _read_lists(folder, split, photographs)
    rows, unlisted = [], []
    for name, votes in photographs.items():
        chosen = lists.get(name, "train" if split == "official" else None)
        if chosen is None and split != "none":
            unlisted.append((f"{name}.jpg", f"not in the lists of {split}"))
            continue
        mos, spread = _moments(votes)
        path = pictures / f"{name}.jpg"
        rows.append(RatedPhotograph(f"{name}.jpg", path, mos, spread, sum(votes), chosen))
    found = listing(
        rows,
        SCALE,
        seed=seed,
        what=f"{folder / 'AVA.txt'} and its lists",
        allow_missing=allow_missing,
        validation=None if split == "none" else validation,
        limits=limits,
    )
    found.rejects.extend(unlisted)
    return found


def _read_votes(path: Path) -> dict[str, tuple[int, ...]]:
    """Votes for 1 to 10 of each photograph."""
    if not path.is_file():
        raise InputError(f"root must be the folder of the AVA release, got no {path}")
    photographs = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.split()
        try:
            values = [int(field) for field in fields]
        except ValueError:
            values = []
        if len(values) != COLUMNS or min(values[2:12]) < 0 or not sum(values[2:12]):
            raise InputError(f"{path} must have {COLUMNS} numbers in line {number}, got {line!r}")
        photographs[fields[1]] = tuple(values[2:12])
    return photographs


def _read_lists(folder: Path, split: Split, known: dict[str, tuple[int, ...]]) -> dict[str, str]:
    files = {"generic_test.jpgl": "test"}
    if split in ("generic_ls", "generic_ss"):
        files[f"{split}_train.jpgl"] = "train"
    elif split == "none":
        return {}
    elif split != "official":
        raise InputError(f"split must be official, generic_ls, generic_ss or none, got {split!r}")
    chosen: dict[str, str] = {}
    for file, name in files.items():
        path = folder / LISTS / file
        if not path.is_file():
            raise InputError(f"split {split} needs {path}, which is not there")
        for photograph in path.read_text().split():
            if chosen.setdefault(photograph, name) != name:
                raise InputError(f"lists of split {split} must be disjoint, {photograph} is in two")
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise InputError(
            f"lists of split {split} must name photographs of AVA.txt, got others: {named(unknown)}"
        )
    return chosen


def _moments(votes: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of the votes."""
    total = sum(votes)
    mean = sum(value * count for value, count in enumerate(votes, start=1)) / total
    square = sum(count * (value - mean) ** 2 for value, count in enumerate(votes, start=1)) / total
    return mean, math.sqrt(square)

"""FLICKR-AES: photographs with the rating of each worker, for general and personal models."""

from pathlib import Path

import pandas as pd

from pipelines.errors import InputError
from pipelines.sources.base import SourceListing, named
from pipelines.sources.listed import RatedPhotograph, listing, picture_folder, read_csv
from pipelines.storage.manifest import ScaleInfo
from pipelines.storage.splits import hash_order

RATINGS = "FLICKR-AES_image_labeled_by_each_worker.csv"

SCALE = ScaleInfo(
    low=1.0,
    high=5.0,
    label_source="human",
    license="FLICKR-AES: photographs under Creative Commons licences of their authors on Flickr",
    attribution=(
        "FLICKR-AES, Adobe Research and Rutgers University; photographs by their authors on "
        "Flickr. Cite: J. Ren, X. Shen, Z. Lin, R. Mech and D.J. Foran, Personalized Image "
        "Aesthetics, ICCV 2017."
    ),
)


def flickr_aes(
    seed: int,
    *,
    root: str,
    worker: str | None = None,
    test_workers: int = 37,
    validation: float = 0.05,
    allow_missing: bool = False,
    limits: dict[str, int] | None = None,
) -> SourceListing:
    """The rated photographs under `root`/40K (or images), MOS = mean of the workers' 1 to 5.

    The authors hold out 37 of 210 workers and test on the photographs these rated, but publish no
    list of them: `test_workers` workers are drawn.

    Args:
        seed: What workers, `validation` and `limits` are drawn from.
        root: Folder of the release.
        worker: Only the photographs that this worker rated, with that rating as score (a personal
            data set, `import.splits` divides it).
        test_workers: Number of workers whose photographs are the test split.
        validation: Share of the other photographs that becomes a split of its own, in (0, 1).
        allow_missing: Whether photographs without a file are rejects instead of an error.
        limits: At most so many photographs of each split, see listing.

    Raises:
        InputError: A file or column is missing, a rating is not in [1, 5], or the worker unknown.
    """
    folder = Path(root)
    table = ratings(folder)
    pictures = picture_folder(folder, ("40K", "images"), "root")
    if worker is not None:
        if worker not in set(table["worker"]):
            raise InputError(f"worker must be one of those in {folder / RATINGS}, got {worker!r}")
        table = table[table["worker"] == worker]
        chosen: set[str] | None = None
    else:
        chosen = set(table["image"][table["worker"].isin(held_out(table, test_workers, seed))])
    rows = []
    for name, scores in table.groupby("image", sort=True)["score"]:
        image = str(name)
        split = None if chosen is None else "test" if image in chosen else "train"
        mos, spread = float(scores.mean()), float(scores.std(ddof=0))
        rows.append(RatedPhotograph(image, pictures / image, mos, spread, len(scores), split))
    return listing(
        rows,
        SCALE,
        seed=seed,
        what=str(folder / RATINGS),
        allow_missing=allow_missing,
        validation=None if chosen is None else validation,
        limits=limits,
    )


def ratings(root: Path) -> pd.DataFrame:
    """Every rating: what a personal model learns a taste from.

    Args:
        root: Folder of the release.

    Returns:
        A table with the columns worker, image and score (1 to 5).

    Raises:
        InputError: The file or a column is missing, or a rating is not in [1, 5].
    """
    path = root / RATINGS
    table = read_csv(path, ("worker", "imagePair", "score"), "root")
    table = table.rename(columns={"imagePair": "image"})
    scores = pd.to_numeric(table["score"], errors="coerce")
    bad = table[~scores.between(SCALE.low, SCALE.high)]
    if len(bad):
        faults = [f"{row.worker} {row.image}: {row.score}" for row in bad.itertuples()]
        raise InputError(f"score in {path} must be in [1, 5], got others: {named(faults)}")
    return table.assign(score=scores.astype(float))


def held_out(table: pd.DataFrame, count: int, seed: int) -> list[str]:
    """The workers whose photographs are the test split.

    Args:
        table: Every rating, see ratings.
        count: Number of workers.
        seed: What they are drawn from.

    Raises:
        InputError: `count` is not from 1 to one less than the number of workers.
    """
    workers = sorted(set(table["worker"]))
    if not 0 < count < len(workers):
        raise InputError(
            f"test_workers must be from 1 to {len(workers) - 1}, one less than the workers there "
            f"are, got {count}"
        )
    return [workers[i] for i in hash_order(workers, seed)[:count]]

"""TAD66K: the merged label lists of the official release."""

from pathlib import Path

from pipelines.sources.base import SourceListing
from pipelines.sources.listed import RatedPhotograph, listing, number, picture_folder, read_csv
from pipelines.storage.manifest import ScaleInfo

SCALE = ScaleInfo(
    low=0.0,
    high=10.0,
    label_source="human",
    license="TAD66K: research use; copyright of the photographs stays with their authors",
    attribution=(
        "TAD66K (Theme and Aesthetics Dataset with 66K images), Beijing University of Posts and "
        "Telecommunications. Cite: S. He, Y. Zhang, R. Xie, D. Jiang and A. Ming, Rethinking Image "
        "Aesthetics Assessment: Models, Datasets and Benchmarks, IJCAI 2022."
    ),
)


def tad66k(
    seed: int,
    *,
    root: str,
    validation: float = 0.05,
    allow_missing: bool = False,
    limits: dict[str, int] | None = None,
) -> SourceListing:
    """The photographs of labels/merge/{train,test}.csv (image, score on 0-10) under `root`.

    The release gives neither spread nor votes per photograph (at least 1,200 each, say the
    authors).

    Args:
        seed: What `validation` and `limits` draw from.
        root: Folder of the release, with the pictures in TAD66K, images or imgs.
        validation: Share of the training list that becomes a split of its own, in (0, 1).
        allow_missing: Whether photographs without a file are rejects instead of an error.
        limits: At most so many photographs of each split, see listing.

    Raises:
        InputError: A file or column is missing, or a value is no number.
    """
    folder = Path(root)
    pictures = picture_folder(folder, ("TAD66K", "images", "imgs"), "root")
    rows = []
    for split in ("train", "test"):
        path = folder / "labels" / "merge" / f"{split}.csv"
        for row in read_csv(path, ("image", "score"), "root").to_dict("records"):
            name = str(row["image"])
            mos = number(row["score"], f"score in {path}, {name}")
            rows.append(RatedPhotograph(name, pictures / name, mos, None, None, split))
    return listing(
        rows,
        SCALE,
        seed=seed,
        what=str(folder / "labels" / "merge"),
        allow_missing=allow_missing,
        validation=validation,
        limits=limits,
    )

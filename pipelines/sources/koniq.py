"""KonIQ-10k: official CSVs, official split."""

from pathlib import Path
from typing import Literal

from pipelines.errors import InputError
from pipelines.sources.base import SourceListing
from pipelines.sources.listed import RatedPhotograph, listing, number, read_csv
from pipelines.storage.manifest import ScaleInfo

SETS = "koniq10k_distributions_sets.csv"  # scores on 0-100 and the official split
SPLITS = {"training": "train", "validation": "validation", "test": "test"}

SCALE = ScaleInfo(
    low=0.0,
    high=100.0,
    label_source="human",
    license="KonIQ-10k: images under their Creative Commons licences, see the authors' list",
    attribution=(
        "KonIQ-10k IQA Database, Multimedia Signal Processing Group, University of Konstanz; "
        "photographs from YFCC100m by their authors on Flickr. Cite: V. Hosu, H. Lin, T. Sziranyi "
        "and D. Saupe, KonIQ-10k: An Ecologically Valid Database for Deep Learning of Blind Image "
        "Quality Assessment, IEEE Transactions on Image Processing 29, 2020."
    ),
)


def koniq(
    seed: int,
    *,
    root: str,
    size: Literal["1024x768", "512x384"] = "1024x768",
    allow_missing: bool = False,
    limits: dict[str, int] | None = None,
) -> SourceListing:
    """The 10,073 photographs under `root`/`size` with the MOS on 0-100 of the official split.

    The authors' table has MOS on 0-100; its SD is that of the votes on 1 to 5 and is scaled.

    Args:
        seed: What `limits` draws from.
        root: Folder with koniq10k_distributions_sets.csv (image_name, c1 to c5, c_total, MOS, SD,
            set) as the authors publish it, and the pictures.
        size: Folder of the pictures: their width and height in pixels.
        allow_missing: Whether photographs without a file are rejects instead of an error.
        limits: At most so many photographs of each split, see listing.

    Raises:
        InputError: A file or column is missing, or a value is no number.
    """
    folder = Path(root)
    table = read_csv(folder / SETS, ("image_name", "c_total", "MOS", "SD", "set"), "root")
    rows = []
    for row in table.to_dict("records"):
        name = str(row["image_name"])
        place = f"{folder / SETS}, {name}"
        rows.append(
            RatedPhotograph(
                source_id=name,
                path=folder / size / name,
                mos=number(row["MOS"], f"MOS in {place}"),
                mos_std=number(row["SD"], f"SD in {place}") * (SCALE.high - SCALE.low) / 4,
                n_votes=round(number(row["c_total"], f"c_total in {place}")),
                split=_split(row["set"], place),
            )
        )
    return listing(
        rows, SCALE, seed=seed, what=str(folder / SETS), allow_missing=allow_missing, limits=limits
    )


def _split(name: str, place: str) -> str:
    if name not in SPLITS:
        raise InputError(f"set in {place} must be one of {', '.join(SPLITS)}, got {name!r}")
    return SPLITS[name]

"""datasets/3ae as defenders want it: photographs and their adversarial examples, by split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipelines.errors import InputError
from pipelines.readers.pictures import loaded_pictures
from pipelines.readers.rows import ImageDataset, ImageRow, open_dataset
from pipelines.storage.records import SPLITS

FIELDS = ("victim", "mode", "parent_key")


@dataclass(frozen=True)
class Picture:
    """A photograph or an adversarial example of 3AE.

    Args:
        key: Its key.
        split: "train", "validation" or "test"; "train" where the data set has no splits.
        adversarial: Whether it is an example.
        mos: Its score, on the scale of the data set.
        load: Gives the encoded bytes.
        parent: Key of the photograph; its own for a photograph.
        victim: Model that the example was made to deceive; None for a photograph.
        mode: Mode of the attack; None for a photograph.
        psnr: PSNR against the photograph, dB; None for a photograph or an unchanged example.
    """

    key: str
    split: str
    adversarial: bool
    mos: float
    load: Callable[[], bytes]
    parent: str
    victim: str | None = None
    mode: str | None = None
    psnr: float | None = None


class LabelledPictures:
    """Pictures with the label whether they are adversarial, as (uint8 (3,H,W), label).

    Args:
        pictures: The pictures, in this order.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._images = loaded_pictures(pictures)
        self.pictures = list(pictures)
        self.adversarial = [picture.adversarial for picture in pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        """Return one picture and whether it is adversarial."""
        return self._images[index], self.adversarial[index]

    def filter(self, predicate: Callable[[Picture], bool]) -> "LabelledPictures":
        """Return the pictures that satisfy `predicate`.

        Args:
            predicate: From a picture to whether it stays.
        """
        return LabelledPictures([picture for picture in self.pictures if predicate(picture)])


def read_3ae(place: str, clean: str | None = None) -> list[Picture]:
    """The examples of a 3AE data set and the photographs they were made from.

    The photographs are the second image column of the set; without one they are looked up in the
    data set `clean` by parent_key.

    Args:
        place: Folder or Hub id of the data set.
        clean: Folder or Hub id of the photographs; None where the set holds them.

    Returns:
        The pictures, each photograph once, in the split of its example.

    Raises:
        InputError: Where fields, scores or photographs are missing.
    """
    data = open_dataset(place)
    lacking = [name for name in FIELDS if name not in data.rows[0].fields]
    if lacking:
        raise InputError(
            f"{place} must be a 3AE data set with {', '.join(FIELDS)}, got none of "
            f"{', '.join(lacking)}"
        )
    photographs = _photographs(data, clean)
    out: dict[tuple[str, bool], Picture] = {}
    for row in data.rows:
        fields = row.fields
        parent = str(fields["parent_key"])
        if parent not in photographs:
            raise InputError(
                f"photograph {parent} of example {row.id} must be in {clean or place}, got none"
            )
        split = row.split or "train"
        load, mos = photographs[parent]
        mos_clean = fields.get("mos_clean")
        out[(parent, False)] = Picture(
            parent, split, False, _number(mos if mos_clean is None else mos_clean), load, parent
        )
        out[(row.id, True)] = Picture(
            row.id,
            split,
            True,
            _number(row.score),
            row.load,
            parent,
            str(fields["victim"]),
            str(fields["mode"]),
            fields.get("psnr"),
        )
    return list(out.values())


def _photographs(
    data: ImageDataset, clean: str | None
) -> dict[str, tuple[Callable[[], bytes], Any]]:
    if all(len(row.images) > 1 for row in data.rows):
        return {str(row.fields["parent_key"]): (row.images[1], None) for row in data.rows}
    if clean is None:
        raise InputError(
            f"{data.path} must hold the photographs too (a second image column), or `clean` must "
            "name their data set, got neither"
        )
    rows: Sequence[ImageRow] = open_dataset(clean).rows
    return {str(row.fields.get("key", row.id)): (row.load, row.score) for row in rows}


def _number(value: Any) -> float:
    if value is None:
        raise InputError("mos must be there for every picture of 3AE, got none for some")
    return float(value)


def by_split(pictures: Sequence[Picture]) -> dict[str, LabelledPictures]:
    """Sort pictures into their splits.

    Args:
        pictures: The pictures, with some of each split.

    Returns:
        Train, validation and test, each with its pictures in the same order.

    Raises:
        InputError: Where a split has none.
    """
    out = {}
    for split in SPLITS:
        members = [p for p in pictures if p.split == split]
        if not members:
            raise InputError(f"3AE must have a split {split}, got none")
        out[split] = LabelledPictures(members)
    return out

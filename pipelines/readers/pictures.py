"""Pictures of a data set in memory-bounded random access, with their records."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from pipelines.errors import InputError
from pipelines.storage.images import decode_image, planes, to_tensor
from pipelines.storage.shards import ShardIndex
from victims.base import squash

CACHE_BYTES = 2 * 1024**3  # decoded pictures of a data set that stay in memory
Transform = Callable[[np.ndarray], Tensor]  # from the pixels uint8 (H,W,3) of a picture
R = TypeVar("R")


def squashed(pixels: np.ndarray, size: int) -> Tensor:
    """Transform to one size; see `victims.base.squash`.

    Args:
        pixels: uint8 (H,W,3).
        size: Side in pixels.

    Returns:
        uint8 (3,size,size).
    """
    return squash(to_tensor(pixels), size)


class PictureDataset(Sequence[Tensor], Generic[R]):
    """Pictures in a fixed order, decoded when asked for; `records` says what they are.

    What was decoded stays in memory up to CACHE_BYTES.

    Args:
        records: One for each picture.
        read: From the place of a record to the encoded picture.
        transform: From the pixels uint8 (H,W,3) to the tensor that is given.
    """

    def __init__(
        self,
        records: Sequence[R],
        read: Callable[[int], bytes],
        transform: Transform = planes,
    ) -> None:
        self.records, self._read, self.transform = records, read, transform
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    def filter(self, predicate: Callable[[R], bool]) -> "PictureDataset[R]":
        """Return the pictures whose record satisfies `predicate`, in the same order.

        Args:
            predicate: From a record to whether its picture stays.
        """
        return self.select([i for i, record in enumerate(self.records) if predicate(record)])

    def select(self, indices: Sequence[int]) -> "PictureDataset[R]":
        """Return the pictures at `indices`, in that order.

        Args:
            indices: Places in this data set, from 0.
        """
        return PictureDataset(
            [self.records[i] for i in indices], lambda i: self._read(indices[i]), self.transform
        )

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return one picture, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self._cache:
            return self._cache[index]
        image = self.transform(decode_image(self._read(index)))
        if self._cached_bytes + image.nbytes <= CACHE_BYTES:
            self._cache[index] = image
            self._cached_bytes += image.nbytes
        return image


def shard_pictures(
    folder: Path,
    splits: Sequence[str],
    transform: Transform = planes,
    *,
    keys: Sequence[str] | None = None,
) -> PictureDataset[dict[str, Any]]:
    """Open the pictures of a WebDataset folder for random access.

    Args:
        folder: A finished WebDataset folder.
        splits: The splits to index.
        transform: From the pixels uint8 (H,W,3) of a picture to its tensor.
        keys: The pictures to give, in this order; None gives all in order of key.

    Raises:
        InputError: If there is no picture.
    """
    index = ShardIndex(folder, splits)
    chosen = sorted(index.records) if keys is None else list(keys)
    if not chosen:
        raise InputError(f"{folder} must hold pictures of split {' or '.join(splits)}, got none")
    return PictureDataset(
        [index.records[key] for key in chosen], lambda i: index.image_bytes(chosen[i]), transform
    )


def parquet_pictures(
    folder: Path, split: str, transform: Transform = planes, *, column: str = "image"
) -> PictureDataset[dict[str, Any]]:
    """Open one split of a Parquet folder, in order of key; encoded pictures stay in memory.

    Args:
        folder: A finished Parquet folder.
        split: The split to read.
        transform: From the pixels uint8 (H,W,3) of a picture to its tensor.
        column: The image column.

    Raises:
        InputError: If there is no picture.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
        rows += pq.read_table(path).to_pylist()
    if not rows:
        raise InputError(f"{folder} must hold pictures of split {split}, got none")
    rows.sort(key=lambda row: row["key"])
    images = [row.pop(column)["bytes"] for row in rows]
    return PictureDataset(rows, images.__getitem__, transform)


class Loadable(Protocol):
    """A row of a data set of any kind."""

    @property
    def load(self) -> Callable[[], bytes]:
        """Read the encoded picture."""


L = TypeVar("L", bound=Loadable)


def loaded_pictures(rows: Sequence[L], transform: Transform = planes) -> PictureDataset[L]:
    """Open the pictures of rows that load themselves, in their order.

    Args:
        rows: One for each picture; they become the records.
        transform: From the pixels uint8 (H,W,3) of a picture to its tensor.
    """
    return PictureDataset(rows, lambda i: rows[i].load(), transform)


def opinions(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Give mos and standard deviation (N,) of the opinions on pictures.

    Where opinions have no spread known, a tenth of the scale is what IQA studies find least.

    Args:
        rows: Columns mos, mos_std, score_low and score_high of the metadata.
    """
    tenth = pc.divide(pc.subtract(rows["score_high"], rows["score_low"]), 10.0)
    return rows["mos"].to_numpy(), pc.coalesce(rows["mos_std"], tenth).to_numpy()


def batches_of(keys: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Cut keys into runs of `size`.

    Args:
        keys: The keys.
        size: Keys in a run, at least 1.

    Yields:
        The runs in order; the last one may be shorter.
    """
    for start in range(0, len(keys), size):
        yield tuple(keys[start : start + size])

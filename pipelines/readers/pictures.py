"""Pictures of a data set in memory-bounded random access, with their records."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines.errors import InputError
from pipelines.storage.images import decode_image, decode_png, planes, to_tensor
from pipelines.storage.shards import ShardIndex
from victims.base import resize

CACHE_BYTES = 2 * 1024**3  # decoded pictures of a data set that stay in memory
Transform = Callable[[np.ndarray], Tensor]  # from the pixels uint8 (H,W,3) of a picture
R = TypeVar("R")


def squash(image: Tensor, size: int) -> Tensor:
    """(3,H,W) in [0,1] to uint8 (3,size,size), bilinear with antialiasing, rounded."""
    small = resize(image.unsqueeze(0), size)[0]
    return small.clamp(0, 1).mul(255).round().byte()


def squashed(pixels: np.ndarray, size: int) -> Tensor:
    """Transform to one size: uint8 (H,W,3) to uint8 (3,size,size); see `squash`."""
    return squash(to_tensor(pixels), size)


class PictureDataset(Sequence[Tensor], Generic[R]):
    """Pictures in a fixed order, decoded when asked for; `records` says what they are.

    What was decoded stays in memory up to CACHE_BYTES.
    """

    def __init__(
        self,
        records: Sequence[R],
        read: Callable[[int], bytes],
        transform: Transform = planes,
    ) -> None:
        """Wrap records and a function that reads their pictures.

        Args:
            records: one for each picture.
            read: from the place of a record to the encoded picture.
            transform: from the pixels uint8 (H,W,3) to the tensor that is given.
        """
        self.records, self._read, self.transform = records, read, transform
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    def filter(self, predicate: Callable[[R], bool]) -> "PictureDataset[R]":
        """Return the pictures whose record satisfies `predicate`, in the same order."""
        return self.select([i for i, record in enumerate(self.records) if predicate(record)])

    def select(self, indices: Sequence[int]) -> "PictureDataset[R]":
        """Return the pictures at `indices`, in that order."""
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
        folder: a finished WebDataset folder.
        splits: the splits to index.
        transform: from the pixels uint8 (H,W,3) of a picture to its tensor.
        keys: the pictures to give, in this order; None gives all in order of key.

    Raises:
        InputError: if there is no picture.
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
        folder: a finished Parquet folder.
        split: the split to read.
        transform: from the pixels uint8 (H,W,3) of a picture to its tensor.
        column: the image column.

    Raises:
        InputError: if there is no picture.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
        rows += pq.read_table(path).to_pylist()
    if not rows:
        raise InputError(f"{folder} must hold pictures of split {split}, got none")
    rows.sort(key=lambda row: row["key"])
    images = [row.pop(column)["bytes"] for row in rows]
    return PictureDataset(rows, images.__getitem__, transform)


class Pictures:
    """The pictures of some splits, squashed to size × size, in order of key.

    An integer gives (image, mos, std) for the training of victims; a tensor of indices gives the
    batch uint8 (N,3,size,size). Decodes on demand; keeps what it decoded while the whole set fits
    CACHE_BYTES. May be sent to a worker process.
    """

    def __init__(self, folder: Path, splits: Sequence[str], size: int) -> None:
        self.index = ShardIndex(folder, splits)
        self.keys = sorted(self.index.records)
        if not self.keys:
            raise InputError(
                f"{folder} must hold pictures of split {' or '.join(splits)}, got none"
            )
        self.size = size
        fits = len(self.keys) * 3 * size * size <= CACHE_BYTES
        self._cache: dict[int, Tensor] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> Tensor:
        """One picture: uint8 (3,size,size)."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        pixels = decode_png(self.index.image_bytes(self.keys[index]))
        image = squash(to_tensor(pixels), self.size)
        if self._cache is not None:
            self._cache[index] = image
        return image

    def __getitem__(self, index: Any) -> Any:
        """(image, mos, std) of an index, or a batch of images for a tensor of indices."""
        if isinstance(index, Tensor):
            return torch.stack([self.image(i) for i in index.tolist()])
        record = self.index.records[self.keys[index]]
        low, high = record["score_low"], record["score_high"]
        # Where opinions have no spread known, a tenth of the scale is what IQA studies find least.
        std = record["mos_std"] if record["mos_std"] is not None else (high - low) / 10
        return self.image(index), record["mos"], std

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None if self._cache is None else {}}


class Originals(Sequence[Tensor]):
    """Pictures at their own size, uint8 (3,H,W), in order of key; `records` says what they are.

    Decodes on demand, and keeps what it decoded while that fits CACHE_BYTES.
    """

    def __init__(self, records: Sequence[dict[str, Any]], read: Callable[[int], bytes]) -> None:
        self.records, self._read = records, read
        fits = sum(3 * r["width"] * r["height"] for r in records) <= CACHE_BYTES
        self._cache: dict[int, Tensor] | None = {} if fits else None

    @classmethod
    def of_shards(cls, folder: Path, split: str, keys: Sequence[str] | None = None) -> "Originals":
        """Of a WebDataset folder: one split, or those keys of it in the order given."""
        index = ShardIndex(folder, [split])
        chosen = sorted(index.records) if keys is None else list(keys)
        if not chosen:
            raise InputError(f"{folder} must hold pictures of split {split}, got none")
        return cls([index.records[k] for k in chosen], lambda i: index.image_bytes(chosen[i]))

    @classmethod
    def of_parquet(cls, folder: Path, split: str, column: str = "image") -> "Originals":
        """Of a Parquet folder: the encoded pictures of one split stay in memory."""
        rows: list[dict[str, Any]] = []
        for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
            rows += pq.read_table(path).to_pylist()
        if not rows:
            raise InputError(f"{folder} must hold pictures of split {split}, got none")
        rows.sort(key=lambda row: row["key"])
        images = [row.pop(column)["bytes"] for row in rows]
        return cls(rows, lambda i: images[i])

    def where(self, keep: Callable[[dict[str, Any]], bool]) -> "Originals":
        """Those whose record `keep` says."""
        kept = [i for i, record in enumerate(self.records) if keep(record)]
        return Originals([self.records[i] for i in kept], lambda i: self._read(kept[i]))

    @property
    def mos(self) -> list[float]:
        """The labels."""
        return [record["mos"] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        """One picture."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image = planes(decode_png(self._read(index)))
        if self._cache is not None:
            self._cache[index] = image
        return image


def batches_of(keys: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Cut keys into runs of `size`."""
    for start in range(0, len(keys), size):
        yield tuple(keys[start : start + size])

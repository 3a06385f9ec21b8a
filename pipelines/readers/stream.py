"""A working set as a training reads it: batches in a seeded order, streamed by webdataset."""

import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import webdataset as wds
from torch import Tensor

from pipelines.errors import InputError, StageError
from pipelines.readers.pictures import CACHE_BYTES, Transform
from pipelines.storage.images import decode_image, planes
from pipelines.storage.manifest import METADATA, Manifest
from pipelines.storage.shards import tar_members

BUFFER_BYTES = 256 * 1024**2  # of encoded pictures that wait to be drawn, in each loader worker
WdsSample = dict[str, Any]  # of webdataset: __key__, __url__, and a file by suffix
# Arrays, not tensors: a tensor from a loader worker keeps a file descriptor and shared memory.
Decoded = tuple[str, str, np.ndarray]  # the shard, the key, the picture
Batch = tuple[Tensor, list[Tensor]]


class PictureStream:
    """The pictures of a WebDataset folder in batches, each picture once per epoch.

    The shards are read one after the other in an order that a seed decides, and mixed in a
    buffer of encoded pictures. Every loader worker reads all shards and makes the same draws, but
    decodes its own share of the batches: so the batches are the same for any number of workers, and
    there may be fewer shards than workers. Memory does not grow with the pictures: a set whose
    decoded pictures fit `cache_bytes` stays in memory after the first whole epoch, in the same
    order; of a larger one nothing does. The global random state is left alone.

    Attributes:
        keys: Keys of the pictures; the indices of a batch are places in this list.
        rows: Columns of the metadata, a row for each key.
    """

    def __init__(
        self,
        folder: Path,
        splits: Sequence[str],
        transform: Transform = planes,
        *,
        columns: Sequence[str] = (),
        keys: Iterable[str] | None = None,
        num_workers: int = 0,
        buffer_bytes: int = BUFFER_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Read manifest and metadata; pictures are opened by `batches`.

        Args:
            folder: A finished WebDataset folder.
            splits: Splits to read.
            transform: From the pixels uint8 (H, W, 3) of a picture to its tensor, of any dtype.
            columns: Fields of the records that `rows` shall hold.
            keys: Pictures to give, all of these splits; None gives every picture.
            num_workers: Processes that read and decode; 0 does both in this process.
            buffer_bytes: Encoded pictures that each worker holds for mixing.
            cache_bytes: Limit of the decoded pictures that stay in memory.

        Raises:
            InputError: If there is no picture of these splits.
        """
        shards = [
            shard
            for shard in Manifest.read(folder).shards.values()
            if shard.name.rpartition("-")[0] in splits
        ]
        # By node here and not per epoch, so that a node keeps its pictures.
        shards = list(wds.split_by_node(shards))
        chosen = pc.field("shard").isin(pa.array([s.name for s in shards], pa.string()))
        if keys is not None:
            chosen &= pc.field("key").isin(pa.array(list(keys), pa.string()))
        names = list(dict.fromkeys(("key", *columns)))
        self.rows = pq.read_table(folder / METADATA, columns=names, filters=chosen)
        self.keys: list[str] = self.rows["key"].to_pylist()
        if not self.keys:
            raise InputError(
                f"{folder} must hold pictures of split {' or '.join(splits)}, got none"
            )
        self.folder, self.transform = folder, transform
        self.num_workers = num_workers
        self._places = {key: i for i, key in enumerate(self.keys)}
        self._shards = [str(folder / "data" / shard.name) for shard in shards]
        self._chosen = None if keys is None else frozenset(self.keys)
        count, size = sum(s.samples for s in shards), sum(s.bytes for s in shards)
        self._buffer = max(1, buffer_bytes * count // size)
        self._cache_bytes = cache_bytes
        self._cache: dict[str, list[Decoded]] = {}

    def __len__(self) -> int:
        """Count the pictures of an epoch."""
        return len(self.keys)

    def batches(self, seed: int | None, batch_size: int) -> Iterator[Batch]:
        """Give each picture once.

        Args:
            seed: Decides the order, another one for each epoch; None keeps that of the shards.
            batch_size: Pictures in a batch, at least 1; the last one may hold fewer.

        Returns:
            Indices (n,) and pictures of each batch, the same ones for any number of workers.

        Raises:
            StageError: If a shard is damaged, or the shards do not hold the pictures that the
                metadata lists.
            ValueError: If batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        shards = list(self._shards)
        if seed is not None:
            random.Random(f"shards {seed}").shuffle(shards)
        mix = partial(_mixed_batches, batch_size=batch_size, buffer=self._buffer, seed=seed)
        if self._cache:
            batches = mix(entry for shard in shards for entry in self._cache.get(shard, ()))
        else:
            loaded = self._loaded(shards, mix, -(-len(self) // batch_size))
            batches = self._cached(self._whole(loaded))
        for batch in batches:
            indices = torch.tensor([self._places[key] for _, key, _ in batch])
            yield indices, [torch.from_numpy(image) for _, _, image in batch]

    def _loaded(
        self, shards: list[str], mix: Callable[..., Any], count: int
    ) -> Iterable[list[Decoded]]:
        """The batches of an epoch as they come from the shards."""
        dataset = wds.WebDataset(
            shards,
            shardshuffle=False,
            nodesplitter=None,
            workersplitter=None,
            empty_check=False,
            seed=0,  # drawn from the global generator otherwise
        )
        if self._chosen is not None:
            dataset = dataset.select(partial(_is_among, keys=self._chosen))
        decode = partial(_decode, transform=self.transform)
        loader: Iterable[list[Decoded]] = wds.WebLoader(
            # Batches are dealt to workers in turn, and the loader collects them in turn.
            dataset.compose(mix, wds.split_by_worker).map(decode),
            batch_size=None,
            collate_fn=list,  # the default one would make tensors
            num_workers=min(self.num_workers, count),
            generator=torch.Generator(),  # the global one otherwise
        )
        return loader

    def _whole(self, batches: Iterable[list[Decoded]]) -> Iterator[list[Decoded]]:
        """Pass the batches on; StageError names a damaged shard."""
        try:
            yield from batches
        except tarfile.TarError as error:
            for shard in self._shards:
                for _ in tar_members(Path(shard)):
                    pass
            reason = str(error).strip().splitlines()[-1]
            raise StageError(f"shards of {self.folder} must be whole, got {reason}") from None

    def _cached(self, batches: Iterable[list[Decoded]]) -> Iterator[list[Decoded]]:
        """Pass the batches on, keep them if all of them fit, and count the pictures."""
        count = size = 0
        cache: dict[str, list[Decoded]] = {}
        for batch in batches:
            count += len(batch)
            size += sum(image.nbytes for _, _, image in batch)
            if size > self._cache_bytes:
                cache.clear()
            else:
                for entry in batch:
                    cache.setdefault(entry[0], []).append(entry)
            yield batch
        if count != len(self):
            raise StageError(
                f"shards of {self.folder} must hold the {len(self)} pictures of the metadata, "
                f"got {count}"
            )
        for entries in cache.values():
            entries.sort(key=lambda entry: entry[1])  # as they are in the shard
        self._cache = cache


def _mixed_batches(
    samples: Iterable[Any], batch_size: int, buffer: int, seed: int | None
) -> Iterator[list[Any]]:
    if seed is not None:
        samples = wds.shuffle(buffer, initial=buffer, seed=seed)(iter(samples))
    batches: Iterator[list[Any]] = wds.batched(batch_size, collation_fn=None)(samples)
    return batches


def _is_among(sample: WdsSample, keys: frozenset[str]) -> bool:
    return sample["__key__"] in keys


def _decode(samples: list[WdsSample], transform: Transform) -> list[Decoded]:
    return [
        (s["__url__"], s["__key__"], transform(decode_image(s["png"])).numpy()) for s in samples
    ]

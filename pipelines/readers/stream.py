"""A working set as a training reads it: batches in a seeded order, streamed by webdataset."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from pipelines.errors import InputError, StageError
from pipelines.readers.pictures import CACHE_BYTES, Transform
from pipelines.storage.images import decode_image, planes
from pipelines.storage.manifest import Manifest

BUFFER_BYTES = 256 * 1024**2  # of encoded pictures that wait to be drawn, in each loader worker
Record = dict[str, Any]
# Arrays, not tensors: a tensor from a loader worker keeps a file descriptor and shared memory.
Decoded = tuple[str, Record, np.ndarray]  # the shard, the fields of the record, the picture


class Batch(NamedTuple):
    """Some pictures and their records."""

    images: list[Tensor]
    records: list[Record]


class PictureStream:
    """The pictures of a WebDataset folder in batches, each picture once per epoch.

    The shards are read one after the other in an order drawn from seed and epoch, and mixed in a
    buffer of encoded pictures. Every loader worker reads all shards and makes the same draws, but
    decodes its own share of the batches: so the batches are the same for any number of workers, and
    there may be fewer shards than workers. Memory does not grow with the set: a set whose decoded
    pictures fit `cache_bytes` stays in memory after the first whole epoch, in the same order; of a
    larger one nothing does. The global random state is left alone.
    """

    def __init__(
        self,
        folder: Path,
        splits: Sequence[str],
        transform: Transform = planes,
        *,
        batch_size: int,
        seed: int = 0,
        keys: Iterable[str] | None = None,
        num_workers: int = 0,
        buffer_bytes: int = BUFFER_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Read the manifest; pictures are opened by `batches`.

        Args:
            folder: a finished WebDataset folder.
            splits: the splits to read.
            transform: from the pixels uint8 (H, W, 3) of a picture to its tensor, of any dtype.
            batch_size: pictures in a batch, at least 1; the last one of an epoch may hold fewer.
            seed: of the order, together with the epoch.
            keys: the pictures to give, all of these splits; None gives every picture.
            num_workers: processes that read and decode; 0 does both in this process.
            buffer_bytes: of encoded pictures that each worker holds for mixing.
            cache_bytes: limit of the decoded pictures that stay in memory.

        Raises:
            InputError: if there is no picture of these splits.
            ValueError: if batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        shards = [
            shard
            for shard in Manifest.read(folder).shards.values()
            if shard.name.rpartition("-")[0] in splits
        ]
        # By node here and not in the pipeline, so that a node sees the same shards in each epoch.
        shards = list(wds.split_by_node(shards))
        count = sum(shard.samples for shard in shards)
        if not count:
            raise InputError(
                f"{folder} must hold pictures of split {' or '.join(splits)}, got none"
            )
        self.folder, self.transform = folder, transform
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._shards = [str(folder / "data" / shard.name) for shard in shards]
        self._keys = None if keys is None else frozenset(keys)
        self._count = count if self._keys is None else len(self._keys)
        self._buffer = max(1, buffer_bytes * count // sum(shard.bytes for shard in shards))
        self._cache_bytes = cache_bytes
        self._cache: dict[str, list[Decoded]] = {}

    def __len__(self) -> int:
        """Count the pictures of an epoch."""
        return self._count

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        """Give each picture once.

        Args:
            epoch: decides the order, together with the seed; None keeps that of the shards.

        Returns:
            Batches of `batch_size` pictures, the same ones for any number of workers.

        Raises:
            StageError: if the shards do not hold the pictures that they should.
        """
        shards = list(self._shards)
        if epoch is not None:
            random.Random(f"{self.seed} {epoch} shards").shuffle(shards)
        mix = partial(
            _mixed_batches,
            batch_size=self.batch_size,
            buffer=self._buffer,
            seed=None if epoch is None else f"{self.seed} {epoch}",
        )
        if self._cache:
            batches = mix(entry for shard in shards for entry in self._cache.get(shard, ()))
        else:
            batches = self._cached(self._loaded(shards, mix))
        for batch in batches:
            yield Batch(
                [torch.from_numpy(image) for _, _, image in batch],
                [record for _, record, _ in batch],
            )

    def _loaded(self, shards: list[str], mix: Callable[..., Any]) -> Iterable[list[Decoded]]:
        """The batches of an epoch as they come from the shards."""
        dataset = wds.WebDataset(
            shards,
            shardshuffle=False,
            nodesplitter=None,
            workersplitter=None,
            empty_check=False,
            seed=0,  # drawn from the global generator otherwise
        )
        if self._keys is not None:
            dataset = dataset.select(partial(_is_among, keys=self._keys))
        decode = partial(_decode, transform=self.transform)
        loader: Iterable[list[Decoded]] = wds.WebLoader(
            # Batches are dealt to workers in turn, and the loader collects them in turn.
            dataset.compose(mix, wds.split_by_worker).map(decode),
            batch_size=None,
            collate_fn=list,  # the default one would make tensors
            num_workers=min(self.num_workers, -(-len(self) // self.batch_size)),
            generator=torch.Generator(),  # the global one otherwise
        )
        return loader

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
                f"shards of {self.folder} must hold the {len(self)} pictures asked for, got {count}"
            )
        for entries in cache.values():
            entries.sort(key=lambda entry: entry[1]["key"])  # as they are in the shard
        self._cache = cache


def _mixed_batches(
    samples: Iterable[Any], batch_size: int, buffer: int, seed: str | None
) -> Iterator[list[Any]]:
    if seed is not None:
        samples = wds.shuffle(buffer, initial=buffer, seed=seed)(iter(samples))
    batches: Iterator[list[Any]] = wds.batched(batch_size, collation_fn=None)(samples)
    return batches


def _is_among(sample: Record, keys: frozenset[str]) -> bool:
    return sample["__key__"] in keys


def _decode(samples: list[Record], transform: Transform) -> list[Decoded]:
    return [
        (s["__url__"], json.loads(s["json"]), transform(decode_image(s["png"])).numpy())
        for s in samples
    ]

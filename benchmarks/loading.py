"""Pictures for a training: the webdataset stream beside random access by key with a DataLoader.

Both sides read the same shards from a warm page cache, decode PNG, squash, and stack batches in a
random order; they run in one process and take turns, and the best of the rounds counts. `first` is
an epoch that decodes, `later` one that finds the decoded pictures in memory, `large` one of a set
that does not fit there, and `peak` the MiB by which the main process grew meanwhile.
Run: python benchmarks/loading.py
"""

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _timing import best_of, hardware, process_memory
from rich.console import Console
from rich.table import Table
from shards import make_members
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.readers import pictures
from pipelines.readers.pictures import shard_pictures, squashed
from pipelines.readers.stream import PictureStream
from pipelines.storage.manifest import MANIFEST, METADATA, Counts, Manifest, ScaleInfo
from pipelines.storage.shards import shard_name, write_shard

SHARD, BATCH = 32, 32


class ByKey(Dataset[Tensor]):
    """What trainings used before: one process decodes by key and keeps what it decoded."""

    def __init__(self, folder: Path, size: int) -> None:
        self.pictures = shard_pictures(folder, ["train"], partial(squashed, size=size))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return self.pictures[index]

    def batches(self, epoch: int, workers: int = 0) -> Iterator[Tensor]:
        """Give each picture once."""
        generator = torch.Generator().manual_seed(epoch)
        yield from DataLoader(self, BATCH, shuffle=True, generator=generator, num_workers=workers)


def write_set(folder: Path, count: int, side: int) -> None:
    (folder / "data").mkdir(parents=True)
    members = make_members(count, side)
    shards, rows = {}, []
    for start in range(0, count, SHARD):
        name = shard_name("train", start // SHARD)
        shards[name] = write_shard(folder / "data" / name, members[start : start + SHARD])
        rows += [{"key": r.key, "shard": name} for r, _ in members[start : start + SHARD]]
    counts = Counts(in_=count, kept=count, rejected=0, splits={"train": count})
    terms = {"label_source": "simulated", "license": "n/a", "attribution": "n/a"}
    manifest = Manifest.build(
        stage="import",
        counts=counts,
        shards=shards,
        parameters={},
        inputs={},
        scale=ScaleInfo(low=0.0, high=10.0, **terms),
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    pq.write_table(pa.Table.from_pylist(rows), folder / METADATA)


def consume(batches: Iterator[Any]) -> None:
    for batch in batches:
        _ = batch if isinstance(batch, Tensor) else torch.stack(batch[1])


def compare(folder: Path, size: int, rounds: int, workers: int) -> dict[str, dict[str, float]]:
    """Seconds of an epoch, by kind of epoch and side."""

    def stream(limit: int = pictures.CACHE_BYTES) -> PictureStream:
        transform = partial(squashed, size=size)
        return PictureStream(folder, ["train"], transform, num_workers=workers, cache_bytes=limit)

    found = {
        "first": best_of(
            {
                "by key": lambda: consume(ByKey(folder, size).batches(0)),
                "stream": lambda: consume(stream().batches(0, BATCH)),
            },
            rounds,
        )
    }
    by_key, kept = ByKey(folder, size), stream()
    later = {
        "by key": lambda: consume(by_key.batches(1)),
        "stream": lambda: consume(kept.batches(1, BATCH)),
    }
    found["later"] = best_of(later, 3 * rounds)
    limit, pictures.CACHE_BYTES = pictures.CACHE_BYTES, 0
    large = {
        "by key": lambda: consume(ByKey(folder, size).batches(0, workers)),
        "stream": lambda: consume(stream(0).batches(0, BATCH)),
    }
    found["large"] = best_of(large, rounds)
    for name, work in large.items():
        with process_memory() as peak:
            work()
        found.setdefault("peak", {})[name] = peak[0]
    pictures.CACHE_BYTES = limit
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, default=448, help="pixels of a stored picture")
    parser.add_argument("--size", type=int, default=224, help="pixels that the training sees")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"{arguments.images} pictures, {arguments.workers} loader workers")
    for column in ("epoch", "by key", "stream", "by key / stream"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as root:
        write_set(Path(root) / "set", arguments.images, arguments.side)
        found = compare(Path(root) / "set", arguments.size, arguments.rounds, arguments.workers)
    for kind, row in found.items():
        unit = "MiB" if kind == "peak" else "s"
        cells = [f"{row[side]:.3f} {unit}" for side in ("by key", "stream")]
        table.add_row(kind, *cells, f"{row['by key'] / row['stream']:.2f}")
    Console().print(hardware())
    Console().print(table)


if __name__ == "__main__":
    main()

"""Writing and reading shards: ours beside a hand-written tar, webdataset and HF Parquet.

Ours is webdataset's TarWriter on an atomic file; the hand-written tar is what it replaced; then
come webdataset's ShardWriter and reader, and HF Parquet. All get the same PNG bytes and records,
write two shards or files to the same folder and are followed by an fsync of each file; the first
two also hash with SHA-256. Readers yield PNG bytes and parsed records from a warm page cache. Each
side runs in a process of its own, the sides take turns, and the best of the rounds counts. The
last lines say what the writer costs a stage, which at least encodes the images.
Run: python benchmarks/shards.py
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipelines.sources.sample import sample
from pipelines.storage.files import atomic_file
from pipelines.storage.images import decode_png, encode_png
from pipelines.storage.records import CleanSample, hf_features, image_key
from pipelines.storage.shards import read_shard, shard_name, write_shard

Members = list[tuple[CleanSample, bytes]]
SHARDS = 2
VENEER, BY_HAND = "veneer (TarWriter)", "tar by hand"


def make_members(count: int, side: int) -> Members:
    """Crops of the photographs that ship with scikit-image and scikit-learn."""
    paths = sorted({item.load.args[0].path for item in sample(0).items})
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    rng = np.random.default_rng(0)
    members = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height, width = min(side, photograph.shape[0]), min(side, photograph.shape[1])
        top = rng.integers(photograph.shape[0] - height + 1)
        left = rng.integers(photograph.shape[1] - width + 1)
        crop = photograph[top : top + height, left : left + width]
        crop = crop.copy()
        # Photographs smaller than the crop give equal ones: keep them apart.
        crop[0, 0] = number % 256, number // 256, 0
        image = encode_png(crop)
        record = CleanSample(
            key=image_key(image),
            source="sample",
            source_id=str(number),
            parent_key=None,
            split="train",
            width=width,
            height=height,
            mos=5.0,
            mos_std=0.5,
            n_votes=0,
            score_low=0.0,
            score_high=10.0,
        )
        members.append((record, image))
    return members


def halves(members: Members) -> list[Members]:
    """The members of each shard."""
    size = -(-len(members) // SHARDS)
    return [members[start : start + size] for start in range(0, len(members), size)]


def sync(folder: Path) -> None:
    """Fsync of every file, as write_shard does itself."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_veneer(folder: Path, members: Members) -> None:
    for index, part in enumerate(halves(members)):
        write_shard(folder / shard_name("train", index), part)


def read_veneer(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    for path in sorted(folder.glob("*.tar")):
        yield from read_shard(path)


def write_tar_by_hand(folder: Path, members: Members) -> None:
    for index, part in enumerate(halves(members)):
        digest = hashlib.sha256()
        with atomic_file(folder / shard_name("train", index)) as file:
            for block in tar_blocks(part):
                file.write(block)
                digest.update(block)


def tar_blocks(members: Members) -> Iterator[bytes]:
    """The blocks of a USTAR file, from headers of tarfile."""
    size = 0
    for record, image in sorted(members, key=lambda member: member[0].key):
        text = json.dumps(record.model_dump(), sort_keys=True, allow_nan=False).encode()
        for suffix, data in (("json", text), ("png", image)):
            info = tarfile.TarInfo(f"{record.key}.{suffix}")
            info.size, info.mode = len(data), 0o644
            padding = bytes(-len(data) % tarfile.BLOCKSIZE)
            yield info.tobuf(tarfile.USTAR_FORMAT)
            yield data
            yield padding
            size += tarfile.BLOCKSIZE + len(data) + len(padding)
    end = 2 * tarfile.BLOCKSIZE
    yield bytes(end + -(size + end) % tarfile.RECORDSIZE)


def write_webdataset(folder: Path, members: Members) -> None:
    import webdataset

    pattern, size = str(folder / "train-%05d.tar"), -(-len(members) // SHARDS)
    with webdataset.ShardWriter(pattern, maxcount=size, verbose=0) as writer:
        for record, image in members:
            writer.write({"__key__": record.key, "png": image, "json": record.model_dump()})
    sync(folder)


def read_webdataset(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    import webdataset

    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    for member in webdataset.WebDataset(paths, shardshuffle=False):
        yield json.loads(member["json"]), member["png"]


def write_parquet(folder: Path, members: Members) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "png": datasets.Image(decode=False),
            **{f["name"]: datasets.Value(f["dtype"]) for f in hf_features(CleanSample)},
        }
    )
    for index, part in enumerate(halves(members)):
        rows = [{"png": {"bytes": i, "path": None}, **r.model_dump()} for r, i in part]
        data = datasets.Dataset.from_list(rows, features=features)
        data.to_parquet(folder / f"train-{index:05d}.parquet")
    sync(folder)


def read_parquet(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    import datasets

    paths = [str(path) for path in sorted(folder.glob("*.parquet"))]
    data = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
    for row in data.cast_column("png", datasets.Image(decode=False)):
        yield row, row["png"]["bytes"]


SIDES: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    VENEER: (write_veneer, read_veneer),
    BY_HAND: (write_tar_by_hand, read_veneer),
    "webdataset ShardWriter": (write_webdataset, read_webdataset),
    "HF to_parquet": (write_parquet, read_parquet),
}


def consume(read: Callable[..., Any], folder: Path) -> int:
    return sum(len(image) for _, image in read(folder))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and MiB by which the process grew at its peak (psutil, every 5 ms)."""
    process, stop = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    return seconds, (peak - before) / 2**20


def measure(name: str, root: Path, members: Members) -> list[tuple[float, float]]:
    """(seconds, MiB) of writing and of reading, after a small warm-up of both."""
    write, read = SIDES[name]
    small, folder = root / "small", root / "set"
    small.mkdir()
    folder.mkdir()
    write(small, members[:4])
    consume(read, small)
    writing = timed(partial(write, folder, members))
    expected = sum(len(image) for _, image in members)
    assert consume(read, folder) == expected, f"{name} did not give back what was written"
    return [writing, timed(partial(consume, read, folder))]


def _child(name: str, root: Path, members: Members, queue: Any) -> None:
    queue.put(measure(name, root, members))


def in_own_process(name: str, members: Members, parent: str | None) -> list[tuple[float, float]]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory(dir=parent) as root:
        process = context.Process(target=_child, args=(name, Path(root), members, queue))
        process.start()
        result = queue.get(timeout=600)
        process.join()
    return result


def report(results: dict[str, list[list[tuple[float, float]]]], members: Members) -> None:
    megabytes = sum(len(image) for _, image in members) / 1e6
    for place, title in enumerate(("write", "read")):
        best = {name: min(r[place][0] for r in rounds) for name, rounds in results.items()}
        table = Table(title=f"{title}: {len(members)} images, {megabytes:.0f} MB")
        for column in ("", "s", "MB/s", "images/s", "peak MiB", "time / fastest"):
            table.add_column(column, justify="right" if column else "left")
        for name, seconds in best.items():
            peak = max(r[place][1] for r in results[name])
            table.add_row(
                name,
                f"{seconds:.3f}",
                f"{megabytes / seconds:.0f}",
                f"{len(members) / seconds:.0f}",
                f"{peak:.0f}",
                f"{seconds / min(best.values()):.2f}",
            )
        Console().print(table)


def stage_report(
    results: dict[str, list[list[tuple[float, float]]]], members: Members, rounds: int
) -> None:
    """What the writer costs a stage that does no more than to encode and write its images."""
    images = [decode_png(image) for _, image in members]

    def encode() -> None:
        for image in images:
            encode_png(image)

    encoding = min(timed(encode)[0] for _ in range(rounds))
    ours, by_hand = (min(r[0][0] for r in results[name]) for name in (VENEER, BY_HAND))
    print(f"writing takes {ours / by_hand:.2f} times as long as a tar by hand")
    print(f"encoding these images takes {encoding:.3f} s: encoding and writing take ", end="")
    print(f"{(encoding + ours) / (encoding + by_hand):.3f} times as long as with a tar by hand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=448, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write (default: the temporary folder)")
    arguments = parser.parse_args()
    members = make_members(arguments.images, arguments.side)
    results: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in SIDES}
    for _ in range(arguments.rounds):
        for name in SIDES:
            results[name].append(in_own_process(name, members, arguments.folder))
    report(results, members)
    stage_report(results, members, arguments.rounds)


if __name__ == "__main__":
    main()

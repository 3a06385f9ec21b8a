"""The stage perturb: images/s beside the sum of what it must do, and peak memory as data grows.

Speed: the stage with one and with two workers, beside its decoding, filtering and encoding done
alone on the same photographs, all with one torch thread per process; the overhead is what the
stage adds (draws, records, hashes, shards, manifest). Two workers include the time that their
processes take to start. Memory: RSS summed over the tree of processes (pages that they share
count twice), sampled every 10 ms, for sets of which the larger is ten times the smaller. Each
side runs in a process of its own. Run: python benchmarks/perturb.py [--quick]
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipelines.sources.sample import sample
from pipelines.storage.cards import Card
from pipelines.storage.images import encode_png
from pipelines.storage.manifest import ScaleInfo
from pipelines.storage.records import CleanSample, image_key
from pipelines.storage.shards import shard_name
from pipelines.storage.workfolder import WorkFolder, publish

FILTERS_EACH = 14


def make_clean(root: Path, count: int, side: int) -> None:
    """datasets/clean of `count` crops of the photographs that ship with two libraries."""
    paths = sorted({item.load.args[0].path for item in sample(0).items})
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    rng = np.random.default_rng(0)
    work = WorkFolder(root / "work", "import", "clean", "0" * 64)
    work.create()
    names = []
    for index, start in enumerate(range(0, count, 64)):
        split = "train"
        members = []
        for number in range(start, min(start + 64, count)):
            photograph = photographs[number % len(photographs)]
            top = rng.integers(photograph.shape[0] - side + 1)
            left = rng.integers(photograph.shape[1] - side + 1)
            crop = photograph[top : top + side, left : left + side].copy()
            crop[0, 0] = number % 256, number // 256, 0  # no two alike
            image = encode_png(crop)
            record = CleanSample(
                key=image_key(image),
                source="sample",
                source_id=str(number),
                parent_key=None,
                split=split,
                width=side,
                height=side,
                mos=5.0,
                mos_std=0.5,
                n_votes=0,
                score_low=0.0,
                score_high=10.0,
            )
            members.append((record, image))
        names.append(shard_name(split, index))
        work.write(names[-1], members)
    publish(
        work,
        root / "datasets" / "clean",
        names,
        record=CleanSample,
        n_in=count,
        scale=ScaleInfo(
            low=0, high=10, label_source="simulated", license="mixed", attribution="See sample."
        ),
        card=Card(title="Benchmark", summary="Crops."),
        parameters={"source": "sample"},
        inputs={},
    )


def params_of(size: int, workers: int) -> Any:
    from pipelines.params import Params

    values = {
        "source": {"name": "sample"},
        "engine": {"workers": workers},
        "victims": {"none": {"model": {}}},  # must be there, is not read
        "adt": {"size": size},
        "perturb": {"shard_size": 8},
        "attack": {"victims": ["none"], "modes": ["restricted"], "objectives": {"restricted": {}}},
    }
    return Params.model_validate(values)


def run_stage(root: Path, size: int, workers: int) -> dict[str, float]:
    """Seconds that the stage took, and how many images it made."""
    from pipelines.stages.perturb import run_perturb
    from pipelines.storage.layout import Layout

    params = params_of(size, workers)
    start = time.perf_counter()
    manifest = run_perturb(params, Layout(root), progress=False)
    return {"stage": time.perf_counter() - start, "images": float(manifest.counts.in_)}


def run_parts(root: Path, size: int) -> dict[str, float]:
    """Seconds of the stage with one worker, and of its decoding, filtering and encoding alone."""
    import torch

    from attackers.da3.filters import FILTERS
    from pipelines.storage.images import decode_png, to_tensor, to_uint8
    from pipelines.storage.shards import ShardIndex
    from victims.base import squash

    torch.set_num_threads(1)
    index = ShardIndex(root / "datasets" / "clean")
    data = [index.image_bytes(key) for key in sorted(index.records)]

    def decode(image: bytes) -> Any:
        return squash(to_tensor(decode_png(image)), size).unsqueeze(0).float() / 255

    with torch.no_grad():
        strength = torch.tensor([0.4])
        encode_png(to_uint8(FILTERS["blur"](decode(data[0]), strength)[0]))  # warm up
        done = run_stage(root, size, 1)
        seconds = dict.fromkeys(("decode", "filter", "encode"), 0.0)
        for image in data:
            start = time.perf_counter()
            small = decode(image)
            decoded = time.perf_counter()
            made = [to_uint8(f(small, strength)[0]) for f in FILTERS.values()]
            filtered = time.perf_counter()
            for array in made:
                encode_png(array)
            seconds["decode"] += decoded - start
            seconds["filter"] += filtered - decoded
            seconds["encode"] += time.perf_counter() - filtered
    return {**done, **seconds}


def _child(work: Callable[..., dict[str, float]], arguments: tuple[Any, ...], queue: Any) -> None:
    queue.put(work(*arguments))


def in_own_process(
    work: Callable[..., dict[str, float]], *arguments: Any
) -> tuple[dict[str, float], float]:
    """What `work` returns in a process of its own, and the peak MiB of that process and its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(work, arguments, queue))
    process.start()
    peak, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        top = psutil.Process(process.pid)
        while not stop.wait(0.01):
            total = 0
            try:
                for one in (top, *top.children(recursive=True)):
                    total += one.memory_info().rss
            except psutil.NoSuchProcess:  # ended between the two calls
                continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = queue.get(timeout=900)
    finally:
        stop.set()
        watcher.join()
        process.join(60)
    return result, peak / 2**20


def speed(count: int, size: int, console: Console) -> None:
    table = Table(title=f"{count * FILTERS_EACH} images of {size} px from {count} photographs")
    for column in ("", "s", "images/s", "against the parts"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as folder:
        make_clean(Path(folder, "one"), count, 256)
        make_clean(Path(folder, "two"), count, 256)
        one, _ = in_own_process(run_parts, Path(folder, "one"), size)
        two, _ = in_own_process(run_stage, Path(folder, "two"), size, 2)
    images = one["images"]
    parts = sum(one[name] for name in ("decode", "filter", "encode"))
    for name in ("decode", "filter", "encode"):
        table.add_row(f"{name} alone", f"{one[name]:.2f}", f"{images / one[name]:.0f}", "")
    table.add_row("sum of the three", f"{parts:.2f}", f"{images / parts:.0f}", "")
    for name, seconds in (("stage, 1 worker", one["stage"]), ("stage, 2 workers", two["stage"])):
        overhead = f"{100 * (seconds / parts - 1):+.1f} %"
        table.add_row(name, f"{seconds:.2f}", f"{images / seconds:.0f}", overhead)
    console.print(table)


def memory(counts: tuple[int, int], size: int, console: Console) -> None:
    table = Table(title=f"peak memory, images of {size} px")
    for column in ("workers", "images", "peak MiB", "against the smaller set"):
        table.add_column(column, justify="right")
    for workers in (1, 2):
        peaks = []
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                make_clean(Path(folder), -(-count // FILTERS_EACH), size)
                done, peak = in_own_process(run_stage, Path(folder), size, workers)
            peaks.append(peak)
            ratio = f"{peak / peaks[0]:.3f}"
            table.add_row(str(workers), f"{done['images']:.0f}", f"{peak:.0f}", ratio)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=128, help="of the comparison of speed")
    parser.add_argument("--size", type=int, default=224, help="pixels, of the comparison of speed")
    parser.add_argument("--images", type=int, default=1000, help="of the smaller set for memory")
    parser.add_argument("--quick", action="store_true", help="smaller sets, rougher numbers")
    arguments = parser.parse_args()
    console = Console()
    photographs = 24 if arguments.quick else arguments.photographs
    images = 300 if arguments.quick else arguments.images
    speed(photographs, arguments.size, console)
    memory((images, 10 * images), 64, console)


if __name__ == "__main__":
    main()

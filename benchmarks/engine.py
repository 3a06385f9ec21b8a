"""The stage perturb on every engine: seconds beside `inline`, start-up included, and the bytes.

Two workers in local processes, two actors of a Ray cluster on this machine (extra `ray`), one
torch thread each; what a worker takes to start is shown apart. Each side runs the whole stage in
a process of its own, the sides take turns and the best round counts. All must write the same
shards: the SHA-256 of each file is compared. Run: python benchmarks/engine.py [--quick]
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from _timing import hardware
from perturb import FILTERS_EACH, make_clean, params_of
from rich.console import Console
from rich.table import Table

SIDES = {"inline": 1, "processes": 2, "ray": 2}


def run_stage(root: Path, engine: str, workers: int, size: int) -> dict[str, object]:
    """Seconds of the stage, and the SHA-256 of each shard from the bytes themselves."""
    from pipelines.stages.perturb import run_perturb
    from pipelines.storage.layout import Layout

    params = params_of(size, workers)
    engine_params = params.engine.model_copy(update={"kind": engine})
    params = params.model_copy(update={"engine": engine_params})
    layout = Layout(root)
    start = time.perf_counter()
    run_perturb(params, layout, progress=False)
    seconds = time.perf_counter() - start
    shards = sorted((layout.perturbed / "data").iterdir())
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
    return {"seconds": seconds, "shards": hashes}


def in_own_process(clean: Path, engine: str, size: int) -> dict[str, object]:
    """run_stage on a fresh project that shares the photographs of `clean`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "datasets").mkdir()
        (root / "datasets" / "clean").symlink_to(clean / "datasets" / "clean")
        arguments = ["--one", engine, "--root", folder, "--size", str(size)]
        done = subprocess.run(
            [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def compare(count: int, size: int, rounds: int) -> None:
    sides = [name for name in SIDES if name != "ray" or find_spec("ray")]
    best = dict.fromkeys(sides, math.inf)
    start = dict.fromkeys(sides, math.inf)
    hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        clean, few = Path(folder, "clean"), Path(folder, "few")
        make_clean(clean, count, 256)
        make_clean(few, 16, 64)  # two shards that are made in no time: start-up
        for _ in range(rounds):
            for name in sides:
                done = in_own_process(clean, name, size)
                best[name] = min(best[name], done["seconds"])
                hashes[name] = done["shards"]
                start[name] = min(start[name], in_own_process(few, name, 32)["seconds"])
    images = count * FILTERS_EACH
    table = Table(title=f"{images} images of {size} px, {hardware()}")
    for column in ("engine", "workers", "s", "images/s", "times inline", "start-up s", "bytes"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name in sides:
        same = "same" if hashes[name] == hashes["inline"] else "OTHER"
        table.add_row(
            name,
            str(SIDES[name]),
            f"{best[name]:.2f}",
            f"{images / best[name]:.0f}",
            f"{best['inline'] / best[name]:.2f}",
            f"{start[name]:.2f}",
            same,
        )
    Console().print(table)
    if any(found != hashes["inline"] for found in hashes.values()):
        raise SystemExit("engines differ in their bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=2048)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small set once, rougher numbers")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        done = run_stage(arguments.root, arguments.one, SIDES[arguments.one], arguments.size)
        print(json.dumps(done))
        return
    count, rounds = arguments.photographs, arguments.rounds
    compare(*((96, arguments.size, 1) if arguments.quick else (count, arguments.size, rounds)))


if __name__ == "__main__":
    main()

"""What the benchmarks share: best of several rounds, sides in turns, peak memory, the hardware."""

import ctypes
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

Work = Callable[[], Any]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Work) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def best_of(sides: Mapping[str, Work], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Seconds of the best round of each side; the sides take turns, so that load hits all."""
    if warm_up:
        for work in sides.values():
            work()
    best = dict.fromkeys(sides, math.inf)
    for _ in range(rounds):
        for name, work in sides.items():
            best[name] = min(best[name], seconds(work))
    return best


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list that holds, afterwards, the MiB by which memory grew at its peak.

    On a GPU what torch allocated there, else the process.
    """
    if not torch.cuda.is_available():
        with process_memory() as found:
            yield found
        return
    found = []
    wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield found
    wait()
    found.append((torch.cuda.max_memory_allocated() - before) / 2**20)


@contextmanager
def process_memory() -> Iterator[list[float]]:
    """As peak_memory, of the process (psutil, every 2 ms) on every machine.

    For work without torch: on a GPU that allocates nothing, whatever it takes.
    """
    found: list[float] = []
    with suppress(OSError, AttributeError):  # glibc keeps freed memory: give it back first
        ctypes.CDLL(None).malloc_trim(0)
    process, stop = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()
        found.append((peak - before) / 2**20)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def hardware() -> str:
    """One line: processor or GPU, threads, torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{name}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"torch {torch.__version__}"
    )

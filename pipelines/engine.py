"""Runs shards: in this process, or in a pool of local processes."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_process
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipelines.errors import InputError, StageError
from pipelines.memory import keep_heap


class ShardJob(Protocol):
    """What one worker does at a time; `count` is its number of images."""

    @property
    def count(self) -> int: ...  # noqa: D102


Job = TypeVar("Job", bound=ShardJob)
Result = TypeVar("Result")

_LINE_EVERY = 10.0  # seconds between progress lines when stderr is no terminal


def map_shards(
    fn: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
    description: str = "",
    progress: bool = True,
) -> list[Result]:
    """`fn` of every job, in the order of `jobs`.

    One worker runs in this process, more in spawned processes, each with one torch thread: the
    order of a floating-point sum, and so the bytes, are the same for any number of workers. An
    error of `fn` ends the run and is raised here; a worker that dies is a StageError. When this
    process is interrupted or killed, its workers end too.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    total = sum(job.count for job in jobs)
    with reporter(description, total, show=progress and total > 0) as report:
        if workers == 1 or len(jobs) <= 1:
            return _run_here(fn, jobs, initializer, initargs, report)
        return _run_in_pool(fn, jobs, min(workers, len(jobs)), initializer, initargs, report)


def _run_here(
    fn: Callable[[Job], Result],
    jobs: Sequence[Job],
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
    report: Callable[[int], None],
) -> list[Result]:
    if not jobs:
        return []
    results = []
    with _one_torch_thread():
        if initializer is not None:
            initializer(*initargs)
        for job in jobs:
            results.append(fn(job))
            report(job.count)
    return results


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_pool(
    fn: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
    report: Callable[[int], None],
) -> list[Result]:
    others = set(multiprocessing.active_children())
    with _one_thread_in_children():
        pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(initializer, initargs),
        )
        try:
            return _collect([pool.submit(fn, job) for job in jobs], jobs, report)
        except BrokenProcessPool:
            raise StageError(
                "a worker process died (killed, or out of memory): finished shards are kept, and "
                "running the same command again redoes only the rest"
            ) from None
        except KeyboardInterrupt:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(
    futures: list[Future[Result]], jobs: Sequence[Job], report: Callable[[int], None]
) -> list[Result]:
    counts = {future: job.count for future, job in zip(futures, jobs, strict=True)}
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()  # the first error ends the run
            report(counts[future])
    return [future.result() for future in futures]


@contextlib.contextmanager
def _one_thread_in_children() -> Iterator[None]:
    # In the environment rather than by set_num_threads, so that a worker that has no need of
    # torch does not import it (5 s and 600 MB each).
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    keep_heap()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    # A pool worker whose parent was killed would wait for its next job for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_process([parent.sentinel])
    os._exit(1)


class _Throughput(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")


@contextlib.contextmanager
def reporter(
    description: str, total: int, *, show: bool, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """A function to be told how many `unit` were finished: a bar on a terminal, else lines."""
    console = Console(stderr=True)
    if not show:
        yield lambda count: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, _Throughput(unit), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(description, total, unit)


class _Lines:
    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.done, self.unit = description, total, 0, unit
        self.start = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self.last < _LINE_EVERY:
            return
        self.last = now
        speed = self.done / max(now - self.start, 1e-9)
        line = (
            f"{self.description}: {self.done}/{self.total} {self.unit}, {speed:.1f} {self.unit}/s"
        )
        print(line, file=sys.stderr, flush=True)

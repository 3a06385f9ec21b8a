"""Runs shards: in this process, in local processes, or on a Ray cluster. The bytes are the same."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, Literal, Protocol, TypeVar, get_args

import psutil

from pipelines.errors import InputError, StageError
from pipelines.execution.progress import Reporter, reporter
from pipelines.execution.workers import (
    MIB,
    Lane,
    Outcome,
    Worker,
    inline_lane,
    process_lanes,
    ray_lanes,
)

EngineKind = Literal["inline", "processes", "ray"]


class ShardJob(Protocol):
    """What one worker does at a time; `count` is its number of images.

    A `name` is used in messages where there is one.
    """

    @property
    def count(self) -> int: ...  # noqa: D102


Job = TypeVar("Job", bound=ShardJob)
Result = TypeVar("Result")

# Every shard would end the same way: not worth another try.
_FATAL = (ValueError, StageError, OSError)


def map_shards(
    fn: Callable[..., Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    engine: EngineKind = "processes",
    max_retries: int = 2,
    memory: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
    setup: Callable[[], Any] | None = None,
    description: str = "",
    progress: bool = True,
) -> list[Result]:
    """Call a function with every job.

    Each worker has one torch thread: the order of a floating-point sum, and so the bytes, are the
    same for any engine and number of workers. A worker that dies is replaced and its shard tried
    again, as is a shard whose `fn` fails; one that still fails is reported after all others are
    finished. When this process is interrupted or killed, its workers end too.

    Args:
        fn: Does a job: called with the job, and with the state that `setup` returned where it is
            given.
        jobs: What `fn` is called with.
        workers: Number of workers.
        engine: `inline`, `processes` (spawned; one worker is this process) or `ray`.
        max_retries: How often a shard is tried again.
        memory: MiB of a worker: processes are started only as far as they fit into what is free,
            and one that holds more after a shard is replaced. None: no limit.
        address: Of a running Ray cluster, see ray_lanes.
        gpus: Of a Ray worker, see ray_lanes.
        setup: Loads what all jobs of a worker share, such as models; called once in each worker.
        description: What the progress line calls the run.
        progress: Whether progress is shown.

    Returns:
        The results, in the order of `jobs`.

    Raises:
        InputError: An argument is wrong.
        StageError: Shards failed `max_retries` + 1 times, named in the message.
        ValueError, StageError, OSError: `fn` or `setup` raised it; this ends the run at once.
    """
    if engine not in get_args(EngineKind):
        raise InputError(f"engine must be one of {', '.join(get_args(EngineKind))}, got {engine!r}")
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if not jobs:
        return []
    worker = Worker(fn, setup)
    total = sum(job.count for job in jobs)
    with reporter(description, total, show=progress and total > 0) as report:
        workers = min(workers, len(jobs))
        if engine == "processes":
            workers = _that_fit(workers, memory, report)
        lanes: contextlib.AbstractContextManager[list[Lane]]
        if engine == "ray":
            lanes = ray_lanes(worker, workers, address=address, gpus=gpus, memory=memory)
        elif engine == "inline" or workers == 1:
            lanes = inline_lane(worker)
        else:
            lanes = process_lanes(worker, workers)
        with lanes as ready:
            return _run(ready, jobs, max_retries, memory, report)


def _that_fit(workers: int, memory: int | None, report: Reporter) -> int:
    if memory is None:
        return workers
    free = int(psutil.virtual_memory().available) // MIB
    fitting = max(1, min(workers, free // memory))
    if fitting < workers:
        report.note(f"{fitting} of {workers} workers: {free} MiB are free, each takes {memory}")
    return fitting


def _run(
    lanes: Sequence[Lane],
    jobs: Sequence[Job],
    max_retries: int,
    memory: int | None,
    report: Reporter,
) -> list[Any]:
    results: dict[int, Any] = {}
    failed: dict[int, str] = {}
    tries = [0] * len(jobs)
    for lane, number, outcome in _outcomes(lanes, jobs, waiting := deque(range(len(jobs)))):
        if isinstance(outcome, Outcome) and outcome.error is None:
            results[number] = outcome.result
            report.done(jobs[number].count)
            if memory is not None and outcome.memory > memory:
                lane.replace()
            continue
        if isinstance(outcome, Outcome):
            assert outcome.error is not None
            if isinstance(outcome.error, _FATAL):
                raise outcome.error
            reason = f"{type(outcome.error).__name__}: {outcome.error}"
        else:
            lane.replace()
            reason = "its worker died (killed, or out of memory)"
        tries[number] += 1
        label = getattr(jobs[number], "name", f"number {number}")
        if tries[number] <= max_retries:
            report.note(f"shard {label}: {reason}; trying again, {tries[number]} of {max_retries}")
            waiting.append(number)  # behind all others
        else:
            failed[number] = f"{label}: {reason}"
    if failed:
        raise StageError(
            f"{len(failed)} of {len(jobs)} shards failed {max_retries + 1} times: "
            f"{'; '.join(failed.values())}; the others are finished, and running the same command "
            "again redoes only these"
        )
    return [results[number] for number in range(len(jobs))]


def _outcomes(
    lanes: Sequence[Lane], jobs: Sequence[Job], waiting: deque[int]
) -> Iterator[tuple[Lane, int, Outcome | BaseException]]:
    """(lane, job number, outcome or what killed the worker) as jobs end; `waiting` may grow."""
    idle = list(lanes)
    running: dict[Any, tuple[Lane, int]] = {}
    while waiting or running:
        while waiting and idle:
            lane, number = idle.pop(), waiting.popleft()
            running[lane.submit(jobs[number])] = lane, number
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            lane, number = running.pop(future)
            yield lane, number, future.exception() or future.result()
            idle.append(lane)

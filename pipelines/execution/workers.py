"""Where a shard is made: in this process, in a process of this machine, or in a Ray actor.

Each lane does one job at a time, so that a death is blamed on the shard that was being made.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_process
from typing import Any, Protocol

import psutil

from pipelines.errors import InputError, StageError
from pipelines.execution.memory import keep_heap

MIB = 2**20


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        result: What the function returned; None after an error.
        error: What it raised; None after a result.
        memory: Resident memory of the worker after the job, MiB.
    """

    result: Any
    error: Exception | None
    memory: int


class Worker:
    """A function and the state that its jobs share; may be sent to a process.

    Args:
        fn: Does a job: called with the job, and with the state where there is `setup`.
        setup: Makes the state, once per worker and before its first job; None: there is none.
    """

    def __init__(self, fn: Callable[..., Any], setup: Callable[[], Any] | None = None) -> None:
        self.fn, self.setup = fn, setup
        self._state: tuple[Any, ...] | None = None

    def run(self, job: Any) -> Outcome:
        """Do one job. An error comes back as a value, with its traceback as a note.

        Args:
            job: Argument of the function.
        """
        result, failed = None, None
        try:
            if self._state is None:
                self._state = () if self.setup is None else (self.setup(),)
            result = self.fn(job, *self._state)
        except Exception as error:
            error.add_note(traceback.format_exc())
            failed = error
        return Outcome(result, failed, psutil.Process().memory_info().rss // MIB)


class Lane(Protocol):
    """One worker; `submit` takes the next job once the last one is done."""

    def submit(self, job: Any) -> "Future[Outcome]":
        """Begin a job.

        Args:
            job: Argument of the worker's function.
        """

    def replace(self) -> None:
        """Put a new worker in the place of this one."""


# In this process


class InlineLane:
    """This process: a job is done when `submit` returns.

    Args:
        worker: What does the jobs.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def submit(self, job: Any) -> "Future[Outcome]":
        """Do the job now.

        Args:
            job: Argument of the worker's function.
        """
        future: Future[Outcome] = Future()
        future.set_result(self.worker.run(job))
        return future

    def replace(self) -> None:
        """Nothing to be replaced."""


@contextlib.contextmanager
def inline_lane(worker: Worker) -> Iterator[list[Lane]]:
    """This process with one torch thread, as in every other worker.

    Args:
        worker: What does the jobs.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield [InlineLane(worker)]
    finally:
        torch.set_num_threads(before)


# In processes of this machine


class ProcessLane:
    """A spawned process, replaced when it died or grew.

    Args:
        worker: What does the jobs; it is sent to the process.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, _start_process, (self.worker,))

    def submit(self, job: Any) -> "Future[Outcome]":
        """Hand the job to the process.

        Args:
            job: Argument of the worker's function.
        """
        try:
            return self.pool.submit(_in_process, job)
        except BrokenProcessPool:  # died between two jobs
            self.replace()
            return self.pool.submit(_in_process, job)

    def replace(self) -> None:
        """A new process for the next job."""
        self.pool.shutdown(wait=True)
        self.pool = self._new()


@contextlib.contextmanager
def process_lanes(worker: Worker, count: int) -> Iterator[list[Lane]]:
    """Processes that end with this one, each with one torch thread.

    Args:
        worker: What does the jobs; it is sent to each process.
        count: Number of processes.
    """
    others = set(multiprocessing.active_children())
    with _one_thread_in_children():
        lanes = [ProcessLane(worker) for _ in range(count)]
        try:
            yield list(lanes)
        except BaseException:
            # What they were doing is lost: shards are written whole or not at all.
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            for lane in lanes:
                lane.pool.shutdown(wait=True, cancel_futures=True)


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


_worker: Worker | None = None  # of this process, where it is one of a lane


def _start_process(worker: Worker) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    keep_heap()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # It has handed over all it made: to take its modules down would take a second.
    atexit.register(os._exit, 0)
    _worker = worker


def _in_process(job: Any) -> Outcome:
    assert _worker is not None
    return _worker.run(job)


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for its next job for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_process([parent.sentinel])
    os._exit(1)


# On a Ray cluster


class RayLane:
    """An actor, replaced when it died or grew.

    Args:
        new_actor: Starts an actor on any node.
    """

    def __init__(self, new_actor: Callable[[], Any]) -> None:
        self.new_actor = new_actor
        self.actor = new_actor()

    def submit(self, job: Any) -> "Future[Outcome]":
        """Hand the job to the actor.

        Args:
            job: Argument of the worker's function.
        """
        future: Future[Outcome] = self.actor.run.remote(job).future()
        return future

    def replace(self) -> None:
        """A new actor for the next job, on any node."""
        import ray

        ray.kill(self.actor)
        self.actor = self.new_actor()


class _Actor(Worker):
    def __init__(self, worker: Worker) -> None:
        keep_heap()
        super().__init__(worker.fn, worker.setup)


@contextlib.contextmanager
def ray_lanes(
    worker: Worker, count: int, *, address: str | None, gpus: float | None, memory: int | None
) -> Iterator[list[Lane]]:
    """Actors spread over the nodes of a cluster. The work folder must be on a disk they all share.

    Args:
        worker: What each actor runs.
        count: Number of actors.
        address: Of a running cluster; None starts one on this machine.
        gpus: Of each actor; None shares the cluster's evenly, at most one each.
        memory: MiB that Ray reserves for each actor; None reserves nothing.

    Raises:
        InputError: Ray is not installed.
        StageError: There is no cluster at `address`.
    """
    try:
        if address is None:  # nobody else talks to it: no token needed
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        import ray
    except ImportError:
        raise InputError(
            "engine.kind ray needs the extra `ray`: pip install 'veneer[ray]'"
        ) from None
    connected_here = not ray.is_initialized()
    if connected_here:
        _connect(address, count)
    if gpus is None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / count)
    variables = {"OMP_NUM_THREADS": "1"}
    if address is None:  # the nodes of a cluster have their own installation
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    options: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": gpus,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": variables},
    }
    if memory is not None:
        options["memory"] = memory * MIB
    actor = ray.remote(_Actor).options(**options)
    lanes: list[RayLane] = []
    try:
        lanes += [RayLane(lambda: actor.remote(worker)) for _ in range(count)]
        yield list(lanes)
    finally:
        for lane in lanes:
            ray.kill(lane.actor)
        if connected_here:
            ray.shutdown()


def _connect(address: str | None, count: int) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise StageError(f"engine.address must be a Ray cluster, got {address} ({text})") from None

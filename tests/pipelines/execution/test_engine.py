import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines.errors import InputError, StageError
from pipelines.execution.engine import map_shards
from pipelines.execution.workers import MIB

HELD: dict[str, Any] = {}  # memory of a worker that grows


@dataclass(frozen=True)
class Job:
    number: int
    count: int = 2
    folder: Path | None = None


def load(value: int) -> list[int]:
    return [value]


def work(job: Job, state: list[int]) -> tuple[int, int, int]:
    state.append(job.number)  # the state of a worker outlives its jobs
    return job.number**2, state[0], torch.get_num_threads()


def jobs_of_worker(job: Job, state: list[int]) -> list[int]:
    state.append(job.number)
    return list(state)


def refuse() -> None:
    raise ValueError("expected 1, got 0")


def fail(job: Job) -> None:
    if job.number == 1:
        raise StageError("job 1 cannot be done")


def die(job: Job) -> None:
    assert job.folder is not None
    if job.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    (job.folder / f"{job.number}.finished").touch()


def die_once(job: Job) -> int:
    assert job.folder is not None
    mark = job.folder / f"{job.number}.tried"
    if job.number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number


def break_down(job: Job) -> int:
    if job.number == 1:
        raise RuntimeError("a bug that only this shard meets")
    return job.number


def grow(job: Job) -> int:
    held = b"x" * (800 * MIB) if job.number == 0 else b""
    HELD["held"] = held
    return os.getpid()


def linger(job: Job) -> None:
    assert job.folder is not None
    (job.folder / f"{os.getpid()}.pid").touch()
    time.sleep(120)


# (engine, workers); Ray only where its extra is installed
HERE, POOL = ("inline", 1), ("processes", 2)
RAY = pytest.param(
    "ray",
    2,
    marks=[pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")],
)
engines = pytest.mark.parametrize(("engine", "workers"), [HERE, ("processes", 1), POOL, RAY])
outside = pytest.mark.parametrize(("engine", "workers"), [POOL, RAY])


@engines
def test_results_in_order_with_one_torch_thread(engine, workers):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    jobs = [Job(number) for number in range(4)]
    try:
        results = map_shards(
            work,
            jobs,
            workers=workers,
            engine=engine,
            setup=partial(load, 7),
            progress=False,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert results == [(number**2, 7, 1) for number in range(4)]


@pytest.mark.parametrize(("engine", "workers"), [HERE, POOL])
def test_error_of_a_job_is_raised(engine, workers):
    with pytest.raises(StageError, match="job 1 cannot be done"):
        map_shards(fail, [Job(0), Job(1)], workers=workers, engine=engine, progress=False)


def test_setup_is_called_once_per_worker_and_run():
    for _ in range(2):  # a second run starts anew: nothing is left in the module
        results = map_shards(
            jobs_of_worker,
            [Job(number) for number in range(3)],
            workers=1,
            setup=partial(load, 7),
            progress=False,
        )
        assert results == [[7, 0], [7, 0, 1], [7, 0, 1, 2]]


def test_error_of_setup_is_raised():
    with pytest.raises(ValueError, match="expected 1, got 0"):
        map_shards(work, [Job(0), Job(1)], workers=2, setup=refuse, progress=False)


@outside
def test_killed_worker_is_replaced_and_its_shard_made(tmp_path, capsys, engine, workers):
    jobs = [Job(number, folder=tmp_path) for number in range(4)]
    results = map_shards(die_once, jobs, workers=workers, engine=engine, progress=False)
    assert results == [0, 1, 2, 3]
    stderr = capsys.readouterr().err
    assert "shard number 1: its worker died (killed, or out of memory); trying again" in stderr


@outside
def test_poison_shard_is_reported_after_the_rest_is_finished(tmp_path, capsys, engine, workers):
    jobs = [Job(number, folder=tmp_path) for number in range(4)]
    with pytest.raises(StageError, match="1 of 4 shards failed 2 times: number 1: its worker died"):
        map_shards(die, jobs, workers=workers, engine=engine, max_retries=1, description="make")
    assert "make: shard number 1" in capsys.readouterr().err
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["0", "2", "3"]


@pytest.mark.parametrize(("engine", "workers"), [HERE, POOL])
def test_shard_that_breaks_is_reported_after_the_rest_is_finished(capsys, engine, workers):
    jobs = [Job(number) for number in (1, 0, 2)]
    with pytest.raises(StageError, match="1 of 3 shards failed 3 times: number 0: RuntimeError: a"):
        map_shards(break_down, jobs, workers=workers, engine=engine)
    assert "trying again, 2 of 2" in capsys.readouterr().err


def test_worker_that_grew_is_replaced():
    large = map_shards(grow, [Job(0)] * 3, workers=2, memory=800, progress=False)
    assert len(set(large)) == 3
    small = map_shards(grow, [Job(1)] * 3, workers=2, memory=800, progress=False)
    assert len(set(small)) <= 2


def test_as_many_workers_as_fit_into_memory(capsys):
    free = psutil.virtual_memory().available // MIB
    pids = map_shards(grow, [Job(2), Job(3)], workers=2, memory=free, progress=False)
    assert set(pids) == {os.getpid()}
    assert "1 of 2 workers" in capsys.readouterr().err


def test_engine_must_be_known():
    with pytest.raises(InputError, match="engine must be one of inline, processes, ray, got 'x'"):
        map_shards(work, [Job(0)], workers=1, engine="x")


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_ray_names_its_extra():
    with pytest.raises(InputError, match="needs the extra `ray`"):
        map_shards(work, [Job(0)], workers=1, engine="ray")


def test_workers_must_be_positive():
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        map_shards(work, [], workers=0)


def test_no_jobs():
    assert map_shards(work, [], workers=2) == []


def test_progress_lines_name_stage_and_speed(capsys):
    map_shards(fail, [Job(0), Job(2)], workers=1, description="perturb")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("perturb: 4/4 images, ")
    assert last.endswith("images/s")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans(tmp_path, sent):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import test_engine as t\n"
        "if __name__ == '__main__':\n"
        "    jobs = [t.Job(n, folder=Path(sys.argv[2])) for n in range(3)]\n"
        "    t.map_shards(t.linger, jobs, workers=2, progress=False)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        # A suite that runs in the background of a script inherits a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        children = []
        while len(children) < 2:
            assert process.poll() is None
            children = [int(path.stem) for path in tmp_path.glob("*.pid")]
            time.sleep(0.1)
        process.send_signal(sent)
        process.wait(60)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(child).wait(60)
    finally:
        process.kill()

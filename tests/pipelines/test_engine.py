import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.engine import map_shards
from pipelines.errors import InputError, StageError

STATE: dict[str, int] = {}


@dataclass(frozen=True)
class Job:
    number: int
    count: int = 2
    folder: Path | None = None


def set_state(value: int) -> None:
    STATE["value"] = value


def work(job: Job) -> tuple[int, int, int]:
    return job.number**2, STATE["value"], torch.get_num_threads()


def fail(job: Job) -> None:
    if job.number == 1:
        raise StageError("job 1 cannot be done")


def die(job: Job) -> None:
    if job.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def linger(job: Job) -> None:
    assert job.folder is not None
    (job.folder / f"{os.getpid()}.pid").touch()
    time.sleep(120)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_in_order_with_one_torch_thread(workers):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    jobs = [Job(number) for number in range(4)]
    try:
        results = map_shards(
            work, jobs, workers=workers, initializer=set_state, initargs=(7,), progress=False
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert results == [(number**2, 7, 1) for number in range(4)]


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_job_is_raised(workers):
    with pytest.raises(StageError, match="job 1 cannot be done"):
        map_shards(fail, [Job(0), Job(1)], workers=workers, progress=False)


def test_killed_worker_is_one_sentence():
    with pytest.raises(StageError, match="finished shards are kept"):
        map_shards(die, [Job(0), Job(1)], workers=2, progress=False)


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
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
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

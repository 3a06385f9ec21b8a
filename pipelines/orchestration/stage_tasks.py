"""The stages of dvc.yaml as Prefect tasks: several at a time, tried again, skipped."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from pipelines.orchestration.dvc_stages import (
    USAGE,
    DvcStage,
    StageFailed,
    StageOutcome,
    metrics_of,
    run_stage,
)


@dataclass(frozen=True)
class Row:
    """A line of the table at the end.

    Attributes:
        stage: Its name.
        status: `ran`, `cached`, `restored`, `failed` or `skipped`.
        seconds: That it took.
        metrics: The first numbers of its reports.
        note: What went wrong.
    """

    stage: str
    status: str
    seconds: float
    metrics: str
    note: str


def worth_another_try(task: Any, run: Any, state: "State[Any]") -> bool:
    """Whether to run a failed stage again: not when it was called wrongly.

    Args:
        task: Of Prefect, not looked at.
        run: Of Prefect, not looked at.
        state: What the stage ended in.
    """
    try:
        state.result()
    except StageFailed as error:
        return error.code != USAGE
    except Exception:
        return True
    return False


def _stage_task(retries: int, retry_delay: float) -> Any:
    delays = [retry_delay * 2**i for i in range(retries)]

    @task(
        task_run_name="{stage.name}",
        retries=retries,
        retry_delay_seconds=delays,
        retry_condition_fn=worth_another_try,
        persist_result=False,
        cache_policy=NO_CACHE,  # DVC knows what is stale
    )
    def dvc_stage(root: Path, stage: DvcStage, slots: "Slots") -> StageOutcome:
        logger = get_run_logger()
        with slots:
            return run_stage(root, stage.name, logger.info)

    return dvc_stage


class Slots:
    """How many stages run at a time; the threads of the others wait.

    Args:
        count: Number of stages that may run at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    def __enter__(self) -> None:
        self._free.acquire()

    def __exit__(self, *error: object) -> None:
        self._free.release()


def run_stages(
    root: Path, stages: list[DvcStage], *, max_parallel: int, retries: int, retry_delay: float
) -> list[Row]:
    """Run stages as tasks of the current flow; what needs a failed one is skipped.

    Args:
        root: Folder of the project.
        stages: Each after those it needs.
        max_parallel: Stages at a time.
        retries: Of a stage that failed.
        retry_delay: Seconds before the first retry; doubles.

    Returns:
        A row for each stage.
    """
    slots = Slots(max_parallel)
    dvc_stage = _stage_task(retries, retry_delay)
    futures: dict[str, PrefectFuture[StageOutcome]] = {}
    for stage in stages:
        above = [futures[name] for name in stage.needs if name in futures]
        futures[stage.name] = dvc_stage.submit(root, stage, slots, wait_for=above)
    rows = []
    for stage in stages:
        future = futures[stage.name]
        future.wait()
        state = future.state
        if state.is_completed():
            done = future.result()
            rows.append(Row(stage.name, done.status, done.seconds, metrics_of(root, stage), ""))
        elif state.is_failed() or state.is_crashed():
            error = future.result(raise_on_failure=False)
            rows.append(Row(stage.name, "failed", 0.0, "", str(error)))
        else:  # never started: what it needs did not end well
            rows.append(Row(stage.name, "skipped", 0.0, "", "a stage that it needs failed"))
    return rows

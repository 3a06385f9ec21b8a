"""Prefect flows over the stages of dvc.yaml: schedule, retry, show. DVC decides what is stale."""

import datetime
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import InputError, StageError
from pipelines.orchestration.dvc_stages import (
    USAGE,
    DvcStage,
    Outcome,
    StageFailed,
    metrics_of,
    read_stages,
    run_stage,
    with_needed,
)

# Read when prefect is imported: its own limit is too short for a first start.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
try:
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import (
        create_link_artifact,
        create_progress_artifact,
        create_table_artifact,
        update_progress_artifact,
    )
    from prefect.cache_policies import NO_CACHE
    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )
    from prefect.task_runners import ThreadPoolTaskRunner
except ImportError:
    raise InputError("flows need the extra `flows`: pip install 'veneer[flows]'") from None

# Stages of each flow by their name before the @; what they need runs (or is cached) too.
FLOWS: dict[str, tuple[str, ...] | None] = {
    "pretraining": ("pretrain",),
    "attack_zoo": ("attack", "evaluate"),
    "curation": ("curate", "annotate", "package"),
    "poisoning": ("poison", "backdoor"),
    "training": ("train_victim", "train_detector", "finetune"),
    "build": None,
}


@dataclass(frozen=True)
class Row:
    """A line of the table at the end. status: ran, cached, restored, failed or skipped."""

    stage: str
    status: str
    seconds: float
    metrics: str
    note: str


def worth_another_try(task: Any, run: Any, state: "State[Any]") -> bool:
    """Whether to run a failed stage again: not when it was called wrongly."""
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
    def dvc_stage(root: Path, stage: DvcStage, slots: "Slots") -> Outcome:
        logger = get_run_logger()
        with slots:
            return run_stage(root, stage.name, logger.info)

    return dvc_stage


class Slots:
    """How many stages run at a time; the threads of the others wait."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    def __enter__(self) -> None:
        self._free.acquire()

    def __exit__(self, *error: object) -> None:
        self._free.release()


def run_stages(
    root: Path, stages: list[DvcStage], *, max_parallel: int, retries: int, retry_delay: float
) -> list[Row]:
    """Run stages as tasks of the current flow; what needs a failed one is skipped."""
    slots = Slots(max_parallel)
    dvc_stage = _stage_task(retries, retry_delay)
    futures: dict[str, PrefectFuture[Outcome]] = {}
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


@task(task_run_name="wait for annotators")
def wait_for_annotators(root: Path, poll: float, limit: float) -> dict[str, Any]:
    """Until the campaign has its votes, as `veneer annotate status` counts them."""
    logger = get_run_logger()
    _annotate(root, "push")
    # typed for flows that are async as well; this one is not
    artifact: Any = create_progress_artifact(0.0, "annotation", description="Votes of the campaign")
    end = time.monotonic() + limit
    while True:
        told: dict[str, Any] = json.loads(_annotate(root, "status", "--json"))
        tasks = told["item"] + told["repeat"] + told["gold"]
        logger.info(f"{told['finished']} of {tasks} tasks have {told['votes_wanted']} votes")
        update_progress_artifact(artifact, 100.0 * told["finished"] / max(tasks, 1))
        if told["finished"] >= tasks:
            _annotate(root, "pull")
            return told
        if time.monotonic() > end:
            raise StageError(
                f"{told['finished']} of {tasks} tasks have their votes after {limit / 3600:g} h: "
                "run the flow again, the votes are kept"
            )
        time.sleep(poll)


def _annotate(root: Path, *arguments: str) -> str:
    command = ["veneer", "annotate", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _run(
    name: str,
    root: str,
    max_parallel: int,
    retries: int,
    retry_delay: float,
    before_annotate: Callable[[], Any] | None = None,
) -> list[dict[str, Any]]:
    """The body of every flow. Raises StageError when a stage failed, after the table."""
    folder = Path(root).resolve()
    stages = with_needed(read_stages(folder), FLOWS[name])
    options: dict[str, Any] = {
        "max_parallel": max_parallel,
        "retries": retries,
        "retry_delay": retry_delay,
    }
    rows: list[Row] = []
    if before_annotate is not None:
        first = with_needed(stages, ("curate",))
        rows = run_stages(folder, first, **options)
        if not any(row.status in ("failed", "skipped") for row in rows):
            before_annotate()
            stages = [stage for stage in stages if stage not in first]
            rows += run_stages(folder, stages, **options)
    else:
        rows = run_stages(folder, stages, **options)
    table = [vars(row) | {"seconds": round(row.seconds, 1)} for row in rows]
    create_table_artifact(table, key="stages", description=f"What `{name}` did")
    _link_reports(folder)
    bad = [row.stage for row in rows if row.status == "failed"]
    if bad:
        skipped = sum(row.status == "skipped" for row in rows)
        text = f"{len(bad)} of {len(rows)} stages failed ({', '.join(bad)}), {skipped} skipped"
        raise FlowFailed(text, table)
    return table


class FlowFailed(StageError):
    """A flow with a failed stage; `table` says what became of each."""

    def __init__(self, text: str, table: list[dict[str, Any]]) -> None:
        super().__init__(text)
        self.table = table


def _link_reports(root: Path) -> None:
    for path in sorted((root / "reports").glob("*.*")):
        if path.suffix in (".json", ".csv", ".png", ".html", ".md"):
            key = "report-" + re.sub(r"[^a-z0-9]+", "-", path.name.lower())
            create_link_artifact(path.as_uri(), link_text=path.name, key=key)


def _flow(function: Callable[..., Any]) -> Any:
    # threads wait, slots limit; prefect types its runners as invariant
    runner: Any = ThreadPoolTaskRunner(max_workers=256)

    def run_name() -> str:
        return f"{function.__name__} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"

    return flow(
        name=function.__name__.replace("_", "-"),
        flow_run_name=run_name,
        task_runner=runner,
        log_prints=False,
        validate_parameters=True,
    )(function)


@_flow
def pretraining(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Photographs, perturbed pairs, first stage of DA3Attacker."""
    return _run("pretraining", root, max_parallel, retries, retry_delay)


@_flow
def attack_zoo(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Every victim trained and attacked in every mode, then measured."""
    return _run("attack_zoo", root, max_parallel, retries, retry_delay)


@_flow
def curation(
    root: str = ".",
    max_parallel: int = 2,
    retries: int = 2,
    retry_delay: float = 10,
    wait: bool = False,
    poll: float = 300,
    limit: float = 14 * 86400,
) -> list[dict[str, Any]]:
    """3AE from candidates to scores. wait: for the votes of the campaign, checked every `poll`
    seconds, `limit` seconds at most."""
    folder = Path(root).resolve()
    waiting = (lambda: wait_for_annotators(folder, poll, limit)) if wait else None
    return _run("curation", root, max_parallel, retries, retry_delay, waiting)


@_flow
def poisoning(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Trigger, poisoned data sets and the models that they poison."""
    return _run("poisoning", root, max_parallel, retries, retry_delay)


@_flow
def training(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Victims, detector and fine-tuned victims."""
    return _run("training", root, max_parallel, retries, retry_delay)


@_flow
def build(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Every stage of dvc.yaml."""
    return _run("build", root, max_parallel, retries, retry_delay)


def run_flow(
    name: str, *, server: str | None = None, cron: str | None = None, **arguments: Any
) -> list[dict[str, Any]]:
    """Run a flow against `server` (…/api), the server of the Prefect profile, or a temporary one.

    cron: do not run now, serve it on this schedule until interrupted; not with a temporary server,
    which schedules nothing. Returns: the table of the stages. Raises InputError for an unknown
    name, FlowFailed when a stage failed.
    """
    if name not in FLOWS:
        raise InputError(f"flow must be one of {', '.join(FLOWS)}, got {name!r}")
    chosen = globals()[name]
    changes: dict[Any, Any] = {}
    if server is not None:
        changes[PREFECT_API_URL] = _reachable(server)
    elif PREFECT_API_URL.value() is None:
        if cron is not None:
            raise InputError(
                f"cron must come with the server of a schedule, got {cron!r} and no --server: a "
                "temporary one starts nothing by the clock"
            )
        changes[PREFECT_SERVER_ALLOW_EPHEMERAL_MODE] = True
        print(
            "starting a temporary Prefect server (20 to 60 s on two cores); `prefect server "
            "start` and --server http://127.0.0.1:4200/api keep one running and show the runs",
            file=sys.stderr,
            flush=True,
        )
    with temporary_settings(updates=changes):
        if cron is not None:
            chosen.serve(name="scheduled", cron=cron, parameters=arguments)
            return []
        table: list[dict[str, Any]] = chosen(**arguments)
    return table


def _reachable(server: str) -> str:
    import httpx

    url = server.rstrip("/")
    if not re.match(r"https?://", url):
        raise InputError(f"server must be a URL such as http://127.0.0.1:4200/api, got {server!r}")
    if not url.endswith("/api"):
        url += "/api"
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise StageError(
            f"server must be a running Prefect server, got {url} ({type(error).__name__})"
        ) from None
    return url

"""Prefect flows over the stages of dvc.yaml: schedule, retry, show. DVC decides what is stale."""

import datetime
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines.errors import InputError, StageError
from pipelines.orchestration.dvc_stages import read_stages, with_needed
from pipelines.orchestration.stage_tasks import Row, run_stages
from pipelines.orchestration.voting import wait_for_votes

# Stages of each flow by their name before the @; what they need runs (or is cached) too.
FLOWS: dict[str, tuple[str, ...] | None] = {
    "pretraining": ("pretrain",),
    "attack_zoo": ("attack", "evaluate"),
    "curation": ("curate", "annotate", "package"),
    "poisoning": ("poison", "backdoor"),
    "training": ("train_victim", "train_detector", "finetune"),
    "build": None,
}


@task(task_run_name="wait for annotators")
def wait_for_annotators(root: Path, poll: float, limit: float) -> dict[str, Any]:
    """Until the campaign has its votes; the progress is an artifact of the run.

    Args:
        root: Folder of the project.
        poll: Seconds between two looks.
        limit: Seconds to wait at most.

    Returns:
        The status of the campaign at the last look, as `veneer annotate status --json` prints it.
    """
    logger = get_run_logger()
    # typed for flows that are async as well; this one is not
    artifact: Any = create_progress_artifact(0.0, "annotation", description="Votes of the campaign")

    def report(finished: int, tasks: int, votes: int) -> None:
        logger.info(f"{finished} of {tasks} tasks have {votes} votes")
        update_progress_artifact(artifact, 100.0 * finished / max(tasks, 1))

    return wait_for_votes(root, poll, limit, report)


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
    """A flow with a failed stage.

    Args:
        text: Which stages failed, in a sentence.
        table: What became of each stage; kept as an attribute.
    """

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
    """Photographs, perturbed pairs, first stage of DA3Attacker.

    Args:
        root: Folder of the project.
        max_parallel: Number of stages run at a time.
        retries: Times that a failed stage is tried again.
        retry_delay: Seconds before the first retry; doubles with each.

    Returns:
        The table of the stages.

    Raises:
        FlowFailed: When a stage failed.
    """
    return _run("pretraining", root, max_parallel, retries, retry_delay)


@_flow
def attack_zoo(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Every victim trained and attacked in every mode, then measured.

    Args:
        root: Folder of the project.
        max_parallel: Number of stages run at a time.
        retries: Times that a failed stage is tried again.
        retry_delay: Seconds before the first retry; doubles with each.

    Returns:
        The table of the stages.

    Raises:
        FlowFailed: When a stage failed.
    """
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
    """3AE from candidates to scores.

    Args:
        root: Folder of the project.
        max_parallel: Number of stages run at a time.
        retries: Times that a failed stage is tried again.
        retry_delay: Seconds before the first retry; doubles with each.
        wait: Whether to wait for the votes of the campaign.
        poll: Seconds between two looks at it.
        limit: Seconds to wait at most.

    Returns:
        The table of the stages.

    Raises:
        FlowFailed: When a stage failed.
        StageError: When the votes are not there in time or the server refuses.
    """
    folder = Path(root).resolve()
    waiting = (lambda: wait_for_annotators(folder, poll, limit)) if wait else None
    return _run("curation", root, max_parallel, retries, retry_delay, waiting)


@_flow
def poisoning(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Trigger, poisoned data sets and the models that they poison.

    Args:
        root: Folder of the project.
        max_parallel: Number of stages run at a time.
        retries: Times that a failed stage is tried again.
        retry_delay: Seconds before the first retry; doubles with each.

    Returns:
        The table of the stages.

    Raises:
        FlowFailed: When a stage failed.
    """
    return _run("poisoning", root, max_parallel, retries, retry_delay)


@_flow
def training(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Victims, detector and fine-tuned victims.

    Args:
        root: Folder of the project.
        max_parallel: Number of stages run at a time.
        retries: Times that a failed stage is tried again.
        retry_delay: Seconds before the first retry; doubles with each.

    Returns:
        The table of the stages.

    Raises:
        FlowFailed: When a stage failed.
    """
    return _run("training", root, max_parallel, retries, retry_delay)


@_flow
def build(
    root: str = ".", max_parallel: int = 2, retries: int = 2, retry_delay: float = 10
) -> list[dict[str, Any]]:
    """Every stage of dvc.yaml.

    Args:
        root: Folder of the project.
        max_parallel: Number of stages run at a time.
        retries: Times that a failed stage is tried again.
        retry_delay: Seconds before the first retry; doubles with each.

    Returns:
        The table of the stages.

    Raises:
        FlowFailed: When a stage failed.
    """
    return _run("build", root, max_parallel, retries, retry_delay)


def run_flow(
    name: str, *, server: str | None = None, cron: str | None = None, **arguments: Any
) -> list[dict[str, Any]]:
    """Run a flow.

    Args:
        name: A key of FLOWS.
        server: Address of a Prefect server (…/api); else that of the Prefect profile, or a
            temporary one.
        cron: Do not run now, serve it on this schedule until interrupted; not with a temporary
            server, which schedules nothing.
        arguments: Of the flow.

    Returns:
        The table of the stages.

    Raises:
        InputError: For an unknown name or a server that is no address.
        FlowFailed: When a stage failed.
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

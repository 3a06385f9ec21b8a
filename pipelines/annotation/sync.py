"""Tasks to Label Studio and votes from it.

Each task shows a photograph and its adversarial example side by side, in random order, named
"original" and "changed". The server is the only state of a campaign: what is there is listed
before anything is added, so every command may be repeated, also after a kill.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines.annotation.campaign import (
    CampaignPlan,
    Image,
    Links,
    LocalFiles,
    Storage,
    Task,
    controls_in,
    task_batches,
    with_current_urls,
)
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.project import connect_folder, prepare_project, require_project
from pipelines.annotation.transport import Refused
from pipelines.annotation.votes import cursors_of, read_votes, votes_of_task, write_votes
from pipelines.errors import InputError

OVERLAP = timedelta(seconds=60)  # votes may be committed a little out of order
TOO_LARGE = 413  # a proxy's limit on the size of a request
# What votes are made of; the last five are fields of an annotation.
TASK_FIELDS = (
    "id",
    "meta",
    "updated_at",
    "annotations",
    "draft_exists",
    "result",
    "completed_by",
    "was_cancelled",
    "lead_time",
    "created_at",
)


def push(
    server: LabelStudio,
    plan: CampaignPlan,
    tasks: Sequence[Task],
    image: Image,
    storage: Storage,
    *,
    force: bool = False,
    report: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Create or update the project and import those of `tasks` that are not there.

    Tasks that an interrupted import left twice are reduced to one (the one with votes). With
    `Links` the existing ones get the present addresses, for presigned ones expire.

    Args:
        server: The server.
        plan: What the campaign asks.
        tasks: All its questions; not empty.
        image: Gives the PNG of a key.
        storage: Where the pictures lie.
        force: Overwrite a label config that somebody edited on the server.
        report: Called with the number of tasks that are done since the last call.

    Returns:
        Project and its url; counts of tasks: all, added, existing (before), urls_updated,
        duplicates_removed.

    Raises:
        InputError: Nothing to push, or what `prepare_project` and `connect_folder` refuse.
    """
    if not tasks:
        raise InputError("tasks must not be empty, got none")
    project = prepare_project(server, plan, force=force)
    if isinstance(storage, LocalFiles):
        connect_folder(server, project, storage)
    existing, removed = _existing_tasks(server, project)
    missing = [task for task in tasks if task.name not in existing]
    updated = 0
    if existing and isinstance(storage, Links):
        updated = _update_urls(server, project, tasks, storage)
    report(len(tasks) - len(missing))
    for batch in task_batches(missing, image, storage):
        _add_tasks(server, project, batch)
        report(len(batch))
    if missing:  # a request of a push that was killed may have arrived since the tasks were listed
        removed += _existing_tasks(server, project)[1]
    return {
        "project": project,
        "url": f"{server.url}/projects/{project}",
        "tasks": len(tasks),
        "added": len(missing),
        "existing": len(tasks) - len(missing),
        "urls_updated": updated,
        "duplicates_removed": removed,
    }


def _add_tasks(server: LabelStudio, project: int, batch: Sequence[Mapping[str, Any]]) -> None:
    """Import a batch, in halves where the server (or a proxy) finds it too large."""
    try:
        server.add_tasks(project, batch)
    except Refused as error:
        if error.status != TOO_LARGE:
            raise
        if len(batch) == 1:
            name = batch[0]["meta"]["veneer"]["task"]
            raise InputError(
                f"{server.url} takes no request as large as task {name} ({TOO_LARGE}): raise the "
                "limit of its proxy or set campaign.images to local or url"
            ) from None
        half = len(batch) // 2
        _add_tasks(server, project, batch[:half])
        _add_tasks(server, project, batch[half:])


def _existing_tasks(server: LabelStudio, project: int) -> tuple[set[str], int]:
    """Names of veneer's tasks on the server, after removing duplicates; how many were removed."""
    by_name: dict[str, dict[str, Any]] = {}
    duplicates = []
    for task in server.tasks(project, ("id", "meta", "total_annotations"), votes=False):
        name = task_name(task)
        if name is None:
            continue
        other = by_name.setdefault(name, task)
        if other is not task:
            better = max(task, other, key=lambda t: (t["total_annotations"], -t["id"]))
            worse = task if better is other else other
            by_name[name] = better
            if not worse["total_annotations"]:
                duplicates.append(worse["id"])
    for number in duplicates:
        server.delete_task(number)
    return set(by_name), len(duplicates)


def _update_urls(server: LabelStudio, project: int, tasks: Sequence[Task], links: Links) -> int:
    """Give existing tasks the present addresses of their pictures; how many had others."""
    by_name = {task.name: task for task in tasks}
    count = 0
    for existing in server.tasks(project, ("id", "meta", "data"), votes=False):
        task = by_name.get(task_name(existing) or "")
        if task is None:
            continue
        # The sides stay as they are shown, also under another seed.
        stored = existing["meta"]["veneer"]
        task = replace(task, left=stored["left"], expected=stored["expected"])
        data = with_current_urls(task, existing["data"], links)
        if data != existing["data"]:
            server.update_task(existing["id"], data)
            count += 1
    return count


def task_name(task: Mapping[str, Any]) -> str | None:
    """Name of a task that push created.

    Args:
        task: Fields of a task of the server, with meta.

    Returns:
        The name, None for a task that somebody added by hand.
    """
    meta = (task.get("meta") or {}).get("veneer")
    return meta.get("task") if isinstance(meta, dict) else None


def pull(server: LabelStudio, name: str, path: Path, *, everything: bool = False) -> dict[str, Any]:
    """Fetch the votes of tasks that changed since the last pull.

    A changed task's votes replace those it had, so edited and deleted votes follow.

    Args:
        server: The server.
        name: `campaign.name`.
        path: Table of votes (see pipelines.annotation.votes), created where it is missing.
        everything: Read every task, not only those that changed.

    Returns:
        Counts of tasks_read, new votes, votes and valid ones; invalid: reason -> count; changed:
        whether the file did.

    Raises:
        InputError: The campaign has no project, or `path` holds another table.
    """
    project = require_project(server, name)
    label = f"{server.url} project {project['id']}"
    table = read_votes(path)
    cursors = cursors_of(table)
    since = None if everything else cursors.get(label)
    users = {email: number for number, email in server.users().items()}
    controls = controls_in(project["label_config"])
    fetched: dict[int, list[dict[str, Any]]] = {}
    latest = cursors.get(label, "")
    for task in _changed_tasks(server, project["id"], since):
        latest = max(latest, _timestamp(task["updated_at"]))
        if task_name(task) is not None:
            # The list of tasks shows nobody the drafts of others.
            drafts = server.drafts(task["id"]) if task["draft_exists"] else []
            fetched[task["id"]] = list(votes_of_task(task, drafts, label, controls, users))
    stored = table.to_pylist()
    new_rows = [row for votes in fetched.values() for row in votes]
    identities = {_identity(row) for row in new_rows}
    rows = []
    for row in stored:
        if row["server"] != label:
            if _identity(row) not in identities:
                rows.append(row)
            else:  # the server had another address then
                cursors.pop(row["server"], None)
        # Drafts leave no trace in a task's time of change: they are listed anew each time.
        elif not everything and row["task_id"] not in fetched and row["annotation_id"] >= 0:
            rows.append(row)
    rows += new_rows
    reasons = Counter(row["reason"] for row in rows if row["reason"] is not None)
    if latest:
        cursors[label] = latest
    return {
        "tasks_read": len(fetched),
        "new": len(identities - {_identity(row) for row in stored}),
        "votes": len(rows),
        "valid": len(rows) - reasons.total(),
        "invalid": dict(sorted(reasons.items())),
        "changed": write_votes(path, rows, cursors),
    }


def _identity(row: Mapping[str, Any]) -> tuple[int, str]:
    """What identifies a vote, whatever address its server has."""
    return row["annotation_id"], row["created_at"]


def _timestamp(time: datetime) -> str:
    """As the server writes times: the form of the cursors in the table."""
    return time.isoformat().replace("+00:00", "Z")


def _changed_tasks(
    server: LabelStudio, project: int, since: str | None
) -> Iterator[dict[str, Any]]:
    if since is None:
        yield from server.tasks(project, TASK_FIELDS)
        return
    moment = datetime.fromisoformat(since) - OVERLAP
    seen = set()
    for column, operator, kind, value in (
        ("updated_at", "greater_or_equal", "Datetime", moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")),
        ("draft_exists", "equal", "Boolean", True),
    ):
        condition = {
            "filter": f"filter:tasks:{column}",
            "operator": operator,
            "type": kind,
            "value": value,
        }
        for task in server.tasks(project, TASK_FIELDS, [condition]):
            if task["id"] not in seen:
                seen.add(task["id"])
                yield task

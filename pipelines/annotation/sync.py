"""A labelling campaign in Label Studio: pushing tasks, watching them, pulling votes.

Each task shows a photograph and its adversarial example side by side, in random order, named
"original" and "changed". The server is the only state of a campaign: what is there is listed
before anything is added, so every command may be repeated, also after a kill.
"""

import hashlib
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines.annotation.campaign import (
    Image,
    Links,
    LocalFiles,
    Plan,
    Storage,
    Task,
    label_config,
    names_in,
    renewed,
    task_batches,
)
from pipelines.annotation.label_studio import LabelStudio, Refused
from pipelines.annotation.votes import (
    cursors_of,
    read_votes,
    valid,
    voter,
    votes_of_task,
    write_votes,
)
from pipelines.errors import InputError

MARK = "veneer-campaign"
OVERLAP = timedelta(seconds=60)  # votes may be committed a little out of order


def push(
    server: LabelStudio,
    plan: Plan,
    tasks: Sequence[Task],
    image: Image,
    storage: Storage,
    *,
    force: bool = False,
    report: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Create or update the project and import those of `tasks` that are not there.

    Tasks that an interrupted import left twice are reduced to one (the one with votes). With
    `Links` those that are there get the addresses of today, for presigned ones expire. Returns:
    project, counts of tasks, added, there before, with new addresses, removed duplicates.
    """
    if not tasks:
        raise InputError("tasks must not be empty, got none")
    project = _prepare_project(server, plan, force=force)
    if isinstance(storage, LocalFiles):
        _connect_folder(server, project["id"], storage)
    there, removed = _existing(server, project["id"])
    missing = [task for task in tasks if task.name not in there]
    readdressed = 0
    if there and isinstance(storage, Links):
        readdressed = _readdress(server, project["id"], tasks, storage)
    report(len(tasks) - len(missing))
    for batch in task_batches(missing, image, storage):
        server.add_tasks(project["id"], batch)
        report(len(batch))
    if missing:  # a request of a push that was killed may have arrived since the tasks were listed
        removed += _existing(server, project["id"])[1]
    return {
        "project": project["id"],
        "url": f"{server.url}/projects/{project['id']}",
        "tasks": len(tasks),
        "added": len(missing),
        "there": len(tasks) - len(missing),
        "readdressed": readdressed,
        "duplicates_removed": removed,
    }


def _existing(server: LabelStudio, project: int) -> tuple[set[str], int]:
    """Names of our tasks on the server, after removing duplicates, and how many were removed."""
    found: dict[str, dict[str, Any]] = {}
    twice = []
    for task in server.tasks(project, ("id", "meta", "total_annotations"), votes=False):
        name = _ours(task)
        if name is None:
            continue
        other = found.setdefault(name, task)
        if other is not task:
            better = max(task, other, key=lambda t: (t["total_annotations"], -t["id"]))
            worse = task if better is other else other
            found[name] = better
            if not worse["total_annotations"]:
                twice.append(worse["id"])
    for number in twice:
        server.request("DELETE", f"/api/tasks/{number}/")
    return set(found), len(twice)


def _readdress(server: LabelStudio, project: int, tasks: Sequence[Task], links: Links) -> int:
    """Give those of `tasks` that are there the addresses of today; says how many had others."""
    ours = {task.name: task for task in tasks}
    count = 0
    for old in server.tasks(project, ("id", "meta", "data"), votes=False):
        task = ours.get(_ours(old) or "")
        if task is None:
            continue
        about = old["meta"]["veneer"]  # the sides stay as they are shown, also under another seed
        data = renewed(
            replace(task, left=about["left"], expected=about["expected"]), old["data"], links
        )
        if data != old["data"]:
            server.request("PATCH", f"/api/tasks/{old['id']}/", json={"data": data})
            count += 1
    return count


def _ours(task: Mapping[str, Any]) -> str | None:
    """Name of a task that push made, None for one that somebody added by hand."""
    about = (task.get("meta") or {}).get("veneer")
    return about.get("task") if isinstance(about, dict) else None


def _digest(config: str) -> str:
    return hashlib.sha256(ET.canonicalize(config, strip_text=True).encode()).hexdigest()[:12]


def find_project(server: LabelStudio, name: str) -> dict[str, Any] | None:
    """The project of a campaign, by the mark in its description, whatever its title is now."""
    mark = re.compile(rf"^{MARK}: {re.escape(name)} \[([0-9a-f]{{12}})\]$", re.MULTILINE)
    marked, titled = [], []
    for project in server.projects():
        hit = mark.search(project["description"] or "")
        if hit:
            marked.append({**project, "written": hit[1]})
        elif project["title"] == name:
            titled.append(project)
    if len(marked) > 1:
        numbers = ", ".join(str(project["id"]) for project in marked)
        raise InputError(f"campaign.name must name one project, got {name!r} in {numbers}")
    if not marked and titled:
        raise InputError(
            f"project {titled[0]['id']} is called {name!r} and is not (or, after an edit of its "
            "description, no longer) marked as a campaign of veneer: choose another campaign.name"
        )
    return marked[0] if marked else None


def _prepare_project(server: LabelStudio, plan: Plan, *, force: bool) -> dict[str, Any]:
    config = label_config(plan.artefacts)
    mark = f"{MARK}: {plan.name} [{_digest(config)}]"
    wanted = {
        "label_config": config,
        "description": f"Opinions on adversarial examples.\n{mark}",
        "maximum_annotations": plan.votes,
    }
    project = find_project(server, plan.name)
    if project is None:
        made: dict[str, Any] = server.request(
            "POST",
            "/api/projects",
            json={"title": plan.name, "show_skip_button": True, **wanted},
        )
        return made
    edited = _digest(project["label_config"]) != project["written"]
    if edited and not force:
        raise InputError(
            f"label config of project {project['id']} was edited on the server since push wrote "
            "it: restore it there, give --force to write it again, or choose another campaign.name"
        )
    if not edited and project["written"] == _digest(config):
        wanted.pop("label_config")
    else:
        _check_used(server, project["id"], plan)
    try:
        server.request("PATCH", f"/api/projects/{project['id']}/", json=wanted)
    except Refused as error:
        raise InputError(
            f"label config conflicts with votes in project {project['id']}: keep "
            f"campaign.artefacts as they were or choose another campaign.name ({error.detail})"
        ) from None
    return project


def _check_used(server: LabelStudio, project: int, plan: Plan) -> None:
    """The server itself lets choices go that votes have used."""
    summary = server.request("GET", f"/api/projects/{project}/summary")
    used = summary["created_labels"].get("artefacts", {})
    lost = sorted(used.keys() - set(plan.artefacts))
    if lost:
        raise InputError(
            f"label config conflicts with votes in project {project}: campaign.artefacts must keep "
            f"{', '.join(lost)}, which votes use, or choose another campaign.name"
        )


def _connect_folder(server: LabelStudio, project: int, storage: LocalFiles) -> None:
    """Let the project serve the folder; nothing is synchronised from it."""
    path = storage.root / storage.folder
    path.mkdir(parents=True, exist_ok=True)
    there = server.request("GET", "/api/storages/localfiles", params={"project": project})
    if any(one["path"] == str(path) for one in there):
        return
    body = {"project": project, "path": str(path), "title": "veneer", "use_blob_urls": True}
    try:
        server.request("POST", "/api/storages/localfiles", json=body)
    except Refused as error:
        raise InputError(
            f"folder {path} must lie below the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT "
            f"with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true, the server says: {error.detail}"
        ) from None


def _require(server: LabelStudio, name: str) -> dict[str, Any]:
    project = find_project(server, name)
    if project is None:
        raise InputError(f"campaign {name!r} has no project yet: run `veneer annotate push` first")
    return project


def status(server: LabelStudio, name: str) -> dict[str, Any]:
    """Progress of a campaign: tasks by kind, finished ones, votes per annotator.

    Finished is what has as many votes that count as the campaign wants.
    """
    project = _require(server, name)
    addresses = server.users()
    known = names_in(project["label_config"])
    people: dict[int | None, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for task in server.tasks(project["id"], _PULLED):
        if _ours(task) is None:
            counts["foreign"] += 1
            continue
        counts[task["meta"]["veneer"]["kind"]] += 1
        votes = 0
        for vote in task["annotations"]:
            state = "skipped" if vote["was_cancelled"] else "votes"
            people.setdefault(voter(vote), Counter())[state] += 1
            votes += state == "votes"
        good = len(valid(votes_of_task(task, [], server.url, known, {})))
        counts["votes"] += votes
        counts["invalid"] += votes - good
        counts["drafts"] += bool(task["draft_exists"])
        counts["finished"] += good >= project["maximum_annotations"]
    return {
        "project": project["id"],
        "title": project["title"],
        "url": f"{server.url}/projects/{project['id']}",
        "votes_wanted": project["maximum_annotations"],
        **{n: counts[n] for n in ("item", "repeat", "gold", "foreign", "finished", "votes")},
        "invalid": counts["invalid"],
        "drafts": counts["drafts"],
        "annotators": {
            _called(number, addresses): {"votes": own["votes"], "skipped": own["skipped"]}
            for number, own in sorted(people.items(), key=lambda p: (p[0] is None, p[0]))
        },
    }


def _called(number: int | None, addresses: Mapping[int, str]) -> str:
    return "unknown" if number is None else addresses.get(number, f"user {number}")


_PULLED = (
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


def pull(server: LabelStudio, name: str, path: Path, *, everything: bool = False) -> dict[str, Any]:
    """Fetch votes of tasks that changed since the last pull (or `everything`) into `path`.

    A changed task's votes replace those it had, so edited and deleted votes follow. Returns:
    counts of tasks read, votes, valid ones, reasons of the others, and whether the file changed.
    """
    project = _require(server, name)
    label = f"{server.url} project {project['id']}"
    before = read_votes(path)
    cursors = cursors_of(before)
    since = None if everything else cursors.get(label)
    users = {address: number for number, address in server.users().items()}
    known = names_in(project["label_config"])
    changed: dict[int, list[dict[str, Any]]] = {}
    latest = cursors.get(label, "")
    for task in _changed_tasks(server, project["id"], since):
        latest = max(latest, task["updated_at"])
        if _ours(task) is not None:
            drafts = []
            if task["draft_exists"]:  # the list of tasks shows nobody the drafts of others
                drafts = server.request("GET", f"/api/tasks/{task['id']}/drafts")
            changed[task["id"]] = list(votes_of_task(task, drafts, label, known, users))
    stored = before.to_pylist()
    fetched = [row for votes in changed.values() for row in votes]
    again = {_vote(row) for row in fetched}
    rows = []
    for row in stored:
        if row["server"] != label:
            if _vote(row) not in again:
                rows.append(row)
            else:  # the server had another address then
                cursors.pop(row["server"], None)
        # Drafts leave no trace in a task's time of change: they are listed anew each time.
        elif not everything and row["task_id"] not in changed and row["annotation_id"] >= 0:
            rows.append(row)
    rows += fetched
    reasons = Counter(row["reason"] for row in rows if row["reason"] is not None)
    if latest:
        cursors[label] = latest
    return {
        "tasks_read": len(changed),
        "new": len(again - {_vote(row) for row in stored}),
        "votes": len(rows),
        "valid": len(rows) - reasons.total(),
        "invalid": dict(sorted(reasons.items())),
        "changed": write_votes(path, rows, cursors),
    }


def _vote(row: Mapping[str, Any]) -> tuple[int, str]:
    """What tells a vote, whatever address its server has."""
    return row["annotation_id"], row["created_at"]


def _changed_tasks(
    server: LabelStudio, project: int, since: str | None
) -> Iterator[dict[str, Any]]:
    if since is None:
        yield from server.tasks(project, _PULLED)
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
        for task in server.tasks(project, _PULLED, [condition]):
            if task["id"] not in seen:
                seen.add(task["id"])
                yield task

"""The progress of a labelling campaign."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipelines.annotation.campaign import controls_in
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.project import require_project
from pipelines.annotation.sync import TASK_FIELDS, task_name
from pipelines.annotation.votes import valid, voter, votes_of_task


def status(server: LabelStudio, name: str) -> dict[str, Any]:
    """Count what a campaign has and still waits for.

    Args:
        server: The server.
        name: `campaign.name`.

    Returns:
        Project, title, url, votes_wanted (per task); counts of tasks by kind (item, repeat, gold,
        foreign), of finished ones (with as many votes that count as are wanted), of votes,
        invalid votes and drafts; annotators: votes and skipped tasks of each.

    Raises:
        InputError: The campaign has no project.
    """
    project = require_project(server, name)
    emails = server.users()
    controls = controls_in(project["label_config"])
    annotators: dict[int | None, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for task in server.tasks(project["id"], TASK_FIELDS):
        if task_name(task) is None:
            counts["foreign"] += 1
            continue
        counts[task["meta"]["veneer"]["kind"]] += 1
        votes = 0
        for annotation in task["annotations"]:
            state = "skipped" if annotation["was_cancelled"] else "votes"
            annotators.setdefault(voter(annotation), Counter())[state] += 1
            votes += state == "votes"
        good = len(valid(votes_of_task(task, [], server.url, controls, {})))
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
            _display_name(number, emails): {"votes": n["votes"], "skipped": n["skipped"]}
            for number, n in sorted(annotators.items(), key=lambda p: (p[0] is None, p[0]))
        },
    }


def _display_name(number: int | None, emails: Mapping[int, str]) -> str:
    return "unknown" if number is None else emails.get(number, f"user {number}")

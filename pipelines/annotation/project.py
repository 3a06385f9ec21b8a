"""The Label Studio project of a campaign: how it is found, created and kept up to date."""

import hashlib
import re
import xml.etree.ElementTree as ET
from typing import Any

from pipelines.annotation.campaign import CampaignPlan, LocalFiles, label_config
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.transport import Refused
from pipelines.errors import InputError

MARK = "veneer-campaign"  # a line of the description: mark, campaign.name, digest of the config


def find_project(server: LabelStudio, name: str) -> dict[str, Any] | None:
    """Find the project of a campaign by the mark in its description, whatever its title is now.

    Args:
        server: The server.
        name: `campaign.name`.

    Returns:
        The project's fields and, as `pushed_digest`, the digest of the label config that push
        wrote; None when there is no such project.

    Raises:
        InputError: Several projects have the mark, or one has the title and not the mark.
    """
    mark = re.compile(rf"^{MARK}: {re.escape(name)} \[([0-9a-f]{{12}})\]$", re.MULTILINE)
    marked, titled = [], []
    for project in server.projects():
        match = mark.search(project["description"] or "")
        if match:
            marked.append({**project, "pushed_digest": match[1]})
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


def require_project(server: LabelStudio, name: str) -> dict[str, Any]:
    """Find the project of a campaign as `find_project` does; there must be one.

    Args:
        server: The server.
        name: `campaign.name`.

    Returns:
        The project's fields and `pushed_digest`.

    Raises:
        InputError: There is no such project, or `find_project` refuses.
    """
    project = find_project(server, name)
    if project is None:
        raise InputError(f"campaign {name!r} has no project yet: run `veneer annotate push` first")
    return project


def prepare_project(server: LabelStudio, plan: CampaignPlan, *, force: bool) -> int:
    """Create the project of a campaign or bring it up to date.

    Args:
        server: The server.
        plan: What the campaign asks.
        force: Overwrite a label config that somebody edited on the server.

    Returns:
        Number of the project.

    Raises:
        InputError: The label config was edited, or the new one conflicts with votes.
    """
    config = label_config(plan.artefacts)
    mark = f"{MARK}: {plan.name} [{_digest(config)}]"
    fields = {
        "label_config": config,
        "description": f"Opinions on adversarial examples.\n{mark}",
        "maximum_annotations": plan.votes,
    }
    project = find_project(server, plan.name)
    if project is None:
        created = server.create_project(title=plan.name, show_skip_button=True, **fields)
        return int(created["id"])
    number = int(project["id"])
    edited = _digest(project["label_config"]) != project["pushed_digest"]
    if edited and not force:
        raise InputError(
            f"label config of project {number} was edited on the server since push wrote "
            "it: restore it there, give --force to write it again, or choose another campaign.name"
        )
    if not edited and project["pushed_digest"] == _digest(config):
        fields.pop("label_config")
    else:
        _check_used_choices(server, number, plan)
    try:
        server.update_project(number, **fields)
    except Refused as error:
        raise InputError(
            f"label config conflicts with votes in project {number}: keep "
            f"campaign.artefacts as they were or choose another campaign.name ({error.detail})"
        ) from None
    return number


def _digest(config: str) -> str:
    return hashlib.sha256(ET.canonicalize(config, strip_text=True).encode()).hexdigest()[:12]


def _check_used_choices(server: LabelStudio, project: int, plan: CampaignPlan) -> None:
    """Refuse to take away choices that votes use: the server itself would let them go."""
    used = server.used_choices(project).get("artefacts", {})
    lost = sorted(used.keys() - set(plan.artefacts))
    if lost:
        raise InputError(
            f"label config conflicts with votes in project {project}: campaign.artefacts must keep "
            f"{', '.join(lost)}, which votes use, or choose another campaign.name"
        )


def connect_folder(server: LabelStudio, project: int, storage: LocalFiles) -> None:
    """Let the project serve the folder of `storage`; nothing is synchronised from it.

    Args:
        server: The server.
        project: Number of the project.
        storage: The folder, created where it is missing.

    Raises:
        InputError: The server may not serve the folder.
    """
    path = storage.root / storage.folder
    path.mkdir(parents=True, exist_ok=True)
    if str(path) in server.local_folders(project):
        return
    try:
        server.add_local_folder(project, str(path))
    except Refused as error:
        raise InputError(
            f"folder {path} must lie below the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT "
            f"with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true, the server says: {error.detail}"
        ) from None

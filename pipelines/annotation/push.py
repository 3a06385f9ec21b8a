"""`veneer annotate push`: the campaign of the parameters, with pictures of the candidates."""

import csv
import os
from pathlib import Path
from typing import Any

from pipelines.annotation.campaign import (
    CampaignPlan,
    Inline,
    Links,
    LocalFiles,
    Storage,
    export_images,
    plan_tasks,
)
from pipelines.annotation.candidates import CandidateImages, read_pairs
from pipelines.annotation.label_studio import from_environment
from pipelines.annotation.sync import push
from pipelines.errors import InputError
from pipelines.execution.progress import reporter
from pipelines.params import Params
from pipelines.storage.layout import Layout

DOCUMENT_ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"  # the server's own variable


def plan_of(params: Params) -> CampaignPlan:
    """Read what `campaign` of the parameters asks for.

    Args:
        params: The parameters.

    Returns:
        The plan, with the seed of the parameters.
    """
    c = params.campaign
    return CampaignPlan(c.name, c.votes, c.gold, c.repeats, tuple(c.artefacts), params.seed)


def push_campaign(
    params: Params, layout: Layout, *, urls: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Push the campaign of the parameters (see pipelines.annotation.sync.push).

    Args:
        params: The parameters.
        layout: Where candidates and their pictures lie.
        urls: CSV file with the columns key and url, the addresses of pictures that lie elsewhere.
        force: Overwrite a label config that somebody edited on the server.

    Returns:
        What push returns.

    Raises:
        InputError: Wrong parameters, addresses or environment.
    """
    server = from_environment()
    storage = _storage(params, urls)
    pairs = read_pairs(layout.candidates)
    images = CandidateImages(layout.root / "datasets", layout.candidates)
    tasks = plan_tasks(pairs, plan_of(params))
    with reporter("push", len(tasks), show=True, unit="tasks") as bar:
        return push(server, plan_of(params), tasks, images, storage, force=force, report=bar.done)


def export_campaign(params: Params, layout: Layout, out: Path) -> int:
    """Write the pictures of all tasks as PNG files.

    Args:
        params: The parameters.
        layout: Where candidates and their pictures lie.
        out: Folder, created where it is missing.

    Returns:
        Number of pictures.

    Raises:
        InputError: `curate` has not run.
        StageError: A candidate is in no shard.
    """
    images = CandidateImages(layout.root / "datasets", layout.candidates)
    return export_images(plan_tasks(read_pairs(layout.candidates), plan_of(params)), images, out)


def _storage(params: Params, urls: Path | None) -> Storage:
    kind = params.campaign.images
    if urls is not None:
        return Links(params.campaign.url_template, _addresses(urls))
    if kind == "url":
        if params.campaign.url_template is None:
            raise InputError("campaign.url_template or --urls must be given for images: url")
        return Links(params.campaign.url_template, {})
    if kind == "local":
        root = os.environ.get(DOCUMENT_ROOT)
        if not root:
            raise InputError(f"{DOCUMENT_ROOT} must be the server's folder for images: local")
        folder = "".join(c if c.isalnum() else "-" for c in params.campaign.name.lower())
        return LocalFiles(Path(root).resolve(), folder)
    return Inline()


def _addresses(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"urls must be a readable CSV file, got {path} ({error})") from None
    if not {"key", "url"} <= set(names):
        raise InputError(f"urls must have columns key and url, got {', '.join(names) or 'none'}")
    for row in rows:
        if not (row["url"] or "").strip():  # None: the row ends before the column
            raise InputError(f"urls must have an address in each row, got none for {row['key']!r}")
    return {row["key"]: row["url"].strip() for row in rows}

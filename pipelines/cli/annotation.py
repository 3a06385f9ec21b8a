"""`veneer annotate`: a stage, and the labelling campaign before it."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.common import (
    PARAMS,
    ROOT,
    JsonOption,
    ParamsOption,
    RootOption,
    print_result,
    setup,
)

app = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")


@app.callback()
def annotate_command(
    context: typer.Context,
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Votes become opinion scores: annotations/labels; or push, status, pull of a campaign.

    The commands talk to the Label Studio server of LABEL_STUDIO_URL (default
    http://localhost:8080) with the token of LABEL_STUDIO_API_KEY.
    """
    if context.invoked_subcommand is not None:
        return
    p, layout = setup(params, root)
    from pipelines.reports.tables import annotation_table
    from pipelines.stages.annotate import run_annotate

    report = run_annotate(p, layout)
    print_result(report, annotation_table(report), as_json)


@app.command("push")
def push_command(
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    urls: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Addresses (key,url), e.g. presigned; see --export."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Only write the pictures there, to be uploaded."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write the label config again if it was edited.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create or update the project, add the tasks that are not there yet, renew addresses."""
    p, layout = setup(params, root)
    from pipelines.annotation.push import export_campaign, push_campaign

    if export is not None:
        count = export_campaign(p, layout, export)
        print_result({"images": count, "folder": str(export)}, f"{export}: {count} images", as_json)
        return
    summary = push_campaign(p, layout, urls=urls, force=force)
    text = (
        f"{summary['url']}: {summary['tasks']} tasks, {summary['added']} added, "
        f"{summary['existing']} existing, {summary['urls_updated']} with new addresses, "
        f"{summary['duplicates_removed']} duplicates removed"
    )
    print_result(summary, text, as_json)


@app.command("status")
def status_command(params: ParamsOption = PARAMS, as_json: JsonOption = False) -> None:
    """Progress of the campaign and of each annotator."""
    from pipelines.annotation.label_studio import from_environment
    from pipelines.annotation.status import status
    from pipelines.params import load_params
    from pipelines.reports.tables import campaign_table

    summary = status(from_environment(), load_params(params).campaign.name)
    print_result(summary, campaign_table(summary), as_json)


@app.command("pull")
def pull_command(
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    full: Annotated[
        bool, typer.Option("--full", help="Read every task again, not only what changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch new, changed and deleted votes, check them: annotations/3ae.parquet."""
    p, layout = setup(params, root)
    from pipelines.annotation.label_studio import from_environment
    from pipelines.annotation.sync import pull

    summary = pull(from_environment(), p.campaign.name, layout.votes, everything=full)
    lines = [
        f"{layout.votes}: {summary['votes']} votes ({summary['new']} new), {summary['valid']} count"
        + ("" if summary["changed"] else "; nothing changed")
    ]
    lines += [f"  {n} do not: {reason}" for reason, n in summary["invalid"].items()]
    print_result(summary, "\n".join(lines), as_json)

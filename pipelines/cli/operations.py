"""Tools around the pipeline: running, checking, planning, publishing it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.common import (
    PARAMS,
    ROOT,
    TOOLS,
    JsonOption,
    ParamsOption,
    RootOption,
    print_result,
)

app = typer.Typer()


@app.command("flow", rich_help_panel=TOOLS)
def flow_command(
    name: Annotated[
        str,
        typer.Argument(help="pretraining, attack_zoo, curation, poisoning, training or build."),
    ],
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A running Prefect server; else a temporary one."),
    ] = None,
    max_parallel: Annotated[int, typer.Option(min=1, help="Stages at a time.")] = 2,
    retries: Annotated[int, typer.Option(min=0, help="Retries of a stage that failed.")] = 2,
    retry_delay: Annotated[
        float, typer.Option(min=0, help="Seconds before the first retry; doubles.")
    ] = 10,
    wait: Annotated[
        bool, typer.Option("--wait", help="For curation: wait for the annotators' votes.")
    ] = False,
    poll: Annotated[
        float, typer.Option(min=0.1, help="With --wait: seconds between checks.")
    ] = 300,
    cron: Annotated[
        str | None, typer.Option(help="Serve on this schedule of --server instead of running now.")
    ] = None,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Run the stages as a Prefect flow: independent ones in parallel, retried."""
    from pipelines.orchestration.flows import FlowFailed, run_flow
    from pipelines.reports.tables import stages_table

    waiting = {"wait": wait, "poll": poll} if name == "curation" else {}
    if wait and not waiting:
        raise ValueError(f"wait must be used with curation, got {name}")
    try:
        table = run_flow(
            name,
            server=server,
            cron=cron,
            root=str(root),
            max_parallel=max_parallel,
            retries=retries,
            retry_delay=retry_delay,
            **waiting,
        )
    except FlowFailed as error:
        print_result({"flow": name, "stages": error.table}, stages_table(error.table), as_json)
        raise
    print_result({"flow": name, "stages": table}, stages_table(table), as_json)


@app.command("doctor", rich_help_panel=TOOLS)
def doctor_command(root: RootOption = ROOT, as_json: JsonOption = False) -> None:
    """Check versions, GPU, disk, extras and servers; exit code 1 if something would not work."""
    from dataclasses import asdict

    from pipelines.orchestration.doctor import examine, known_servers

    findings = examine(root, known_servers())
    width = max(len(finding.what) for finding in findings)
    lines = [f"{f.state:<8}  {f.what:<{width}}  {f.detail}" for f in findings]
    print_result({"findings": [asdict(f) for f in findings]}, "\n".join(lines), as_json)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command("code-deps", rich_help_panel=TOOLS)
def code_deps_command(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where dvc.yaml is out of date.")
    ] = False,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write the code dependencies of every stage into dvc.yaml, from what the stages import.

    Run it after a change of imports. Left out are modules that no result depends on: where shards
    are made (execution), parameters (compared by value), tables of names, and what writes text
    for people (cards, reports, publishing).
    """
    from pipelines.orchestration.code_deps import update_code_dependencies

    stale = update_code_dependencies(root, check=check)
    state = "up to date" if not stale else "out of date: run `veneer code-deps`"
    print_result(
        {"out_of_date": stale, "written": stale and not check},
        f"dvc.yaml {'written' if stale and not check else f'is {state}'}",
        as_json,
    )
    if stale and check:
        raise typer.Exit(1)


@app.command("plan", rich_help_panel=TOOLS)
def plan_command(
    images: Annotated[int, typer.Option(min=1, help="Photographs.")] = 250_000,
    victims: Annotated[int, typer.Option(min=1, help="Victims.")] = 26,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the simulated cluster.")] = 64,
    height: Annotated[int, typer.Option(min=32, help="Height of a photograph, pixels.")] = 480,
    width: Annotated[int, typer.Option(min=32, help="Width of a photograph, pixels.")] = 640,
    gpu_factor: Annotated[
        float | None, typer.Option(min=1, help="Assume that a GPU replaces this many workers.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file, else stdout.")] = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Estimate a full-size run: costs measured here, the schedule simulated."""
    from dataclasses import asdict

    from pipelines.orchestration.capacity import measure, scale_page, simulate
    from pipelines.params import load_params
    from pipelines.storage.files import atomic_file

    p = load_params(params)
    side = (height, width)
    costs = measure(p, side)
    steps = simulate(costs, p, images=images, victims=victims, workers=workers)
    factor = f" --gpu-factor {gpu_factor:g}" if gpu_factor else ""
    page = scale_page(
        costs,
        steps,
        p,
        images=images,
        victims=victims,
        workers=workers,
        side=side,
        gpu_factor=gpu_factor,
        command=f"veneer plan --params {params} --images {images} --victims {victims} "
        f"--workers {workers}{factor} --out FILE",
    )
    if out is not None:
        with atomic_file(out) as file:
            file.write(page.encode())
    summary = {"costs": asdict(costs), "steps": [asdict(step) for step in steps]}
    print_result(summary, f"{out} written" if out else page, as_json)


@app.command("publish", rich_help_panel=TOOLS)
def publish_command(
    dataset: Annotated[
        str,
        typer.Argument(help="A folder, or a name under datasets/ or models/ (aes/net-restricted)."),
    ],
    repo: Annotated[str, typer.Option(metavar="ID", help="Repository on the Hub: OWNER/NAME.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Carry it out; without, only print the plan.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Open it to everybody at the end. Default: private.")
    ] = False,
    gate: Annotated[
        bool | None,
        typer.Option(
            "--gate/--no-gate", help="Access on request. Default: for adversarial and poisoned."
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Tag; default: v- and the SHA-256 of the content.")
    ] = None,
    allow_simulated: Annotated[
        bool,
        typer.Option("--allow-simulated", help="Accept simulated scores, which no person gave."),
    ] = False,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Publish a data set or a model on the Hugging Face Hub: checked, private, tagged.

    Prints the plan; --yes carries it out. The token is that of HF_TOKEN or of `hf auth login`.
    """
    from pipelines.publishing.checks import check, resolve

    folder = resolve(dataset, root)
    publishable = check(folder, allow_simulated=allow_simulated)
    from pipelines.publishing.hub import Hub, record_publication
    from pipelines.reports.tables import publication_table

    hub = Hub()
    plan = hub.plan(publishable, repo, tag=tag, public=public, gated=gate)
    summary = plan.summary()
    if plan.nothing:
        print_result(
            {**summary, "done": "nothing"}, f"{repo}: nothing to do, {plan.tag} is there", as_json
        )
        return
    if not yes:
        text = publication_table(summary) + "\nNothing was done: --yes carries this out."
        print_result({**summary, "done": "planned"}, text, as_json)
        return
    commit = hub.publish(plan, report=lambda text: print(text, file=sys.stderr))
    name = os.path.relpath(folder, root)
    record_publication(root / "datasets" / "published.json", name, plan, publishable, commit)
    print_result(
        {**summary, "done": "published", "commit": commit},
        f"{repo}: published as {plan.tag}, commit {commit}",
        as_json,
    )

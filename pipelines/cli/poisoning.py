"""Commands of the stages of poisoned sets; `veneer trigger`."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.common import (
    PARAMS,
    ROOT,
    STAGES,
    JsonOption,
    ParamsOption,
    RootOption,
    print_counts,
    print_result,
    setup,
)

app = typer.Typer()
trigger_app = typer.Typer(help="Triggers of poisoned data sets.", no_args_is_help=True)


@app.command("search_trigger", rich_help_panel=STAGES)
def search_trigger_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Search a trigger on the subset to be poisoned: models/trigger."""
    p, layout = setup(params, root)
    from pipelines.stages.search_trigger import run_search_trigger

    report = run_search_trigger(p, layout)
    print_result(
        report,
        f"{layout.trigger}: {report['kind']}, {report['psnr']:.2f} dB; moves the surrogate by "
        f"{report['raised']:+.1f} and {report['lowered']:+.1f} % of the scale",
        as_json,
    )


SchemeArgument = Annotated[str, typer.Argument(help="p: poisoned labels, c: clean labels.")]


@app.command("poison", rich_help_panel=STAGES)
def poison_command(
    scheme: SchemeArgument,
    hide_labels: Annotated[
        bool,
        typer.Option(
            help="Also write a copy that does not say what is poisoned, with its key beside it."
        ),
    ] = False,
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Plant the trigger in a share of a training set: datasets/poisoned-*."""
    p, layout = setup(params, root)
    from pipelines.stages.poison import run_poison

    manifest = run_poison(p, layout, scheme, hide_labels=hide_labels)
    print_counts(manifest, layout.poisoned(scheme), as_json)


@app.command("backdoor", rich_help_panel=STAGES)
def backdoor_command(
    scheme: Annotated[
        str,
        typer.Argument(
            help="p, c, clean for a model without poison, or filtered for one that sees of p only "
            "the rows not marked as poisoned."
        ),
    ],
    victim: Annotated[str, typer.Argument(help="Name under `quality` in the parameters.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Train a quality model on a poisoned set, measure it and two defenses: reports/backdoor."""
    p, layout = setup(params, root)
    p.quality_model(victim)
    from pipelines.reports.tables import backdoor_table
    from pipelines.stages.backdoor import run_backdoor

    report = run_backdoor(p, layout, scheme, victim)
    print_result(report, backdoor_table({f"{scheme}-{victim}": report}), as_json)


@app.command("report_backdoor", rich_help_panel=STAGES)
def report_backdoor_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Compare the backdoored models: reports/backdoor.json and the data of the plots."""
    p, layout = setup(params, root)
    from pipelines.reports.tables import backdoor_table
    from pipelines.stages.report_backdoor import run_report_backdoor

    report = run_report_backdoor(p, layout)
    print_result(report, backdoor_table(report), as_json)


@trigger_app.command("show")
def trigger_show_command(
    out: Annotated[Path, typer.Argument(help="PNG to write.")] = Path("reports/trigger.png"),
    trigger: Annotated[
        Path | None, typer.Option(help="Trigger file; default: that of models/trigger.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Picture to show it on; default: the first test picture.")
    ] = None,
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Draw the tile, its spectrum, its PSNR and an example at several alpha."""
    _, layout = setup(params, root)
    from pipelines.reports.trigger_sheet import show_trigger

    about = show_trigger(trigger or layout.trigger, out, clean=layout.clean, image=image)
    print_result(about, f"{out} written: {about['kind']}, {about['psnr']:.2f} dB", as_json)

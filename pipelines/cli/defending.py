"""Commands of the stages from annotated examples to models that resist."""

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


@app.command("package", rich_help_panel=STAGES)
def package_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Package annotated adversarial examples with their photographs: datasets/3ae."""
    p, layout = setup(params, root)
    from pipelines.stages.package import run_package

    print_counts(run_package(p, layout), layout.threeae, as_json)


@app.command("train_detector", rich_help_panel=STAGES)
def train_detector_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Train a detector of adversarial examples on datasets/3ae: models/detector."""
    p, layout = setup(params, root)
    from pipelines.reports.tables import detector_table
    from pipelines.stages.train_detector import run_train_detector

    report = run_train_detector(p, layout)
    print_result(report, detector_table(report), as_json)


@app.command("finetune", rich_help_panel=STAGES)
def finetune_command(
    victim: Annotated[
        str, typer.Argument(help="Name under `victims` in the parameters, or module:callable.")
    ] = "",
    victim_option: Annotated[str, typer.Option("--victim", help="The same, as an option.")] = "",
    data: Annotated[
        str, typer.Option("--data", help="3AE: a folder or a Hub id (for module:callable).")
    ] = "datasets/3ae",
    clean: Annotated[
        str | None, typer.Option("--clean", help="The photographs, if 3AE does not hold them.")
    ] = None,
    scale: Annotated[
        tuple[float, float], typer.Option("--scale", help="Ends of the scale of a module:callable.")
    ] = (0.0, 10.0),
    size: Annotated[
        int, typer.Option("--size", min=32, help="Side of the input of a module:callable, pixels.")
    ] = 224,
    out: Annotated[Path, typer.Option("--out", help="Where a module:callable is written.")] = Path(
        "models/finetuned/model"
    ),
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model on datasets/3ae so that it resists: models/finetuned."""
    p, layout = setup(params, root)
    name = victim or victim_option
    from pipelines.reports.tables import finetune_table
    from pipelines.stages.finetune import finetune_model, run_finetune

    if ":" in name:
        from victims.base import ScoreScale

        ends = ScoreScale.of(*scale)
        report = finetune_model(name, data, out, ends, p, clean, size)
    else:
        p.victim(name)
        report = run_finetune(p, layout, name, data=data)
    print_result(report, finetune_table(report), as_json)


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Score stored examples again and measure: reports/robustness.json."""
    p, layout = setup(params, root)
    from pipelines.reports.tables import robustness_table
    from pipelines.stages.evaluate import run_evaluate

    report = run_evaluate(p, layout)
    print_result(report, robustness_table(report), as_json)

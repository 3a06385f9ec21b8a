"""Commands of the stages from photographs to chosen adversarial examples."""

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


@app.command("import", rich_help_panel=STAGES)
def import_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Import the photographs of a source: datasets/clean."""
    p, layout = setup(params, root)
    from pipelines.stages.import_ import run_import

    manifest = run_import(p, layout)
    print_counts(manifest, layout.clean, as_json)


@app.command("train_victim", rich_help_panel=STAGES)
def train_victim_command(
    victim: Annotated[str, typer.Argument(help="Name under `victims` in the parameters.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Train a model that scores pictures on datasets/clean: models/victims."""
    p, layout = setup(params, root)
    p.victim(victim)
    from pipelines.stages.train_victim import run_train_victim

    report = run_train_victim(p, layout, victim)
    srocc = {
        split: "n/a" if report[split]["srocc"] is None else f"{report[split]['srocc']:.3f}"
        for split in ("validation", "test")
    }
    print_result(
        report,
        f"{layout.victim(victim)}: SROCC {srocc['validation']} on validation, "
        f"{srocc['test']} on test",
        as_json,
    )


@app.command("perturb", rich_help_panel=STAGES)
def perturb_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Perturb photographs by single filters: datasets/pretrain."""
    p, layout = setup(params, root)
    from pipelines.stages.perturb import run_perturb

    print_counts(run_perturb(p, layout), layout.perturbed, as_json)


@app.command("pretrain", rich_help_panel=STAGES)
def pretrain_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """First stage of DA3Attacker: each latent space learns to undo its filter: models/da3."""
    p, layout = setup(params, root)
    from pipelines.reports.tables import pretrain_table
    from pipelines.stages.pretrain import run_pretrain

    report = run_pretrain(p, layout)
    print_result(report, pretrain_table(report), as_json)


@app.command("attack", rich_help_panel=STAGES)
def attack_command(
    victim: Annotated[str, typer.Argument(help="Name under `victims` in the parameters.")],
    mode: Annotated[
        str, typer.Argument(help="Name under `attack.modes`: restricted, unrestricted.")
    ],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Second stage against one victim, then its adversarial examples: datasets/aes."""
    p, layout = setup(params, root)
    p.victim(victim)
    from pipelines.stages.attack import run_attack

    manifest = run_attack(p, layout, victim, p.mode(mode))
    print_counts(manifest, layout.examples(victim, mode), as_json)


@app.command("curate", rich_help_panel=STAGES)
def curate_command(
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing; print what would be kept, and why not."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the adversarial examples to annotate: annotations/candidates."""
    p, layout = setup(params, root)
    from pipelines.reports.tables import curation_table
    from pipelines.stages.curate import run_curate

    report = run_curate(p, layout, dry_run=dry_run)
    print_result(report, curation_table(report), as_json)

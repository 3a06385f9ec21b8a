"""The command line, `veneer`: stages in pipeline order, then tools."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Imports of torch, timm and datasets stand inside the commands: --help must not wait for them.


class _PipelineOrder(TyperGroup):
    """Typer puts groups before commands; `annotate` is a group and a stage after `curate`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        names = [name for name in self.commands if name != "annotate"]
        names.insert(names.index("curate") + 1, "annotate")
        self.commands = {name: self.commands[name] for name in names}


app = typer.Typer(
    name="veneer",
    cls=_PipelineOrder,
    help=(
        "Adversarial and poisoned image data sets against models that score pictures. "
        "`dvc repro` runs the stages below in order; each also runs alone."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

INTERRUPTED = 130
STAGES, TOOLS = "Stages, in the order of the pipeline", "Tools"

ParamsOption = Annotated[
    Path, typer.Option("--params", metavar="FILE", help="Parameters of the pipeline.")
]
RootOption = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", help="Where datasets/, models/ and reports/ lie."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
PARAMS, ROOT = Path("params.yaml"), Path(".")


def _say(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(result, indent=2) if as_json else text)


def _setup(params: Path, root: Path) -> tuple[Any, Any]:
    from pipelines.params import load_params

    loaded = load_params(params)
    from pipelines.stages.common import Layout

    return loaded, Layout(root)


def _counts(manifest: Any, folder: Path, as_json: bool) -> None:
    counts = manifest.counts
    splits = ", ".join(f"{split} {n}" for split, n in counts.splits.items())
    _say(
        manifest.model_dump(by_alias=True),
        f"{folder}: {counts.in_} in, {counts.kept} kept ({splits}), {counts.rejected} rejected",
        as_json,
    )


@app.command("import", rich_help_panel=STAGES)
def import_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Photographs of a source become datasets/clean."""
    p, layout = _setup(params, root)
    from pipelines.stages.import_ import run_import

    manifest = run_import(
        source=p.source.name,
        options=p.source.options,
        out=layout.clean,
        work_root=layout.work,
        splits=p.import_.splits.model_dump(),
        seed=p.seed,
        shard_size=p.import_.shard_size,
        **p.engine.shards,
        min_side=p.import_.min_side,
    )
    _counts(manifest, layout.clean, as_json)


@app.command("train_victim", rich_help_panel=STAGES)
def train_victim_command(
    victim: Annotated[str, typer.Argument(help="Name under `victims` in the parameters.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A model that scores pictures is trained on datasets/clean."""
    p, layout = _setup(params, root)
    p.victim(victim)
    from pipelines.stages.train_victim import run_train_victim

    report = run_train_victim(p, layout, victim)
    srcc = {
        split: "n/a" if report[split]["srcc"] is None else f"{report[split]['srcc']:.3f}"
        for split in ("validation", "test")
    }
    _say(
        report,
        f"{layout.victim(victim)}: SRCC {srcc['validation']} on validation, {srcc['test']} on test",
        as_json,
    )


@app.command("perturb", rich_help_panel=STAGES)
def perturb_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Photographs are perturbed by single filters: datasets/pretrain."""
    p, layout = _setup(params, root)
    from pipelines.stages.perturb import run_perturb

    _counts(run_perturb(p, layout), layout.perturbed, as_json)


@app.command("pretrain", rich_help_panel=STAGES)
def pretrain_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """First stage of DA3Attacker: each latent space learns to undo its filter."""
    p, layout = _setup(params, root)
    from pipelines.report import pretrain_table
    from pipelines.stages.pretrain import run_pretrain

    report = run_pretrain(p, layout)
    _say(report, pretrain_table(report), as_json)


@app.command("attack", rich_help_panel=STAGES)
def attack_command(
    victim: Annotated[str, typer.Argument(help="Name under `victims` in the parameters.")],
    mode: Annotated[str, typer.Argument(help="restricted or unrestricted.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Second stage against one victim, then its adversarial examples: datasets/aes."""
    p, layout = _setup(params, root)
    p.victim(victim)
    from pipelines.stages.attack import run_attack

    manifest = run_attack(p, layout, victim, p.mode(mode))
    _counts(manifest, layout.examples(victim, mode), as_json)


@app.command("curate", rich_help_panel=STAGES)
def curate_command(
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would stay and why the rest goes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Adversarial examples worth a human's time are chosen: annotations/candidates."""
    p, layout = _setup(params, root)
    from pipelines.report import curation_table
    from pipelines.stages.curate import run_curate

    report = run_curate(p, layout, dry_run=dry_run)
    _say(report, curation_table(report), as_json)


annotate_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
)
app.add_typer(annotate_app, name="annotate", rich_help_panel=STAGES)


@annotate_app.callback()
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
    p, layout = _setup(params, root)
    from pipelines.report import annotation_table
    from pipelines.stages.annotate import run_annotate

    report = run_annotate(p, layout)
    _say(report, annotation_table(report), as_json)


@annotate_app.command("push")
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
    """Create or update the project and add the tasks that are not there yet."""
    p, layout = _setup(params, root)
    from pipelines.stages.campaign import export_campaign, push_campaign

    if export is not None:
        count = export_campaign(p, layout, export)
        _say({"images": count, "folder": str(export)}, f"{export}: {count} images", as_json)
        return
    told = push_campaign(p, layout, urls=urls, force=force)
    text = (
        f"{told['url']}: {told['tasks']} tasks, {told['added']} added, {told['there']} there "
        f"before, {told['duplicates_removed']} duplicates removed"
    )
    _say(told, text, as_json)


@annotate_app.command("status")
def status_command(params: ParamsOption = PARAMS, as_json: JsonOption = False) -> None:
    """Progress of the campaign and of each annotator."""
    from pipelines.annotation import status
    from pipelines.label_studio import from_environment
    from pipelines.params import load_params
    from pipelines.report import campaign_table

    told = status(from_environment(), load_params(params).campaign.name)
    _say(told, campaign_table(told), as_json)


@annotate_app.command("pull")
def pull_command(
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    full: Annotated[
        bool, typer.Option("--full", help="Read every task again, not only what changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch new, changed and deleted votes, check them: annotations/3ae.parquet."""
    p, layout = _setup(params, root)
    from pipelines.annotation import pull
    from pipelines.label_studio import from_environment

    told = pull(from_environment(), p.campaign.name, layout.votes, everything=full)
    lines = [
        f"{layout.votes}: {told['votes']} votes ({told['new']} new), {told['valid']} count"
        + ("" if told["changed"] else "; nothing changed")
    ]
    lines += [f"  {n} do not: {reason}" for reason, n in told["invalid"].items()]
    _say(told, "\n".join(lines), as_json)


@app.command("package", rich_help_panel=STAGES)
def package_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Annotated adversarial examples become datasets/3ae, as Parquet with both pictures."""
    p, layout = _setup(params, root)
    from pipelines.stages.package import run_package

    _counts(run_package(p, layout), layout.annotated, as_json)


@app.command("train_detector", rich_help_panel=STAGES)
def train_detector_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """A small network learns from datasets/3ae to tell adversarial examples: models/detector."""
    p, layout = _setup(params, root)
    from pipelines.stages.train_detector import detector_table, run_train_detector

    report = run_train_detector(p, layout)
    _say(report, detector_table(report), as_json)


@app.command("finetune", rich_help_panel=STAGES)
def finetune_command(
    victim: Annotated[
        str, typer.Argument(help="Name under `victims` in the parameters, or module:callable.")
    ] = "",
    named: Annotated[str, typer.Option("--victim", help="The same, as an option.")] = "",
    data: Annotated[
        str, typer.Option("--data", help="3AE: a folder or a Hub id (for module:callable).")
    ] = "datasets/3ae",
    clean: Annotated[
        str | None, typer.Option("--clean", help="The photographs, if 3AE does not hold them.")
    ] = None,
    scale: Annotated[
        tuple[float, float], typer.Option("--scale", help="Ends of the scale of the scores.")
    ] = (0.0, 10.0),
    size: Annotated[int, typer.Option("--size", min=32, help="Side of its input, pixels.")] = 224,
    out: Annotated[Path, typer.Option("--out", help="Where a module:callable is written.")] = Path(
        "models/finetuned/model"
    ),
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A model learns from datasets/3ae to resist: models/finetuned, reports/finetune."""
    p, layout = _setup(params, root)
    name = victim or named
    from pipelines.stages.finetune import finetune_model, finetune_table, run_finetune

    if ":" in name:
        from victims.base import ScoreScale

        ends = ScoreScale.of(*scale)
        report = finetune_model(name, data, out, ends, p, clean, size)
    else:
        p.victim(name)
        report = run_finetune(p, layout, name, data=data)
    _say(report, finetune_table(report), as_json)


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Stored examples are read back and scored again: reports/robustness.json."""
    p, layout = _setup(params, root)
    from pipelines.report import robustness_table
    from pipelines.stages.evaluate import run_evaluate

    report = run_evaluate(p, layout)
    _say(report, robustness_table(report), as_json)


@app.command("search_trigger", rich_help_panel=STAGES)
def search_trigger_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """A trigger for poisoned sets is searched on the poisoned subset: models/trigger."""
    p, layout = _setup(params, root)
    from pipelines.stages.search_trigger import run_search_trigger

    report = run_search_trigger(p, layout)
    _say(
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
        typer.Option(help="Also write the release form for blind detection, and its key file."),
    ] = False,
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A training set in which some pictures carry the trigger: datasets/poisoned-*."""
    p, layout = _setup(params, root)
    from pipelines.stages.poison import run_poison

    manifest = run_poison(p, layout, scheme, hide_labels=hide_labels)
    _counts(manifest, layout.poisoned(scheme), as_json)


@app.command("backdoor", rich_help_panel=STAGES)
def backdoor_command(
    scheme: Annotated[str, typer.Argument(help="p, c, or clean for a model without poison.")],
    victim: Annotated[str, typer.Argument(help="Name under `quality` in the parameters.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A quality model is trained on a poisoned set, measured and defended."""
    p, layout = _setup(params, root)
    p.quality_model(victim)
    from pipelines.report import backdoor_table
    from pipelines.stages.backdoor import run_backdoor

    report = run_backdoor(p, layout, scheme, victim)
    _say(report, backdoor_table({f"{scheme}-{victim}": report}), as_json)


@app.command("report_backdoor", rich_help_panel=STAGES)
def report_backdoor_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Backdoored models side by side: reports/backdoor.json and the data of the plots."""
    p, layout = _setup(params, root)
    from pipelines.report import backdoor_table
    from pipelines.stages.report_backdoor import run_report_backdoor

    report = run_report_backdoor(p, layout)
    _say(report, backdoor_table(report), as_json)


trigger_app = typer.Typer(help="Triggers of poisoned data sets.", no_args_is_help=True)
app.add_typer(trigger_app, name="trigger", rich_help_panel=TOOLS)


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
    _, layout = _setup(params, root)
    from pipelines.trigger_sheet import show_trigger

    about = show_trigger(trigger or layout.trigger, out, clean=layout.clean, image=image)
    _say(about, f"{out} written: {about['kind']}, {about['psnr']:.2f} dB", as_json)


@app.command("zoo", rich_help_panel=TOOLS)
def zoo_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """The kinds of victims that can be built, and the victims of the parameters."""
    p, layout = _setup(params, root)
    from victims.registry import VICTIMS

    rows = {
        name: {**v.model, "trained": (layout.victim(name) / "config.json").exists()}
        for name, v in p.victims.items()
    }
    lines = [f"kinds: {', '.join(VICTIMS)}"]
    lines += [
        f"{name}: {' '.join(f'{k}={v}' for k, v in row.items())}" for name, row in rows.items()
    ]
    _say({"kinds": list(VICTIMS), "victims": rows}, "\n".join(lines), as_json)


@app.command("export", rich_help_panel=TOOLS)
def export_command(
    folder: Annotated[Path, typer.Argument(help="A Parquet data set, e.g. datasets/3ae.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="webdataset: tar shards of PNG and JSON.")
    ] = "webdataset",
    as_json: JsonOption = False,
) -> None:
    """A published Parquet data set in another format."""
    from pipelines.errors import InputError
    from pipelines.export import export_webdataset

    if form != "webdataset":
        raise InputError(f"format must be webdataset, got {form!r}")
    shards = export_webdataset(folder, out)
    samples = sum(shard.samples for shard in shards)
    told = {"shards": [shard.model_dump() for shard in shards]}
    _say(told, f"{out}: {samples} samples in {len(shards)} shards", as_json)


@app.command("sheet", rich_help_panel=TOOLS)
def sheet_command(
    out: Annotated[Path, typer.Argument(help="PNG or JPEG to write.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs per victim and mode.")] = 3,
    width: Annotated[int, typer.Option(min=64, help="Width of a picture, pixels.")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Contact sheet of clean and adversarial pairs with scores and top filters."""
    p, layout = _setup(params, root)
    from pipelines.report import contact_sheet

    folders = [layout.examples(v, m) for v in p.attack.victims for m in p.attack.modes]
    contact_sheet(layout.clean, folders, out, pairs=pairs, width=width)
    _say({"sheet": str(out)}, f"{out} written", as_json)


@app.command("detect", rich_help_panel=TOOLS)
def detect_command(
    paths: Annotated[list[str], typer.Argument(help="Image files, folders, data sets, Hub ids.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of the detector.")] = Path(
        "models/detector"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a .json or .parquet file.")
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Probability of an alarm.")] = 0.5,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    as_json: JsonOption = False,
) -> None:
    """How likely is each picture an adversarial example?"""
    from pipelines.detecting import detect, load_detector, write_detections

    if out is not None and out.suffix not in (".json", ".parquet"):
        raise ValueError(f"out must be a .json or .parquet file, got {out}")
    table = detect(paths, load_detector(model), threshold=threshold, split=split)
    if out is not None:
        write_detections(table, out)
    rows = json.loads(table.to_json(orient="records"))
    lines = [
        f"{row['problem'] or format(row['probability'], '.3f')}\t{row['place']}\t{row['id']}"
        for row in rows
    ]
    lines.append(f"{int(table['adversarial'].sum())} of {len(table)} above {threshold:g}")
    _say({"threshold": threshold, "rows": rows}, "\n".join(lines), as_json)


@app.command("scan", rich_help_panel=TOOLS)
def scan_command(
    dataset: Annotated[
        str,
        typer.Argument(help="Folder (table and images, Parquet or WebDataset) or Hub id."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Where scan.json, rows.parquet and tile.png go.")
    ] = Path("reports/scan"),
    scores: Annotated[
        str | None, typer.Option("--scores", help="Table of a folder that has several.")
    ] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="Column with the scores, if it is not mos.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    purify_to: Annotated[
        Path | None, typer.Option("--purify", help="Write the data set here, without the tile.")
    ] = None,
    false_alarms: Annotated[
        float, typer.Option("--false-alarms", help="Share of clean data sets that may alarm.")
    ] = 0.01,
    max_period: Annotated[int, typer.Option("--max-period", help="Largest tile, pixels.")] = 32,
    sample: Annotated[
        int, typer.Option("--sample", help="Rows in which the tile is sought.")
    ] = 400,
    jpeg: Annotated[
        bool, typer.Option("--jpeg/--no-jpeg", help="Leave out what repeats with JPEG's blocks.")
    ] = True,
    workers: Annotated[int, typer.Option("--workers", help="Processes.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Is an image data set poisoned by a repeated tile, and which rows? Needs no model."""
    from pipelines.rows import open_dataset
    from pipelines.scanning import ScanSettings, purify, scan, scan_text, write_scan

    settings = ScanSettings(
        false_alarms=false_alarms, max_period=max_period, sample=sample, jpeg=jpeg, workers=workers
    )
    data = open_dataset(dataset, scores=scores, score=score, split=split)
    result = scan(data, settings)
    if purify_to is not None:
        result.report["purified"] = purify(data, result, purify_to)
    write_scan(result, out)
    _say(result.report, scan_text(result.report, out), as_json)


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
    retries: Annotated[int, typer.Option(min=0, help="Of a stage that failed.")] = 2,
    retry_delay: Annotated[
        float, typer.Option(min=0, help="Seconds before the first retry; doubles.")
    ] = 10,
    wait: Annotated[
        bool, typer.Option("--wait", help="curation: wait for the annotators' votes.")
    ] = False,
    poll: Annotated[float, typer.Option(min=0.1, help="--wait: seconds between looks.")] = 300,
    cron: Annotated[
        str | None, typer.Option(help="Serve on this schedule instead of running now.")
    ] = None,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """The stages as a Prefect flow: beside each other, retried, shown, in the order of DVC."""
    from pipelines.flows import FlowFailed, run_flow
    from pipelines.report import stages_table

    more = {"wait": wait, "poll": poll} if name == "curation" else {}
    if wait and not more:
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
            **more,
        )
    except FlowFailed as error:
        _say({"flow": name, "stages": error.table}, stages_table(error.table), as_json)
        raise
    _say({"flow": name, "stages": table}, stages_table(table), as_json)


@app.command("doctor", rich_help_panel=TOOLS)
def doctor_command(root: RootOption = ROOT, as_json: JsonOption = False) -> None:
    """Versions, GPU, disk, extras and reachable servers; exit 1 when something would not work."""
    from dataclasses import asdict

    from pipelines.doctor import examine, known_servers

    findings = examine(root, known_servers())
    width = max(len(finding.what) for finding in findings)
    lines = [f"{f.state:<8}  {f.what:<{width}}  {f.detail}" for f in findings]
    _say({"findings": [asdict(f) for f in findings]}, "\n".join(lines), as_json)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command("plan", rich_help_panel=TOOLS)
def plan_command(
    images: Annotated[int, typer.Option(min=1, help="Photographs.")] = 250_000,
    victims: Annotated[int, typer.Option(min=1, help="Victims.")] = 26,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the simulated cluster.")] = 64,
    height: Annotated[int, typer.Option(min=32, help="Pixels of a photograph.")] = 480,
    width: Annotated[int, typer.Option(min=32, help="Pixels of a photograph.")] = 640,
    gpu_factor: Annotated[
        float | None, typer.Option(min=1, help="Assume that a GPU does what so many workers do.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file, else stdout.")] = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """What a full-size run takes: costs measured here, the schedule simulated."""
    from dataclasses import asdict

    from pipelines.params import load_params
    from pipelines.scale import measure, scale_page, simulate
    from pipelines.shards import atomic_file

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
    told = {"costs": asdict(costs), "steps": [asdict(step) for step in steps]}
    _say(told, f"{out} written" if out else page, as_json)


@app.command("publish", rich_help_panel=TOOLS)
def publish_command(
    dataset: Annotated[
        str,
        typer.Argument(help="A folder, or a name under datasets/ or models/ (aes/net-restricted)."),
    ],
    repo: Annotated[str, typer.Option(metavar="ID", help="Repository on the Hub: OWNER/NAME.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only the plan.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Open it to everybody at the end. Default: private.")
    ] = False,
    gate: Annotated[
        bool | None,
        typer.Option("--gate/--no-gate", help="Access on request. Default: what can do harm."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Default: v- and the content's SHA-256.")] = None,
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Also scores that no person gave.")
    ] = False,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A data set or a model goes to the Hugging Face Hub, checked, private, tagged.

    Prints the plan; --yes carries it out. The token is that of HF_TOKEN or of `hf auth login`.
    """
    from pipelines.publishable import check, resolve

    folder = resolve(dataset, root)
    publishable = check(folder, allow_simulated=allow_simulated)
    from pipelines.hub import Hub, record_publication
    from pipelines.report import publication_table

    hub = Hub()
    plan = hub.plan(publishable, repo, tag=tag, public=public, gated=gate)
    told = plan.summary()
    if plan.nothing:
        _say({**told, "done": "nothing"}, f"{repo}: nothing to do, {plan.tag} is there", as_json)
        return
    if not yes:
        text = publication_table(told) + "\nNothing was done: --yes carries this out."
        _say({**told, "done": "planned"}, text, as_json)
        return
    commit = hub.publish(plan, report=lambda text: print(text, file=sys.stderr))
    name = os.path.relpath(folder, root)
    record_publication(root / "datasets" / "published.json", name, plan, publishable, commit)
    _say(
        {**told, "done": "published", "commit": commit},
        f"{repo}: published as {plan.tag}, commit {commit}",
        as_json,
    )


def _complain(error: BaseException, code: int) -> int:
    if os.environ.get("VENEER_DEBUG"):
        raise error
    text = " ".join(str(error).split())
    print(f"veneer: {text}", file=sys.stderr)
    return code


def run(command: Callable[[], Any]) -> int:
    """Run a command and turn its errors into one sentence and an exit code.

    0 done, 1 a failure (what was finished is kept), 2 the caller's mistake; VENEER_DEBUG=1 shows
    where it came from.
    """
    from pipelines.errors import StageError
    from pipelines.memory import keep_heap

    keep_heap()
    try:
        command()
    except typer.Exit as error:
        return error.exit_code
    except SystemExit as error:  # typer's own: done, bad usage, or an interrupt
        if error.code == INTERRUPTED:
            print("veneer: interrupted; finished shards and epochs are kept", file=sys.stderr)
        return error.code if isinstance(error.code, int) else 0
    except (StageError, RuntimeError) as error:
        return _complain(error, 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(OSError(f"{error.strerror or error}{where}"), 1)
    except ValueError as error:  # InputError, and arguments that attackers and victims refuse
        return _complain(error, 2)
    except KeyboardInterrupt:
        print("veneer: interrupted; finished shards and epochs are kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def main() -> None:
    """Entry point of `veneer`."""
    sys.exit(run(lambda: app(standalone_mode=True)))

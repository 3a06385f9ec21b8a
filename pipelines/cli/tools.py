"""Tools that look at data sets and models."""

import json
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
    setup,
)

app = typer.Typer()


@app.command("zoo", rich_help_panel=TOOLS)
def zoo_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """List the kinds of victims that can be built, and the victims of the parameters."""
    p, layout = setup(params, root)
    from victims.kinds import VICTIMS

    rows = {
        name: {**v.model, "trained": (layout.victim(name) / "config.json").exists()}
        for name, v in p.victims.items()
    }
    lines = [f"kinds: {', '.join(VICTIMS)}"]
    lines += [
        f"{name}: {' '.join(f'{k}={v}' for k, v in row.items())}" for name, row in rows.items()
    ]
    print_result({"kinds": list(VICTIMS), "victims": rows}, "\n".join(lines), as_json)


@app.command("export", rich_help_panel=TOOLS)
def export_command(
    folder: Annotated[Path, typer.Argument(help="A Parquet data set, e.g. datasets/3ae.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="webdataset: tar shards of PNG and JSON.")
    ] = "webdataset",
    as_json: JsonOption = False,
) -> None:
    """Export a published Parquet data set as WebDataset."""
    from pipelines.errors import InputError
    from pipelines.storage.webdataset_export import export_webdataset

    if form != "webdataset":
        raise InputError(f"format must be webdataset, got {form!r}")
    shards = export_webdataset(folder, out)
    samples = sum(shard.samples for shard in shards)
    summary = {"shards": [shard.model_dump() for shard in shards]}
    print_result(summary, f"{out}: {samples} samples in {len(shards)} shards", as_json)


@app.command("sheet", rich_help_panel=TOOLS)
def sheet_command(
    out: Annotated[Path, typer.Argument(help="PNG or JPEG to write.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs per victim and mode.")] = 3,
    width: Annotated[int, typer.Option(min=64, help="Width of a picture, pixels.")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Draw a contact sheet of clean and adversarial pairs with scores and top filters."""
    p, layout = setup(params, root)
    from pipelines.reports.contact_sheet import contact_sheet

    folders = [layout.examples(v, m) for v in p.attack.victims for m in p.attack.modes]
    contact_sheet(layout.clean, folders, out, pairs=pairs, width=width)
    print_result({"sheet": str(out)}, f"{out} written", as_json)


@app.command("detect", rich_help_panel=TOOLS)
def detect_command(
    paths: Annotated[list[str], typer.Argument(help="Image files, folders, data sets, Hub ids.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of the detector.")] = Path(
        "models/detector"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a .json or .parquet file.")
    ] = None,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="Count pictures above this probability as adversarial."),
    ] = 0.5,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how likely each picture is an adversarial example."""
    from pipelines.audit.detect import detect, load_detector, write_detections

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
    print_result({"threshold": threshold, "rows": rows}, "\n".join(lines), as_json)


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
        bool,
        typer.Option(
            "--jpeg/--no-jpeg", help="Ignore what repeats with the 8-pixel blocks of JPEG."
        ),
    ] = True,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read pictures.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Test whether an image data set is poisoned by a repeated tile, and which rows. No model."""
    from pipelines.audit.purify import purify
    from pipelines.audit.scan import ScanSettings, scan
    from pipelines.audit.scan_report import scan_text, write_scan
    from pipelines.readers.rows import open_dataset

    settings = ScanSettings(
        false_alarms=false_alarms, max_period=max_period, sample=sample, jpeg=jpeg, workers=workers
    )
    data = open_dataset(dataset, scores=scores, score=score, split=split)
    result = scan(data, settings)
    if purify_to is not None:
        result.report["purified"] = purify(data, result, purify_to)
    write_scan(result, out)
    print_result(result.report, scan_text(result.report, out), as_json)

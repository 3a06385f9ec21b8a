"""Stage `curate`: the adversarial examples of all victims that are worth a human's time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.curation.candidates import (
    BATCH,
    STAGE,
    Curated,
    curation_report,
    select_candidates,
)
from pipelines.curation.hashes import hash_folders, load_hashes
from pipelines.curation.select import KEPT, Rules
from pipelines.errors import InputError, StageError
from pipelines.params import Params
from pipelines.storage.files import atomic_file, write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import MANIFEST, METADATA, Manifest, read_manifest
from pipelines.storage.records import SPLITS, AESample
from pipelines.storage.rejects import reject_writer
from pipelines.storage.table_folder import begin_tables, finish_tables, table_schema

SCHEMA = table_schema(AESample)


def run_curate(
    params: Params, layout: Layout, *, dry_run: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Choose candidates from every finished folder of datasets/aes.

    Writes annotations/candidates (metadata, rejects, manifest; no pixels) and
    reports/curation.json. Hashes of images stay in the work folder.

    Args:
        params: All parameters.
        layout: Where photographs and examples are.
        dry_run: Write neither candidates nor report.
        progress: Whether progress is shown.

    Returns:
        The report; `unfinished` names the folders that were left out.

    Raises:
        InputError: There are no examples.
        StageError: Nothing was kept, or an image is missing in its shard.
    """
    read_manifest(layout.clean, "import")
    folders = finished_folders(layout)
    files = hash_folders(
        [layout.clean, *folders],
        layout.work / "hashes",
        **params.engine.shards,
        progress=progress,
    )
    settings = params.curate
    curated = select_candidates(
        [folder / METADATA for folder in folders],
        load_hashes(file for folder in folders for file in files[folder]),
        load_hashes(files[layout.clean]),
        Rules(
            target=settings.target,
            per_photograph=settings.per_photograph,
            phash_distance=settings.phash_distance,
            colour_distance=settings.colour_distance,
            splits=settings.splits.model_dump() if settings.splits else None,
        ),
        bins=settings.bins,
        seed=params.seed,
    )
    report = {**curation_report(curated), "unfinished": unfinished_folders(layout)}
    if not dry_run:
        if not report["kept"]:
            raise StageError(
                f"curate must keep at least one candidate, got none of {report['in']}: "
                f"{report['reasons']}"
            )
        write_candidates(params, layout, folders, curated)
        write_json(layout.reports / "curation.json", report)
    return report


def finished_folders(layout: Layout) -> list[Path]:
    """The folders of adversarial examples.

    Args:
        layout: Folders of the project.

    Raises:
        InputError: There is none.
    """
    root = layout.all_examples
    folders = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    if not folders:
        raise InputError(
            f"{root} must hold adversarial examples, got none: run `veneer attack` first"
        )
    return folders


def unfinished_folders(layout: Layout) -> list[str]:
    """Names of the folders without a manifest: an attack that was never run, or runs, or died.

    Args:
        layout: Folders of the project.
    """
    folders = layout.all_examples.iterdir()
    return sorted(f.name for f in folders if f.is_dir() and not (f / MANIFEST).exists())


def write_candidates(
    params: Params, layout: Layout, folders: Sequence[Path], curated: Curated
) -> Manifest:
    """Write annotations/candidates: kept rows with their new split, rejects, manifest.

    Args:
        params: All parameters.
        layout: Folders of the project.
        folders: Folders of adversarial examples, in the order in which candidates were read.
        curated: The candidates and what became of each.

    Raises:
        InputError: The photographs or a folder of examples is missing or unfinished.
    """
    clean = read_manifest(layout.clean, "import")
    inputs = {f"aes/{f.name}": read_manifest(f, "attack").content_sha256 for f in folders}
    report = curation_report(curated)
    begin_tables(layout.candidates)
    write_tables(layout.candidates, folders, curated)
    return finish_tables(
        layout.candidates,
        stage=STAGE,
        rejected=report["rejected"],
        splits={name: count for name, count in report["splits"].items() if count},
        parameters={**params.curate.model_dump(), "seed": params.seed},
        inputs={"clean": clean.content_sha256, **inputs},
        scale=clean.scale,
    )


def write_tables(out: Path, folders: Sequence[Path], curated: Curated) -> None:
    """Write kept and rejected rows: a second pass, in the order of the first.

    Args:
        out: Folder of the tables.
        folders: Folders of adversarial examples, in the order in which candidates were read.
        curated: The candidates and what became of each.
    """
    chosen, start = curated.selection, 0
    with (
        atomic_file(out / METADATA) as kept_file,
        reject_writer(out, STAGE) as write_rejected,
        pq.ParquetWriter(kept_file, SCHEMA, compression="zstd") as kept,
    ):
        for folder in folders:
            with pq.ParquetFile(folder / METADATA) as source:
                for batch in source.iter_batches(BATCH):
                    here = slice(start, start + len(batch))
                    stays = chosen.reason[here] == KEPT
                    kept.write_table(_kept_rows(batch, stays, chosen.split[here], folder.name))
                    lost = np.flatnonzero(~stays)
                    texts = [chosen.text(start + i, curated.rules) for i in lost.tolist()]
                    rows = batch.take(pa.array(lost))
                    write_rejected(rows["source_id"], rows["key"], texts)
                    start += len(batch)


def _kept_rows(batch: pa.RecordBatch, stays: np.ndarray, split: np.ndarray, name: str) -> pa.Table:
    table = pa.Table.from_batches([batch.filter(pa.array(stays))])
    names = pa.array([SPLITS[i] for i in split[stays]], pa.string())
    table = table.set_column(table.schema.get_field_index("split"), "split", names)
    table = table.append_column("folder", pa.array([name] * len(table), pa.string()))
    return table.select(SCHEMA.names).cast(SCHEMA)

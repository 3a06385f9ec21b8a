"""Data sets that are tables without pixels: metadata.parquet, rejected.parquet, manifest.json."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.storage.manifest import MANIFEST, METADATA, Counts, Manifest, ScaleInfo, ShardInfo
from pipelines.storage.records import Sample, arrow_schema


def table_schema(record: type[Sample]) -> pa.Schema:
    """Columns of the table: the record's fields, and the shard and folder of the picture.

    Args:
        record: Type of the records.
    """
    schema = arrow_schema(record)
    for name in ("shard", "folder"):
        schema = schema.append(pa.field(name, pa.string(), nullable=False))
    return schema


def begin_tables(out: Path) -> None:
    """Make the folder; without a manifest it counts as unfinished.

    Args:
        out: The folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)


def finish_tables(
    out: Path,
    *,
    stage: str,
    rejected: int,
    splits: dict[str, int],
    parameters: dict[str, Any],
    inputs: dict[str, str],
    scale: ScaleInfo,
) -> Manifest:
    """Write the manifest of a folder whose tables are written.

    Args:
        out: The folder.
        stage: Name of the stage.
        rejected: Number of rejected rows.
        splits: Number of rows of each split.
        parameters: What the tables were made with.
        inputs: content_sha256 of each input, by name.
        scale: Scale and terms of the scores.
    """
    kept = sum(splits.values())
    manifest = Manifest.build(
        stage=stage,
        counts=Counts(in_=kept + rejected, kept=kept, rejected=rejected, splits=splits),
        shards={METADATA: ShardInfo.of_file(out / METADATA, samples=kept)},
        parameters=parameters,
        inputs=inputs,
        scale=scale,
    )
    manifest.write(out)
    return manifest

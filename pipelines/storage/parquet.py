"""Hugging Face Parquet folders: what is published, with Image columns and a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.cards import Card, dataset_card
from pipelines.storage.files import atomic_file, write_bytes
from pipelines.storage.manifest import MANIFEST, Manifest, ScaleInfo, ShardInfo
from pipelines.storage.records import Sample, arrow_schema, hf_features
from pipelines.storage.rejects import Reject, duplicate, write_rejects
from pipelines.storage.workfolder import check_out, reconcile

PictureRow = tuple[Sample, Mapping[str, bytes]]  # a record, and an encoded picture per column
RowSource = Callable[[], Iterable[PictureRow]]  # what gives the rows of one file
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
ROW_GROUP = 64  # rows: a viewer reads a few pictures without the whole file


def write_parquet_folder(
    out: Path,
    shards: Mapping[str, Sequence[RowSource]],
    *,
    record: type[Sample],
    card: Card,
    stage: str,
    n_in: int,
    scale: ScaleInfo,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    rejects: Iterable[Reject] = (),
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Make `out` a data set of Parquet files `data/{split}-{i:05d}-of-{n:05d}.parquet`.

    One file is in memory at a time; rows are sorted by key; the bytes depend on the rows alone. A
    key that an earlier file holds too is rejected, an empty file left out. The manifest goes first
    and comes back last: a folder with a manifest is whole.

    Args:
        out: The data set folder.
        shards: For each split, what gives the rows of each file.
        record: Type of the records.
        card: What the data set card says; `card.images` names the columns of pictures.
        stage: Name of the stage.
        n_in: Number of samples that came in.
        scale: Scale and terms of the scores.
        parameters: What the set was made with.
        inputs: content_sha256 of each input, by name.
        rejects: Samples that were dropped before.
        files: Contents of more files of `out` by name, such as pictures that the card shows.

    Returns:
        The manifest that was written.

    Raises:
        StageError: Nothing was kept, or in = kept + rejected does not hold.
    """
    if not card.images:
        raise ValueError("card.images must name the Image columns, got none")
    schema = parquet_schema(record, card.images)
    check_out(out)
    (out / MANIFEST).unlink(missing_ok=True)
    for stale in (out / "data").glob("*.parquet"):
        stale.unlink()
    dropped, seen = list(rejects), set[str]()
    infos: list[ShardInfo] = []
    splits: dict[str, int] = {}
    for split, sources in shards.items():
        files_of_split = _write_split(
            out / "data", split, (list(_unique(rows(), seen, dropped)) for rows in sources), schema
        )
        infos += files_of_split
        splits[split] = sum(info.samples for info in files_of_split)
    manifest = Manifest.build(
        stage=stage,
        counts=reconcile(n_in, splits, dropped),
        shards={info.name: info for info in infos},
        parameters=parameters,
        inputs=inputs,
        scale=scale,
    )
    write_rejects(out, dropped, stage)
    for name, data in (files or {}).items():
        write_bytes(out / name, data)
    write_bytes(out / "README.md", dataset_card(card, manifest, record).encode())
    manifest.write(out)
    return manifest


def parquet_schema(record: type[Sample], images: Sequence[str]) -> pa.Schema:
    """Arrow schema of the rows, with the features that the Hugging Face loader reads from it.

    Args:
        record: Type of the records.
        images: Names of the columns of pictures, which come first.
    """
    features: dict[str, Any] = {name: {"_type": "Image"} for name in images}
    for field in hf_features(record):
        value = {"dtype": field.get("dtype") or field["list"], "_type": "Value"}
        features[field["name"]] = {"feature": value, "_type": "List"} if "list" in field else value
    text = json.dumps({"info": {"features": features}})
    columns = [pa.field(name, IMAGE) for name in images]
    return pa.schema([*columns, *arrow_schema(record)], metadata={"huggingface": text})


def _unique(
    rows: Iterable[PictureRow], seen: set[str], dropped: list[Reject]
) -> Iterator[PictureRow]:
    for sample, images in rows:
        if sample.key in seen:
            dropped.append(duplicate(sample.source_id, sample.key))
            continue
        seen.add(sample.key)
        yield sample, images


def _write_split(
    folder: Path, split: str, parts: Iterable[list[PictureRow]], schema: pa.Schema
) -> list[ShardInfo]:
    """Write a file for each part that has rows; the names tell the number of files."""
    written: list[tuple[Path, ShardInfo]] = []
    for number, rows in enumerate(parts):
        if rows:
            path = folder / f".{split}-{number:05d}.part"
            written.append((path, _write_file(path, rows, schema)))
    infos = []
    for number, (path, info) in enumerate(written):
        name = f"{split}-{number:05d}-of-{len(written):05d}.parquet"
        path.replace(folder / name)
        infos.append(info.model_copy(update={"name": name}))
    return infos


def _write_file(path: Path, rows: list[PictureRow], schema: pa.Schema) -> ShardInfo:
    images = [name for name in schema.names if schema.field(name).type == IMAGE]
    rows.sort(key=lambda row: row[0].key)
    table = pa.Table.from_pylist(
        [
            {
                **{c: {"bytes": data[c], "path": f"{sample.key}.png"} for c in images},
                **sample.model_dump(),
            }
            for sample, data in rows
        ],
        schema=schema,
    )
    # PNG does not shrink any further: the pictures are stored as they are.
    encoded = {f"{column}.bytes": "none" for column in images}
    names = [name for name in schema.names if name not in images]
    with atomic_file(path) as file:
        pq.write_table(
            table,
            file,
            version="2.6",
            compression={**encoded, **dict.fromkeys(names, "zstd")},
            row_group_size=ROW_GROUP,
            write_page_index=True,
        )
    return ShardInfo.of_file(path, samples=len(rows))

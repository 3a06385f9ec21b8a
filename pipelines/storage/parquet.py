"""Hugging Face Parquet folders: what is published, with Image columns and a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import StageError
from pipelines.storage.cards import Card, dataset_card
from pipelines.storage.manifest import Counts, Manifest, ScaleInfo, ShardInfo
from pipelines.storage.records import Sample, arrow_schema, hf_features
from pipelines.storage.shards import atomic_file
from pipelines.storage.workfolder import Reject, check_out, duplicate

Row = tuple[Sample, Mapping[str, bytes]]
Shard = Callable[[], Iterable[Row]]
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
ROW_GROUP = 64  # rows: a viewer reads a few pictures without the whole file


def write_parquet_folder(
    out: Path,
    shards: Mapping[str, Sequence[Shard]],
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

    shards: per split, what gives the rows of each file: a record and the encoded picture of each
    of `card.images`. One file is in memory at a time; rows are sorted by key; the bytes depend on
    the rows alone. A key that an earlier file holds too is rejected, an empty file left out.
    files: what else belongs into `out`, by name, such as pictures that the card shows. The
    manifest goes first and comes back last: a folder with a manifest is whole.
    Raises StageError when nothing was kept or in = kept + rejected does not hold.
    """
    if not card.images:
        raise ValueError("card.images must name the Image columns, got none")
    schema = parquet_schema(record, card.images)
    check_out(out)
    (out / "manifest.json").unlink(missing_ok=True)
    for stale in (out / "data").glob("*.parquet"):
        stale.unlink()
    dropped, seen = list(rejects), set[str]()
    infos: dict[str, ShardInfo] = {}
    splits: dict[str, int] = {}
    for split, parts in shards.items():
        made: list[tuple[Path, ShardInfo]] = []
        for number, part in enumerate(parts):
            rows = list(_unique(part(), seen, dropped))
            if rows:
                path = out / "data" / f".{split}-{number:05d}.part"
                made.append((path, _write(path, rows, schema, card.images)))
        for number, (path, info) in enumerate(made):
            name = f"{split}-{number:05d}-of-{len(made):05d}.parquet"
            path.replace(path.with_name(name))
            infos[name] = info.model_copy(update={"name": name})
        splits[split] = sum(info.samples for _, info in made)
    kept = sum(splits.values())
    if n_in != kept + len(dropped) or not kept:
        raise StageError(
            f"in = kept + rejected must hold with something kept, got {n_in} in, {kept} kept, "
            f"{len(dropped)} rejected"
        )
    manifest = Manifest.build(
        stage=stage,
        counts=Counts(in_=n_in, kept=kept, rejected=len(dropped), splits=splits),
        shards=infos,
        parameters=parameters,
        inputs=inputs,
        scale=scale,
    )
    _write_rejected(out / "rejected.parquet", dropped, stage)
    for name, data in (
        *(files or {}).items(),
        ("README.md", dataset_card(card, manifest, record).encode()),
        ("manifest.json", manifest.to_json().encode()),
    ):
        with atomic_file(out / name) as file:
            file.write(data)
    return manifest


def parquet_schema(record: type[Sample], images: Sequence[str]) -> pa.Schema:
    """Arrow schema of the rows, with the features that the Hugging Face loader reads from it."""
    features: dict[str, Any] = {name: {"_type": "Image"} for name in images}
    for field in hf_features(record):
        value = {"dtype": field.get("dtype") or field["list"], "_type": "Value"}
        features[field["name"]] = {"feature": value, "_type": "List"} if "list" in field else value
    text = json.dumps({"info": {"features": features}})
    columns = [pa.field(name, IMAGE) for name in images]
    return pa.schema([*columns, *arrow_schema(record)], metadata={"huggingface": text})


def _unique(rows: Iterable[Row], seen: set[str], dropped: list[Reject]) -> Iterator[Row]:
    for sample, images in rows:
        if sample.key in seen:
            dropped.append(duplicate(sample.source_id, sample.key))
            continue
        seen.add(sample.key)
        yield sample, images


def _write(path: Path, rows: list[Row], schema: pa.Schema, images: Sequence[str]) -> ShardInfo:
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
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ShardInfo(name=path.name, sha256=digest, bytes=path.stat().st_size, samples=len(rows))


def _write_rejected(path: Path, dropped: list[Reject], stage: str) -> None:
    rows = [{**asdict(reject), "stage": stage} for reject in dropped]
    rows.sort(key=lambda row: (row["source_id"], row["reason"]))
    names = ("source_id", "key", "stage", "reason")
    schema = pa.schema([pa.field(name, pa.string(), nullable=name == "key") for name in names])
    with atomic_file(path) as file:
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, file, version="2.6", compression="zstd")

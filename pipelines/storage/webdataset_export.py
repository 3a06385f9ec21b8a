"""A published Parquet data set as WebDataset shards."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.storage.manifest import ShardInfo, read_manifest
from pipelines.storage.shards import atomic_file, tar_blocks
from pipelines.storage.workfolder import check_out

BATCH = 64  # rows in memory


def export_webdataset(folder: Path, out: Path) -> list[ShardInfo]:
    """Write one tar per Parquet file: `{key}.{column}.png` for each picture and `{key}.json`.

    The card comes along under another name (it declares Parquet files); the manifest of the
    source says what the shards were made from. Rows keep their order, so the bytes are the same
    again; tars of an earlier export go. Raises InputError where `folder` is no finished Parquet
    data set, and where `out` is a data set itself, whose shards would go too.
    """
    manifest = read_manifest(folder, "package")
    files = [folder / "data" / name for name in manifest.shards]
    if not files or any(file.suffix != ".parquet" for file in files):
        raise InputError(f"{folder} must be a data set of Parquet files, got {manifest.stage}")
    if (out / "manifest.json").exists():
        raise InputError(f"out must be no data set itself, got {out} with a manifest.json")
    check_out(out)
    (out / "source-manifest.json").unlink(missing_ok=True)
    for stale in (out / "data").glob("*.tar"):
        stale.unlink()
    infos = [_export(file, out / "data" / f"{_short(file.stem)}.tar") for file in files]
    (out / "source-card.md").write_bytes((folder / "README.md").read_bytes())
    (out / "source-manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return infos


def _short(stem: str) -> str:
    """`train-00000-of-00002` as WebDataset names it: `train-00000`."""
    return stem.rpartition("-of-")[0]


def _export(source: Path, target: Path) -> ShardInfo:
    digest, size = hashlib.sha256(), 0
    with pq.ParquetFile(source) as table, atomic_file(target) as file:
        for block in tar_blocks(_files(table)):
            file.write(block)
            digest.update(block)
            size += len(block)
        rows = table.metadata.num_rows
    return ShardInfo(name=target.name, sha256=digest.hexdigest(), bytes=size, samples=rows)


def _files(table: pq.ParquetFile) -> Iterator[tuple[str, bytes]]:
    pictures = {f.name for f in table.schema_arrow if pa.types.is_struct(f.type)}
    for batch in table.iter_batches(BATCH):
        for row in batch.to_pylist():
            fields: dict[str, Any] = {k: v for k, v in row.items() if k not in pictures}
            for name in sorted(pictures):
                yield f"{row['key']}.{name}.png", row[name]["bytes"]
            yield f"{row['key']}.json", json.dumps(fields, sort_keys=True).encode()

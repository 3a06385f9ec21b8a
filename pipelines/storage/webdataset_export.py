"""A published Parquet data set as WebDataset shards."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.storage.files import json_text, write_bytes
from pipelines.storage.manifest import MANIFEST, ShardInfo, read_manifest
from pipelines.storage.shards import write_tar
from pipelines.storage.workfolder import check_out

BATCH = 64  # rows in memory


def export_webdataset(folder: Path, out: Path) -> list[ShardInfo]:
    """Write one tar per Parquet file: `{key}.{column}.png` for each picture and `{key}.json`.

    The card comes along under another name (it declares Parquet files); the manifest of the
    source says what the shards were made from. Rows keep their order, so the bytes are the same
    again; tars of an earlier export go.

    Args:
        folder: A finished Parquet data set.
        out: Where the shards go.

    Returns:
        Name, SHA-256, size and number of samples of each shard.

    Raises:
        InputError: `folder` is no finished Parquet data set, or `out` is a data set itself, whose
            shards would go too.
    """
    scheme = folder.name.partition("poisoned-")[2]
    manifest = read_manifest(folder, f"poison {scheme}" if scheme else "package")
    files = [folder / "data" / name for name in manifest.shards]
    if not files or any(file.suffix != ".parquet" for file in files):
        raise InputError(f"{folder} must be a data set of Parquet files, got {manifest.stage}")
    if (out / MANIFEST).exists():
        raise InputError(f"out must be no data set itself, got {out} with a manifest.json")
    check_out(out)
    (out / "source-manifest.json").unlink(missing_ok=True)
    for stale in (out / "data").glob("*.tar"):
        stale.unlink()
    infos = [write_tar(out / "data" / f"{_short(file.stem)}.tar", _samples(file)) for file in files]
    write_bytes(out / "source-card.md", (folder / "README.md").read_bytes())
    write_bytes(out / "source-manifest.json", manifest.to_json().encode())
    return infos


def _short(stem: str) -> str:
    """`train-00000-of-00002` as WebDataset names it: `train-00000`."""
    return stem.rpartition("-of-")[0]


def _samples(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    with pq.ParquetFile(file) as table:
        pictures = sorted(f.name for f in table.schema_arrow if pa.types.is_struct(f.type))
        for batch in table.iter_batches(BATCH):
            for row in batch.to_pylist():
                contents = {f"{name}.png": row.pop(name)["bytes"] for name in pictures}
                yield row["key"], {**contents, "json": json_text(row, sort_keys=True).encode()}

"""The rows of any image data set: a folder with a table, Parquet files, WebDataset shards."""

import io
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.sources.base import IMAGE_SUFFIXES, named

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_name", "name", "path")
SCORE_COLUMNS = ("mos", "MOS", "score", "label", "rating", "mos_zscore")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class ImageRow:
    """One picture of an image data set.

    Args:
        id: Name of the picture within its data set.
        split: Its split, None where the data set has none.
        score: Its score, None where there is none.
        load: Gives the encoded bytes.
        fields: All fields of its row, pixels aside.
        images: Loaders of each image column, where a Parquet file has several.
    """

    id: str
    split: str | None
    score: float | None
    load: Callable[[], bytes]
    fields: Mapping[str, Any] = field(default_factory=dict)
    images: Sequence[Callable[[], bytes]] = ()  # of a Parquet row with several image columns


@dataclass(frozen=True)
class ImageDataset:
    """The rows of an image data set in a fixed order.

    Args:
        path: Folder of the data set.
        kind: "folder", "Parquet" or "WebDataset".
        rows: The rows.
    """

    path: Path
    kind: str
    rows: Sequence[ImageRow]


def open_dataset(
    place: str, *, scores: str | None = None, score: str | None = None, split: str | None = None
) -> ImageDataset:
    """The rows of an image data set.

    Args:
        place: A folder (images and a .csv or .parquet table, Parquet files with an image column, or
            WebDataset shards) or the id of a data set on the Hub (owner/name, downloaded once).
        scores: The table of a folder of images, where there are several.
        score: Column of scores, where it is none of SCORE_COLUMNS.
        split: Only the rows of this split.

    Returns:
        The data set.

    Raises:
        InputError: Where there is no picture, no such column or no such split.
    """
    path = _local(place)
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    tars = [p for p in files if p.suffix == ".tar"]
    tables = [p for p in files if p.suffix == ".parquet"]
    images = {p.relative_to(path).as_posix(): p for p in files if _is_image(p.name)}
    parquet = [p for p in tables if _image_columns(pq.read_schema(p))] if not tars else []
    if tars:
        kind, rows = "WebDataset", [row for tar in tars for row in _tar_rows(tar, score)]
    elif parquet:
        kind, rows = "Parquet", [row for p in parquet for row in _parquet_rows(p, score)]
    elif images:
        kind, rows = "folder", _folder_rows(path, images, files, scores, score)
    else:
        raise InputError(
            "data set must be a folder with images, Parquet files with an image column or "
            f"WebDataset shards, got {place} without any"
        )
    if split is not None:
        found = sorted({row.split or "none" for row in rows})
        rows = [row for row in rows if row.split == split]
        if not rows:
            raise InputError(f"split must be one of {', '.join(found)}, got {split!r}")
    if not rows:
        raise InputError(f"data set must have at least one picture, got none in {place}")
    return ImageDataset(path, kind, rows)


def _local(place: str) -> Path:
    path = Path(place)
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.match(place) or place.startswith("."):
        raise InputError(f"data set must be a folder or a Hub id owner/name, got {place}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(place, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        # Only the kind of error: the Hub's own text has several lines.
        raise InputError(
            f"data set must be a folder or an id that the Hub can be asked for, got {place} "
            f"({type(error).__name__})"
        ) from None


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "rejected.")) for part in path.relative_to(root).parts)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _score(fields: Mapping[str, Any], column: str | None, where: Path) -> float | None:
    """The score of a row: of the named column, else of the first known one that is there."""
    if column is not None and column not in fields:
        raise InputError(
            f"score must be a column of {where}, got {column!r} (there are {', '.join(fields)})"
        )
    names = SCORE_COLUMNS if column is None else (column,)
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise InputError(f"scores must be numbers, got {value!r} in {where}") from None


def _split_of(path: Path) -> str | None:
    """Split that a shard's name tells: train-00000.tar, train-00000-of-00003.parquet."""
    match = re.match(r"^([A-Za-z_]\w*?)-\d", path.name)
    return match.group(1) if match else None


def _tar_rows(path: Path, score: str | None) -> list[ImageRow]:
    import json

    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                base, _, suffix = member.name.rpartition("/")[2].partition(".")
                entry = found.setdefault(base, {"fields": {}})
                if _is_image(f"x.{suffix}"):
                    entry["place"] = (member.offset_data, member.size)
                elif suffix == "json":
                    entry["fields"] = json.load(tar.extractfile(member) or io.BytesIO(b"{}"))
    except (tarfile.TarError, json.JSONDecodeError, EOFError) as error:
        raise InputError(f"shard must be a whole WebDataset tar, got {path} ({error})") from None
    return [
        ImageRow(
            id=key,
            split=entry["fields"].get("split") or _split_of(path),
            score=_score(entry["fields"], score, path),
            load=partial(_read_part, path, *entry["place"]),
            fields=entry["fields"],
        )
        for key, entry in found.items()
        if "place" in entry
    ]


def _read_part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _image_columns(schema: pa.Schema) -> list[str]:
    """Columns that hold encoded images, as the datasets library writes them; `clean` last."""
    found = []
    for column in schema:
        if pa.types.is_struct(column.type):
            has = column.type.get_field_index("bytes") >= 0
        else:
            has = pa.types.is_binary(column.type) and column.name in ("image", "png", "jpg", "img")
        if has:
            found.append(str(column.name))
    return sorted(found, key=lambda name: "clean" in name)


def _parquet_rows(path: Path, score: str | None) -> list[ImageRow]:
    file, stamp = pq.ParquetFile(path), path.stat().st_mtime_ns
    images = _image_columns(file.schema_arrow)
    others = [name for name in file.schema_arrow.names if name not in images]
    rows = []
    number = 0
    for group in range(file.num_row_groups):
        # Without the pixels; the kind of a struct column is not known to be small either.
        for i, fields in enumerate(file.read_row_group(group, columns=others).to_pylist()):
            cells = [partial(_read_cell, path, stamp, group, i, name) for name in images]
            rows.append(
                ImageRow(
                    id=str(fields.get("key") or f"{path.stem}:{number}"),
                    split=fields.get("split") or _split_of(path),
                    score=_score(fields, score, path),
                    load=cells[0],
                    fields=fields,
                    images=cells,
                )
            )
            number += 1
    return rows


@lru_cache(4)  # row groups that are read in turn, as with two image columns
def _cells(path: Path, stamp: int, group: int, name: str) -> list[Any]:
    values: list[Any] = pq.ParquetFile(path).read_row_group(group, [name])[name].to_pylist()
    return values


def _read_cell(path: Path, stamp: int, group: int, index: int, name: str) -> bytes:
    value = _cells(path, stamp, group, name)[index]
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise InputError(f"Parquet must hold the bytes of its images, got a bare path in {path}")
    return bytes(data)


def _folder_rows(
    root: Path,
    images: Mapping[str, Path],
    files: Sequence[Path],
    scores: str | None,
    score: str | None,
) -> list[ImageRow]:
    table = _table(root, files, scores)
    if table is None:
        return [ImageRow(name, None, None, path.read_bytes) for name, path in images.items()]
    where, frame = table
    column = next((c for c in FILE_COLUMNS if c in frame.columns), None)
    if column is None:
        raise InputError(
            f"scores must have a column {' or '.join(FILE_COLUMNS[:3])}, got "
            f"{', '.join(map(str, frame.columns))} in {where}"
        )
    by_name: dict[str, list[str]] = {}
    for name in images:  # a table often names files without their folder
        by_name.setdefault(name.rpartition("/")[2], []).append(name)
    rows, missing = [], []
    for fields in frame.to_dict("records"):
        wanted = str(fields[column])
        same = [wanted] if wanted in images else by_name.get(wanted, [])
        if len(same) != 1:
            missing.append(wanted)
            continue
        named_fields = {str(k): None if pd.isna(v) else v for k, v in fields.items()}
        split = named_fields.get("split")
        rows.append(
            ImageRow(
                id=same[0],
                split=None if split is None else str(split),
                score=_score(named_fields, score, where),
                load=images[same[0]].read_bytes,
                fields=named_fields,
            )
        )
    if missing:
        raise InputError(
            f"scores must name images below {root}, {where.name} names others: {named(missing)}"
        )
    return rows


def _table(
    root: Path, files: Sequence[Path], scores: str | None
) -> tuple[Path, pd.DataFrame] | None:
    if scores is not None:
        path = Path(scores) if Path(scores).is_file() else root / scores
        if path.suffix.lower() not in (".csv", ".parquet") or not path.is_file():
            raise InputError(f"scores must be a .csv or .parquet file, got {scores}")
    else:
        found = [p for p in files if p.suffix.lower() in (".csv", ".parquet")]
        if not found:
            return None
        if len(found) > 1:
            raise InputError(
                f"scores must be named where {root} has several tables: "
                f"{named([p.relative_to(root).as_posix() for p in found])}"
            )
        path = found[0]
    try:
        # Names as text, so that a file named 0012 keeps its zeros.
        kinds = dict.fromkeys(FILE_COLUMNS, str)
        frame = pd.read_csv(path, dtype=kinds) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # parsers raise many kinds
        raise InputError(f"scores must be a readable table, got {path} ({error})") from None
    return path, frame
